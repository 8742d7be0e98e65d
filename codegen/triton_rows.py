"""Prints row steps as Triton kernels: one text for rows that fit a block of columns, one for rows walked in blocks.

In: a region without template, the slots it touches. Out: ``Kernel``: the text and what its arguments stand for.

"flat": no column reduction; the grid runs over blocks of rows and of columns. "block": a program holds whole rows in
registers, every value once. "loop": a program walks its rows once per stage; a reduction ends a stage, and what a
later stage needs of an earlier one is computed again from the loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaflex.codegen.cpp_waiting import closure
from adaflex.codegen.sizes import known
from adaflex.codegen.triton_forms import Target, legalise
from adaflex.codegen.triton_region import Body
from adaflex.runtime.program import Slot
from adaflex.runtime.region import FOLD, REDUCE, Region, Size, product, round_up

MOST_BLOCK = 8192  # columns that one program holds in registers
TILE = 2048  # elements of a program's tile: 16 for each thread of 4 warps
NEUTRAL = {"sum": "0.0", "rmax": 'float("-inf")', "rmin": 'float("inf")'}
REDUCER = {"sum": "af.row_sum", "rmax": "af.row_max", "rmin": "af.row_min"}
STEP = {
    "sum": "{a} + {v}",
    "rmax": "af.maximum({a}, {v})",
    "rmin": "af.minimum({a}, {v})",
    "fold_sum": "{a} + {v}",
    "fold_max": "af.maximum({a}, {v})",
    "fold_min": "af.minimum({a}, {v})",
}
START = {**NEUTRAL, "fold_sum": "0.0", "fold_max": 'float("-inf")', "fold_min": 'float("inf")'}


@dataclass(frozen=True)
class Kernel:
    """A printed kernel without its name. Arguments: pointers to ``slots``, values of ``symbols``, BR, BC."""

    arguments: tuple[str, ...]
    lines: tuple[str, ...]  # the body, indented by one level
    slots: tuple[int, ...]
    symbols: tuple[str, ...]
    mode: str  # "flat", "block" or "loop"
    rows: Size
    columns: Size  # what the tiles must cover, padding included
    unit: int  # columns of a tile are a multiple of this

    def text(self, name: str) -> str:
        """The kernel's source under a name."""
        arguments = ", ".join((*self.arguments, "BR: tl.constexpr", "BC: tl.constexpr"))
        return "\n".join(["@triton.jit", f"def {name}({arguments}):", *("    " + line for line in self.lines)]) + "\n"


@dataclass(frozen=True)
class Tile:
    """How a row kernel is launched: rows and columns of a tile, programs along both, warps."""

    rows: int
    columns: int
    grid: tuple[int, int]
    warps: int


def power_of_two(size: int) -> int:
    """The smallest power of two no less than ``size``."""
    return 1 << max(size - 1, 0).bit_length()


