"""Turns stores in an activation form into region ops and plain stores, so that a printer needs no quantiser of its own.

In: a region whose stores may be in any slot form. Out: a region whose extra ops compute codes, scales and minima, and
targets that say where each value goes. The forms are those of the kernel library: codes padded to 64 columns, then
fp32 scale and minimum per row ("u8t") or scales, then minima, per group ("u8g64"); "bf16" rows padded to 32 columns.
Three ops exist only here: "rotate" (block Hadamard), "group_min" and "group_max" (over aligned groups of columns);
their ``value`` is the block or group length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adaflex.codegen.cpp_region import analyse
from adaflex.codegen.sizes import known, same
from adaflex.runtime.program import ITEM_BYTES, Slot
from adaflex.runtime.region import REDUCE, Op, Region, Size, Store, plus, round_up

LEVELS = 255.0  # activation codes are 0..255


@dataclass(frozen=True)
class Target:
    """Where one value goes. ``kind``: "plain" (all columns), "row" (one number), "codes" (all columns, zeros up to
    a multiple of ``unit``), "tail" (one fp32 at byte ``offset``), "group" (one fp32 per group from there)."""

    value: int
    slot: int
    kind: str = "plain"
    offset: Size = 0
    unit: int = 1
    group: int = 1


def legalise(region: Region, slots: Sequence[Slot]) -> tuple[Region, tuple[Target, ...]]:
    """The region with the ops that its formed stores need, and its targets."""
    writer = _Writer(list(region.ops))
    targets: list[Target] = []
    per_row = analyse(region).per_row
    for store in region.stores:
        slot = slots[store.slot]
        if slot.form in ITEM_BYTES or slot.form == "bf16":
            targets.append(_plain(region, slot, store, per_row[store.value]))
        else:
            value = writer.full(store.value) if per_row[store.value] else store.value
            targets += writer.formed(value, store.slot, slot.form, region.columns)
    stores = tuple(Store(target.value, target.slot) for target in targets)
    return replace(region, ops=tuple(writer.ops), stores=stores), tuple(targets)


def _plain(region: Region, slot: Slot, store: Store, per_row: bool) -> Target:
    if per_row and (region.ops[store.value].name in REDUCE or known(slot.columns) == 1):
        return Target(store.value, store.slot, "row")
    if slot.form == "bf16" and not same(slot.row_bytes, ("*", slot.columns, 2)):
        return Target(store.value, store.slot, "codes", unit=32)
    return Target(store.value, store.slot)


class _Writer:
    """Ops appended to a region's own."""

    def __init__(self, ops: list[Op]) -> None:
        self.ops = ops

    def emit(self, name: str, *args: int, value: float = 0.0) -> int:
        """The number of a value, equal ones once."""
        op = Op(name, args, value)
        if op not in self.ops:
            self.ops.append(op)
        return self.ops.index(op)

    def full(self, value: int) -> int:
        """A value per row as one per row and column."""
        inside = self.emit("ge", self.emit("column"), self.emit("const"))
        return self.emit("select", inside, value, value)

    def formed(self, value: int, slot: int, form: str, columns: Size) -> list[Target]:
        """Targets of one store in an activation form."""
        base, _, block = form.partition("-h")
        if block:
            value = self.emit("rotate", value, value=float(block))
        if base == "bf16":
            return [Target(value, slot, "codes", unit=32)]
        group = int(base.removeprefix("u8g")) if base != "u8t" else 0
        if group:
            low, high = (self.emit(name, value, value=float(group)) for name in ("group_min", "group_max"))
        else:
            low, high = self.emit("rmin", value), self.emit("rmax", value)
        scale, codes = self._quantised(value, low, high)
        end = round_up(columns, 64)
        if not group:
            tails = [Target(scale, slot, "tail", end), Target(low, slot, "tail", plus(end, 4))]
        else:
            assert isinstance(columns, int)
            after = plus(end, 4 * (columns // group))
            tails = [Target(scale, slot, "group", end, group=group), Target(low, slot, "group", after, group=group)]
        return [Target(codes, slot, "codes", unit=64), *tails]

    def _quantised(self, value: int, low: int, high: int) -> tuple[int, int]:
        """Scale (1 where all are equal) and codes: (x - low) / scale, rounded to even, clamped."""
        span = self.emit("sub", high, low)
        step = self.emit("div", span, self.emit("const", value=LEVELS))
        scale = self.emit("select", self.emit("gt", high, low), step, self.emit("const", value=1.0))
        ratio = self.emit("round", self.emit("div", self.emit("sub", value, low), scale))
        zero, most = self.emit("const"), self.emit("const", value=LEVELS)
        return scale, self.emit("max", self.emit("min", ratio, most), zero)
