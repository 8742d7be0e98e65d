"""Prints a region as C++: the body of a row function or of a template's epilogue.

In: a ``Region``, the slots it touches. Out: lines of C++ over the kernel library's vector type.

A row is walked in stages, one loop over the columns each: a reduction ends a stage, and what needs its result stands
in a later one. A value of an earlier stage is loaded again if it was a load, else it waits in a row of scratch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaflex.codegen.sizes import known
from adaflex.runtime.program import Slot
from adaflex.runtime.region import FOLD, LEAVES, REDUCE, Load, Op, Region, Size

C_TYPE = {
    "f32": "float",
    "bf16": "af::bf16",
    "f16": "af::fp16",
    "i64": "int64_t",
    "i32": "int32_t",
    "i8": "int8_t",
    "u8": "uint8_t",
    "bool": "bool",
}
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")
NEUTRAL = {"sum": "0.0f", "rmax": "-__builtin_inff()", "rmin": "__builtin_inff()"}
FINISH = {"sum": "hsum", "rmax": "hmax", "rmin": "hmin"}
FOLD_START = {"fold_sum": "0.0f", "fold_max": "-__builtin_inff()", "fold_min": "__builtin_inff()"}


def size_text(size: Size, symbols: Sequence[str]) -> str:
    """A size as a C++ expression over the array ``s`` of symbol values."""
    number = known(size)
    if number is not None:
        return str(number)
    if isinstance(size, str):
        return f"s[{symbols.index(size)}]"
    assert isinstance(size, tuple)
    operator, *parts = size
    texts = [size_text(part, symbols) for part in parts]
    if operator in ("+", "*", "//", "%"):
        return "(" + f" {operator[0]} ".join(texts) + ")"
    first = texts[0]
    for text in texts[1:]:
        first = f"af::size_{operator}({first}, {text})"
    return first


def literal(value: float) -> str:
    """A float as C++ text that reads back to the same fp32."""
    if value != value:
        return '__builtin_nanf("")'
    if value in (float("inf"), float("-inf")):
        return "-__builtin_inff()" if value < 0 else "__builtin_inff()"
    text = repr(float(value))
    return text + ("f" if "." in text or "e" in text else ".0f")


@dataclass(frozen=True)
class Shape:
    """Which values of a region are one per row, and the stage each stands in.

    ``spread``: sums of squared distances from a mean, each with the sum that the mean is of. One pass over the columns
    serves both, so such a sum is no reduction of its own: it stands in the stage of its mean.
    """

    per_row: tuple[bool, ...]
    stage: tuple[int, ...]
    spread: Mapping[int, int]

    def reduces(self, region: Region, number: int) -> bool:
        """Is the value a reduction that needs a pass of its own?"""
        return region.ops[number].name in REDUCE and number not in self.spread


def mean_of(region: Region, number: int) -> tuple[int, int] | None:
    """(sum, mean) where value ``number`` is the sum of (x - mean of x) squared."""
    ops = region.ops
    if ops[number].name != "sum":
        return None
    square = ops[ops[number].args[0]]
    if square.name != "square" and not (square.name == "mul" and square.args[0] == square.args[1]):
        return None
    centred = ops[square.args[0]]
    if centred.name != "sub":
        return None
    x, mean = centred.args
    total = ops[mean].args[0] if ops[mean].name == "div" and ops[ops[mean].args[1]].name == "width" else -1
    return (total, mean) if total >= 0 and ops[total] == Op("sum", (x,)) else None


def analyse(region: Region, one_pass: bool = False) -> Shape:
    """Row-wise values and stages of a region's ops; ``one_pass``: squared distances are met with the sum they need."""
    per_row: list[bool] = []
    stage: list[int] = []
    spread: dict[int, int] = {}
    for number, op in enumerate(region.ops):
        if op.name == "load":
            load = region.loads[op.args[0]]
            gathered = load.gather >= 0 and load.column != 0
            per_row.append(load.column == 0 and not gathered and load.inner == 0)
            stage.append(0)
            continue
        if op.name in LEAVES:
            per_row.append(op.name in ("const", "width", "depth"))
            stage.append(0)
            continue
        found = mean_of(region, number) if one_pass else None
        if found is not None:
            spread[number] = found[0]
            per_row.append(True)
            stage.append(stage[found[1]])
            continue
        after = [stage[a] + (region.ops[a].name in REDUCE and a not in spread) for a in op.args]
        stage.append(max(after, default=0))
        per_row.append(op.name in REDUCE or (op.name not in FOLD and all(per_row[a] for a in op.args)))
    return Shape(tuple(per_row), tuple(stage), spread)