def tile(kernel: Kernel, rows: int, columns: int, most: int = MOST_BLOCK) -> Tile:
    """The tile for one set of sizes; ``columns`` is the value of ``kernel.columns``, ``most`` limits a block."""
    width = max(power_of_two(columns), kernel.unit)
    if kernel.mode != "block":
        limit = max(min(most, 1024 if kernel.mode == "flat" else 4096), kernel.unit)
        width = min(width, limit)
        if kernel.mode == "flat" and columns % width and columns % 128 == 0:
            width = 128  # no idle lanes at the end of a row
    height = max(1, min(TILE // width, power_of_two(rows)))
    warps = min(max(height * width // 512, 1), 16) if kernel.mode == "flat" else min(max(height * width // 512, 4), 16)
    across = -(-columns // width) if kernel.mode == "flat" else 1
    return Tile(height, width, (-(-rows // height), across), power_of_two(warps))


def print_rows(region: Region, slots: Sequence[Slot]) -> tuple[Kernel, ...]:
    """The kernels of a row step: one, or ("block", "loop") where the number of columns is known at run time only."""
    legal, targets = legalise(region, slots)
    if not any(op.name in REDUCE for op in legal.ops):
        return (_Printer(legal, slots, targets, "flat").kernel(),)
    width = known(legal.columns)
    modes = ("block", "loop") if width is None else ("block",) if width <= MOST_BLOCK else ("loop",)
    return tuple(_Printer(legal, slots, targets, mode).kernel() for mode in modes)


class _Printer:
    """One kernel in the making."""

    def __init__(self, region: Region, slots: Sequence[Slot], targets: Sequence[Target], mode: str) -> None:
        self.region, self.targets, self.mode = region, targets, mode
        self.body = Body(region, slots)
        self.shape = self.body.shape
        self.padding = max((target.unit for target in targets), default=1)

    def kernel(self) -> Kernel:
        """The kernel's text and arguments."""
        region, body = self.region, self.body
        lines = [
            "rows = tl.program_id(0) * BR + tl.arange(0, BR)[:, None]",
            f"rm = rows < {body.size(product(region.dims))}",
            *body.indices(),
            *body.bases(),
        ]
        if self.mode == "loop":
            lines += self._loops()
        else:
            first = "tl.program_id(1) * BC + " if self.mode == "flat" else ""
            lines += self._columns(first)
            lines += self._fold() if known(region.inner) != 1 else self._straight()
        units = [int(op.value) for op in region.ops if op.name in ("rotate", "group_min", "group_max")]
        return Kernel(
            arguments=tuple(body.arguments()),
            lines=tuple(lines),
            slots=tuple(body.slot_order),
            symbols=tuple(body.symbol_order),
            mode=self.mode,
            rows=product(region.dims),
            columns=round_up(region.columns, self.padding) if self.padding > 1 else region.columns,
            unit=max([self.padding, *units]),
        )

    def _columns(self, first: str) -> list[str]:
        return [f"cols = {first}tl.arange(0, BC)[None, :]", f"cm = cols < {self.body.size(self.region.columns)}"]

    def _straight(self) -> list[str]:
        """Every value once, in order; stores at the end."""
        lines = []
        for number in closure(self.region, [target.value for target in self.targets]):
            op = self.region.ops[number]
            if op.name in REDUCE:
                text = f"{REDUCER[op.name]}(tl.where(cm, v{op.args[0]}, {NEUTRAL[op.name]}))"
            else:
                text = self.body.value(number)
            lines.append(f"v{number} = {text}")
        return lines + [self.body.store(target) for target in self.targets]

    def _fold(self) -> list[str]:
        """What is folded, along the inner axis; then what follows."""
        ops, region = self.region.ops, self.region
        folds = [n for n, op in enumerate(ops) if op.name in FOLD]
        before = closure(region, [ops[n].args[0] for n in folds])
        values = [target.value for target in self.targets]
        after = [n for n in closure(region, values, folds) if n not in folds]
        lines = [f"a{n} = tl.full([BR, BC], {START[ops[n].name]}, tl.float32)" for n in folds]
        lines += [f"for j0 in range(0, {self.body.size(region.inner)}):", "    j = j0 + tl.full((), 0, tl.int64)"]
        lines += [f"    v{n} = {self.body.value(n)}" for n in before]
        lines += [f"    a{n} = {STEP[ops[n].name].format(a=f'a{n}', v=f'v{ops[n].args[0]}')}" for n in folds]
        lines += [f"v{n} = a{n}" for n in folds]
        lines += [f"v{n} = {self.body.value(n)}" for n in after]
        return lines + [self.body.store(target) for target in self.targets]

    # ---- rows longer than a block ----
    def _loops(self) -> list[str]:
        lines: list[str] = []
        last = max(self.shape.stage, default=0) + 1
        for stage in range(last + 1):
            lines += self._row_values(stage)
            lines += self._stage(stage)
        return lines + [self.body.store(t) for t in self.targets if self._once(t)]

    def _once(self, target: Target) -> bool:
        """Is the target written once per row, rather than block by block?"""
        return target.kind in ("row", "tail")

    def _row_values(self, stage: int) -> list[str]:
        """Values of one number per row that stand before this stage's loop."""
        lines = []
        for number, op in enumerate(self.region.ops):
            if op.name in REDUCE and self.shape.stage[number] + 1 == stage:
                lines.append(f"v{number} = {REDUCER[op.name]}(a{number})")
            elif self.shape.per_row[number] and op.name not in REDUCE and self.shape.stage[number] == stage:
                lines.append(f"v{number} = {self.body.value(number)}")
        return lines

    def _stage(self, stage: int) -> list[str]:
        ops, shape = self.region.ops, self.shape
        reduced = [n for n, op in enumerate(ops) if op.name in REDUCE and shape.stage[n] == stage]
        stored = [t for t in self.targets if not self._once(t) and self._stage_of(t) == stage]
        wanted = [ops[n].args[0] for n in reduced] + [t.value for t in stored]
        if not wanted:
            return []
        ready = [n for n, op in enumerate(ops) if shape.per_row[n]]
        inside = [n for n in closure(self.region, wanted, ready) if n not in ready]
        lines = [f"a{n} = tl.full([BR, BC], {NEUTRAL[ops[n].name]}, tl.float32)" for n in reduced]
        limit = self.body.size(round_up(self.region.columns, self.padding) if stored else self.region.columns)
        block = [*self._columns("c0 + "), *(f"v{n} = {self.body.value(n)}" for n in inside)]
        for n in reduced:
            value = f"tl.where(cm, v{ops[n].args[0]}, {NEUTRAL[ops[n].name]})"
            block.append(f"a{n} = {STEP[ops[n].name].format(a=f'a{n}', v=value)}")
        block += [self.body.store(target) for target in stored]
        return [*lines, f"for c0 in range(0, {limit}, BC):", *("    " + line for line in block)]

    def _stage_of(self, target: Target) -> int:
        """The stage in which a target's value is at hand: after a reduction, where it is one."""
        value = target.value
        return self.shape.stage[value] + (self.region.ops[value].name in REDUCE)
