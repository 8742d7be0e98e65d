"""Checks that no step of a program reaches outside of its slots, for one set of sizes, before anything runs.

In: a ``Program`` that passed runtime/artifact_check.py, the values of its symbols. Out: nothing, or ``ArtifactError``
naming the first step that would. A program that AdaFlex made always passes; one from a file may say anything.

Everything an address is made of is bounded: sizes stay so small that no product overflows in generated code, divisors
are positive, the lowest and the highest element of every operand lie inside its slot, and what keeps only a window of
its rows in memory is read and written within that window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaflex.errors import ArtifactError
from adaflex.runtime.extents import MOST, Axis, Sizes, fault, own, span, split
from adaflex.runtime.layout import touched, written
from adaflex.runtime.program import (
    ITEM_BYTES,
    Argument,
    AttentionStep,
    GemmStep,
    LibraryStep,
    Operand,
    Program,
    Segment,
    Slot,
    WindowStep,
)
from adaflex.runtime.region import FOLD, LEAVES, PANEL_ROWS, REDUCE, Load, Region, Store

MOST_PACKED = 1 << 40  # items of packed keys or values of one head


def check_bounds(program: Program, values: Mapping[str, int]) -> None:
    """Raise ``ArtifactError`` where the program, run at these sizes, would leave its memory."""
    sizes = Sizes(values)
    slots = tuple(_held(sizes, program, number) for number in range(len(program.slots)))
    _check_windows(program)
    for entry in program.schedule:
        if isinstance(entry, int):
            _Library(program, sizes, slots, entry).check()
            continue
        groups = sizes.count(entry.groups, "the groups of a segment")
        for phase in entry.phases:
            for loop in phase.loops:
                rows = sizes.count(loop.rows, "the rows of a loop")
                if groups and rows % groups:
                    raise fault(f"a loop of {rows} rows is shared by {groups} groups")
                for number in loop.steps:
                    _Native(program, sizes, slots, number, rows, groups).check()


@dataclass(frozen=True)
class _Held:
    """A slot's sizes; ``bytes`` is what steps may touch of it."""

    slot: Slot
    rows: int
    row_bytes: int
    columns: int
    items: int  # of its tensor

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes


def _held(sizes: Sizes, program: Program, number: int) -> _Held:
    slot, what = program.slots[number], f"a size of slot {number}"
    rows, columns, row_bytes = (sizes.count(size, what) for size in (slot.rows, slot.columns, slot.row_bytes))
    items = sizes.product(slot.shape, what)
    if rows * row_bytes > MOST:
        raise fault(f"slot {number} would have {rows * row_bytes} bytes")
    held = rows * row_bytes
    if slot.kind == "constant":
        room = program.constants[slot.constant].size_bytes
    elif slot.kind in ("input", "output", "value"):
        room = items * ITEM_BYTES[slot.form]
    else:
        room = held
    if held > room or (slot.kind == "local" and slot.shape and items * ITEM_BYTES.get(slot.form, 1) > held):
        raise fault(f"slot {number} of {rows} rows of {row_bytes} bytes does not fit the tensor it holds")
    return _Held(slot, rows, row_bytes, columns, items)


def _check_windows(program: Program) -> None:
    """What has a window is used in one segment (a block: in one loop that writes it and walks in blocks)."""
    uses: dict[int, set[tuple[int, int, int]]] = {}
    blocks: dict[int, set[int]] = {}
    for place, entry in enumerate(program.schedule):
        if isinstance(entry, int):
            for slot in touched(program.steps[entry]):
                uses.setdefault(slot, set()).add((place, -1, -1))
            continue
        for p, phase in enumerate(entry.phases):
            for l, loop in enumerate(phase.loops):
                made = {slot for number in loop.steps for slot in written(program.steps[number])}
                for slot in {slot for number in loop.steps for slot in touched(program.steps[number])}:
                    uses.setdefault(slot, set()).add((place, p, l))
                    blocks.setdefault(slot, set()).add(loop.block if slot in made else 0)
    for number, found in uses.items():
        window = program.slots[number].window if program.slots[number].kind == "local" else "full"
        if window == "full":
            continue
        segments = {place for place, _, _ in found}
        whole = len(segments) == 1 and isinstance(program.schedule[min(segments)], Segment)
        if not whole or (window == "block" and (len(found) > 1 or 0 in blocks[number])):
            raise fault(f"slot {number} keeps only a {window} of its rows and is used outside of it")


def row_bytes_of(form: str, columns: int, where: str, padded: bool = False) -> int:
    """Bytes of a row of ``columns`` in a form, as kernels write it (``padded``: as products read it)."""
    base, _, turn = form.partition("-h")
    group = int(base[3:]) if base.startswith("u8g") else 1
    if columns % max(group, int(turn or 1)):
        raise fault(f"{where} has rows of {columns} columns in the form '{form}', which does not divide them")
    if base == "u8t":
        return _up(columns, 64) + 8
    if base.startswith("u8g"):
        return _up(columns, 64) + columns // group * 8
    if base == "bf16" and (turn or padded):
        return _up(columns, 32) * 2
    return columns * ITEM_BYTES[form]


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def per_row(region: Region) -> list[bool]:
    """Which values of a region are one number for the whole row."""
    found: list[bool] = []
    for op in region.ops:
        if op.name == "load":
            load = region.loads[op.args[0]]
            found.append(load.column == 0 and load.inner == 0)
        elif op.name in LEAVES:
            found.append(op.name in ("const", "width", "depth"))
        else:
            found.append(op.name in REDUCE or (op.name not in FOLD and all(found[value] for value in op.args)))
    return found