class Body:
    """Prints one region's values; ``row`` is the C++ name of the absolute row number."""

    def __init__(self, region: Region, slots: Sequence[Slot], symbols: Sequence[str], row: str = "r") -> None:
        self.region, self.slots, self.symbols, self.row = region, slots, symbols, row
        self.shape = analyse(region, one_pass=True)
        self.columns = size_text(region.columns, symbols)

    def size(self, size: Size) -> str:
        """Text of a size."""
        return size_text(size, self.symbols)

    def address(self, load: Load) -> str:
        """Offset in elements of a load's row (gathered rows and inner index excluded)."""
        parts = [self.size(load.offset)] if load.offset != 0 else []
        if len(self.region.dims) == 1:
            if load.strides[0] != 0:
                parts.append(f"{self.row} * {self.size(load.strides[0])}")
        else:
            parts += [f"i{k} * {self.size(stride)}" for k, stride in enumerate(load.strides) if stride != 0]
        return " + ".join(parts) or "0"

    def indices(self) -> list[str]:
        """Declarations of the index along each of the region's leading axes, where rows are not one axis."""
        dims = self.region.dims
        if len(dims) == 1:
            return []
        lines, rest = [], self.row
        for k in range(len(dims) - 1, 0, -1):
            lines.append(f"const long i{k} = {rest} % {self.size(dims[k])};")
            lines.append(f"const long q{k} = {rest} / {self.size(dims[k])};")
            rest = f"q{k}"
        return [*lines, f"const long i0 = {rest};"]

    def pointers(self) -> list[str]:
        """Declarations of each load's row pointer (after ``indices``), gathers resolved."""
        lines = []
        for k, load in enumerate(self.region.loads):
            kind = C_TYPE[load.form or self.slots[load.slot].form]
            address = self.address(load)
            if load.gather >= 0:
                index = self.region.loads[load.gather]
                word = C_TYPE[self.slots[index.slot].form]
                number = f"long(((const {word}*)t.p[{index.slot}])[{self.address(index)}])"
                picked = number if load.choices == 0 else f"af::picked(c, {number}, {self.size(load.choices)})"
                pitch = self.size(load.pitch)
                address += (
                    f" + af::panel_row({picked}, {pitch}, {load.panel})" if load.panel else f" + {picked} * {pitch}"
                )
            lines.append(f"const {kind}* const x{k} = (const {kind}*)t.p[{load.slot}] + {address};")
        return lines

    def load_text(self, number: int, column: str, count: str) -> str:
        """The vector of load ``number`` at ``column``."""
        load = self.region.loads[number]
        base = f"x{number}" + (f" + j * {self.size(load.inner)}" if load.inner != 0 else "")
        if load.column == 0:
            return f"af::ld1({base})"
        if load.panel:
            return f"af::ld_panel<{load.panel}>({base}, {column}, {count})"
        if load.column == 1:
            return f"af::ld({base} + {column}, {count})"
        return f"af::ld_strided({base} + {column} * {self.size(load.column)}, {self.size(load.column)}, {count})"

    def op_text(self, number: int, column: str, count: str) -> str:
        """The expression of value ``number`` (no reduction) in terms of the values v0, v1, ..."""
        op: Op = self.region.ops[number]
        v = [f"v{a}" for a in op.args]
        name = op.name
        if number in self.shape.spread:
            _, mean = mean_of(self.region, number) or (0, 0)
            return f"af::spreads(a{self.shape.spread[number]}, rows, C, v{mean})"
        if name == "load":
            return self.load_text(op.args[0], column, count)
        if name == "const":
            return f"af::set1({literal(op.value)})"
        if name in ("width", "depth"):
            return f"af::set1(float({self.columns if name == 'width' else self.size(self.region.inner)}))"
        if name == "column":
            return f"af::iota({column})"
        if name in INFIX:
            return f"({v[0]} {INFIX[name]} {v[1]})"
        if name in COMPARE:
            return f"af::one_if(af::{name}({v[0]}, {v[1]}))"
        if name == "select":
            return f"af::select(af::truth({v[0]}), {v[1]}, {v[2]})"
        if name in ("and", "or"):
            return f"af::one_if(af::{name}_(af::truth({v[0]}), af::truth({v[1]})))"
        if name == "not":
            return f"af::one_if(af::not_(af::truth({v[0]})))"
        if name == "neg":
            return f"(-{v[0]})"
        if name == "square":
            return f"({v[0]} * {v[0]})"
        if name == "bf16":
            return f"af::round_bf16({v[0]})"
        return f"af::{name}({', '.join(v)})"