class _Library:
    """One library step: its views lie inside their slots. What its op returns is checked when it has."""

    def __init__(self, program: Program, sizes: Sizes, slots: Sequence[_Held], number: int) -> None:
        self.step, self.sizes, self.slots, self.where = program.steps[number], sizes, slots, f"step {number}"

    def check(self) -> None:
        """Raise where an argument leaves its slot."""
        assert isinstance(self.step, LibraryStep)
        stack = [*self.step.args, *(value for _, value in self.step.kwargs)]
        while stack:
            argument = stack.pop()
            stack.extend(argument.items)
            if argument.kind == "size":
                self.sizes.value(argument.size, f"a number of {self.where}")
            if argument.kind == "slot" and argument.view is not None:
                self._view(argument, argument.view)

    def _view(self, argument: Argument, view: Operand) -> None:
        what = f"a view of {self.where}"
        shape = [self.sizes.count(size, what) for size in argument.shape]
        strides = [self.sizes.count(stride, what) for stride in view.strides]
        low, high = span(list(zip(shape, strides, strict=True)), self.sizes.count(view.offset, what))
        if 0 not in shape and not 0 <= low <= high < self.slots[view.slot].items:
            raise fault(f"{what} reaches element {high} of slot {view.slot}, which has {self.slots[view.slot].items}")


class _Native:
    """One native step of a loop over ``rows`` rows of ``groups`` groups."""

    def __init__(
        self, program: Program, sizes: Sizes, slots: Sequence[_Held], number: int, rows: int, groups: int
    ) -> None:
        self.step, self.sizes, self.slots = program.steps[number], sizes, slots
        self.rows, self.groups, self.where = rows, max(groups, 1), f"step {number}"

    def check(self) -> None:
        """Raise where the step would leave a slot or a window."""
        step = self.step
        if isinstance(step, AttentionStep):
            self._attention(step)
            return
        if isinstance(step, WindowStep):
            self._windows(step)
            return
        assert not isinstance(step, LibraryStep)
        dims = [self.sizes.count(size, f"the rows of {self.where}") for size in step.region.dims]
        self._same_rows(self.sizes.product(step.region.dims, f"the rows of {self.where}"))
        columns = self.sizes.count(step.region.columns, f"the columns of {self.where}")
        self.sizes.count(step.region.inner, f"the inner axis of {self.where}")
        if isinstance(step, GemmStep):
            if columns != step.n:
                raise fault(f"{self.where} makes {step.n} columns and stores {columns}")
            self._rows_of(step.a, row_bytes_of(self.slots[step.a].slot.form, step.k, self.where, padded=True), "reads")
        for store in step.region.stores:
            self._store(step.region, store, columns)
        if self.rows:
            for load in step.region.loads:
                self._load(step.region, load, dims, columns)

    def _same_rows(self, rows: int) -> None:
        if rows != self.rows:
            raise fault(f"{self.where} has {rows} rows in a loop over {self.rows}")

    def _rows_of(self, slot: int, row_bytes: int, verb: str) -> None:
        """Row r of the step is row r of the slot."""
        held = self.slots[slot]
        if held.rows != self.rows or (self.rows and row_bytes > held.row_bytes):
            raise fault(
                f"{self.where} {verb} {self.rows} rows of {row_bytes} bytes of slot {slot}, "
                f"which has {held.rows} of {held.row_bytes}"
            )

    def _store(self, region: Region, store: Store, columns: int) -> None:
        slot, held = store.slot, self.slots[store.slot]
        columns = 1 if held.slot.columns == 1 and per_row(region)[store.value] else columns
        if held.columns != columns:
            raise fault(f"{self.where} writes {columns} columns to slot {slot}, which has {held.columns}")
        self._rows_of(slot, row_bytes_of(held.slot.form, columns, self.where), "writes")

    def _load(self, region: Region, load: Load, dims: Sequence[int], columns: int) -> None:
        what = f"an operand of {self.where}"
        value = self.sizes.value
        lead = [(size, value(stride, what)) for size, stride in zip(dims, load.strides, strict=True)]
        inner = self.sizes.count(region.inner, what)
        rest = [(columns, value(load.column, what)), (inner, value(load.inner, what))]
        pitch, choices = value(load.pitch, what), max(self.sizes.count(load.choices, what), 1)
        if any(stride and not size for size, stride in rest):
            return
        rest = [(max(size, 1), stride) for size, stride in rest]
        if load.panel:  # whole words of columns, whole panels of rows: what is packed is padded to both
            words, panels = -(-max(columns, 1) // load.panel), -(-choices // PANEL_ROWS)
            rest = [(words, PANEL_ROWS * load.panel), (panels, pitch), (PANEL_ROWS * load.panel, 1)]
        elif load.gather >= 0:
            rest.append((choices, pitch))
        if load.gather >= 0:
            self._index(region.loads[load.gather], dims)
        self._inside(load.slot, load.form, lead, rest, value(load.offset, what), load.gather >= 0)

    def _index(self, index: Load, dims: Sequence[int]) -> None:
        """The row numbers that a gather reads: one per row, in the slot's own form."""
        what = f"the row numbers of {self.where}"
        lead = [(size, self.sizes.value(stride, what)) for size, stride in zip(dims, index.strides, strict=True)]
        self._inside(index.slot, "", lead, [], self.sizes.value(index.offset, what))

    def _inside(
        self,
        slot: int,
        form: str,
        lead: Sequence[Axis],
        rest: Sequence[Axis],
        offset: int,
        picked: bool = False,
    ) -> None:
        """The walk stays inside the slot and, where that keeps only a window, inside each group's or row's part."""
        held = self.slots[slot]
        item = ITEM_BYTES[form or held.slot.form]
        low, high = span([*lead, *rest], offset)
        if low < 0 or (high + 1) * item > held.bytes or held.bytes % item:
            raise fault(f"{self.where} reaches elements {low} to {high} of slot {slot}, which has {held.bytes // item}")
        window = held.slot.window if held.slot.kind == "local" else "full"
        if window == "full":
            return
        groups = self.rows if window == "block" else self.groups
        parts = None if picked or held.rows % groups or held.row_bytes % item else split(lead, groups)
        if parts is None or not own(*parts, rest, offset, held.rows // groups * held.row_bytes // item):
            raise fault(f"{self.where} reads slot {slot} beyond the {window} of rows that is kept of it")

    def _attention(self, step: AttentionStep) -> None:
        what = f"a size of {self.where}"
        batch, heads, kv_heads, queries, keys = (
            self.sizes.count(size, what) for size in (step.batch, step.heads, step.kv_heads, step.queries, step.keys)
        )
        self._same_rows(self.sizes.product((step.batch, step.queries), what))
        if not kv_heads or heads % kv_heads:
            raise fault(f"{self.where} shares {kv_heads} heads of keys between {heads} heads")
        if keys * step.width > MOST_PACKED:
            raise fault(f"{self.where} would pack {keys} keys of {step.width}")
        if not self.rows or not heads:
            return
        for given in (step.q, step.out):
            self._operand(given, (batch, heads, queries, step.width), by_query=True)
        if keys:
            for given in (step.k, step.v):
                self._operand(given, (batch, kv_heads, keys, step.width), by_query=False)
        if step.mask is not None and keys:
            self._operand(step.mask, (batch, heads, queries, keys), by_query=True, mask=True)

    def _operand(self, given: Operand, shape: tuple[int, ...], by_query: bool, mask: bool = False) -> None:
        strides = [self.sizes.value(stride, f"a stride of {self.where}") for stride in given.strides]
        if not mask and strides[3] != 1 and shape[3] > 1:
            raise fault(f"{self.where} takes operands whose last axis has stride {strides[3]}")
        axes = list(zip(shape, strides, strict=True))
        lead = [axes[0], axes[2]] if by_query else [axes[0]]
        rest = [axes[1], axes[3]] if by_query else [axes[1], axes[2], axes[3]]
        self._inside(given.slot, "", lead, rest, self.sizes.value(given.offset, f"an offset of {self.where}"))

    def _windows(self, step: WindowStep) -> None:
        what = f"a size of {self.where}"
        batch, height, width = (self.sizes.count(size, what) for size in (step.batch, step.height, step.width))
        counts = [step.windows(axis, size) for axis, size in ((0, height), (1, width))]
        if min(*counts, height, width) < 1:
            raise ArtifactError(
                f"a window of {self.where} is larger than its image of {height} times {width} with its borders; "
                "call it with larger images"
            )
        self._same_rows(self.sizes.product((batch, *counts), f"the rows of {self.where}"))
        held = self.slots[step.out]
        if held.columns != step.columns or (self.rows and held.row_bytes != step.columns * ITEM_BYTES["f32"]):
            raise fault(f"{self.where} writes {step.columns} columns to slot {step.out}, which has {held.columns}")
        self._rows_of(step.out, step.columns * ITEM_BYTES["f32"], "writes")
        if self.rows:
            self._images(step, (batch, height, width, step.channels))

    def _images(self, step: WindowStep, shape: tuple[int, ...]) -> None:
        strides = [self.sizes.value(stride, f"a stride of {self.where}") for stride in step.x.strides]
        axes = list(zip(shape, strides, strict=True))
        if 0 not in shape:
            self._inside(
                step.x.slot, "", axes[:1], axes[1:], self.sizes.value(step.x.offset, f"an offset of {self.where}")
            )
