"""The region: a typed SSA body over rows and columns, the one form that every code printer reads.

In: made by codegen. Out: read by the C++ printer, the Triton printer and the numpy evaluator. Pure data.

A region iterates over ``dims`` (their product is the rows) and ``columns``. A value is one number for each row and
column, or for each row when it comes from a reduction or a load without column stride. Values are numbered by their
place in ``ops``; arithmetic is fp32 whatever the loads hold (bf16 and fp16 are widened, int and bool converted).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

# A size known when the program runs: an int, a symbol's name, or (operator, operand, operand, ...).
Size: TypeAlias = "int | str | tuple[Any, ...]"

OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "cdiv": lambda a, b: -(-a // b),
    "min": min,
    "max": max,
}

UNARY = (
    "neg abs sqrt rsqrt recip exp exp2 expm1 log log2 log1p tanh erf sigmoid silu gelu gelu_tanh relu sin cos "
    "floor ceil round trunc sign not square bf16"
).split()
BINARY = "add sub mul div min max pow mod floordiv lt le gt ge eq ne and or".split()
PANEL_ROWS = 32  # of a panel
PANELS = (0, 1, 2, 4)  # columns of a row that lie side by side; 0: rows lie one after the other
TERNARY = ("select",)  # condition, then, else
REDUCE = ("sum", "rmax", "rmin")  # over the columns: one value per row
FOLD = ("fold_sum", "fold_max", "fold_min")  # over the inner axis: one value per row and column
# acc: the template's result; column: the column's number; width: how many columns; depth: length of the inner axis
LEAVES = ("load", "const", "acc", "column", "width", "depth")


@dataclass(frozen=True)
class Load:
    """One operand: element address = slot + offset + sum(index_i * stride_i) + inner * stride + column * stride."""

    slot: int
    strides: tuple[Size, ...]  # elements, one per entry of the region's ``dims``
    column: Size  # elements; 0: the same for all columns
    offset: Size = 0  # elements
    inner: Size = 0  # elements along the region's inner axis
    gather: int = -1  # number of the load whose value picks a row of this slot; the address grows by value * pitch
    pitch: Size = 0  # elements between rows that can be picked
    choices: Size = 0  # how many rows can be picked, a number outside is refused; 0: not checked
    form: str = ""  # read the slot's bytes as this dtype, elements counted in it; "": as the slot says
    # Where rows are picked from the panels that products read: how many columns of a row lie side by side. Row r begins
    # at (r // 32) * pitch + (r % 32) * panel, its column c is at (c // panel) * 32 * panel + c % panel from there.
    panel: int = 0


@dataclass(frozen=True)
class Op:
    """One SSA operation; ``args`` are numbers of earlier values (of a load for "load")."""

    name: str
    args: tuple[int, ...] = ()
    value: float = 0.0  # of "const"


@dataclass(frozen=True)
class Store:
    """Value ``value`` goes to ``slot`` in the slot's own form, at the region's row, contiguous over columns."""

    value: int
    slot: int


@dataclass(frozen=True)
class Region:
    """See the module's text. ``inner`` > 1 only with fold ops, and then no column reductions."""

    dims: tuple[Size, ...]
    columns: Size
    loads: tuple[Load, ...]
    ops: tuple[Op, ...]
    stores: tuple[Store, ...]
    inner: Size = 1


def evaluate(size: Size, symbols: Mapping[str, int]) -> int:
    """The value of a size; KeyError for an unknown symbol or operator."""
    if isinstance(size, int):
        return size
    if isinstance(size, str):
        return symbols[size]
    return reduce(OPERATORS[size[0]], (evaluate(part, symbols) for part in size[1:]))


RELATIONS: Mapping[str, Callable[[int, int], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
}


def times(left: Size, right: Size) -> Size:
    """left * right, folded where both are known."""
    if isinstance(left, int) and isinstance(right, int):
        return left * right
    if left == 0 or right == 0:
        return 0
    if left == 1:
        return right
    if right == 1:
        return left
    return ("*", left, right)


def plus(left: Size, right: Size) -> Size:
    """left + right, folded where both are known."""
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    if left == 0:
        return right
    if right == 0:
        return left
    return ("+", left, right)


def product(sizes: tuple[Size, ...]) -> Size:
    """The product of sizes; 1 for none."""
    whole: Size = 1
    for size in sizes:
        whole = times(whole, size)
    return whole


def round_up(size: Size, unit: int) -> Size:
    """``size`` rounded up to a multiple of ``unit``."""
    if isinstance(size, int):
        return -(-size // unit) * unit
    return ("*", ("cdiv", size, unit), unit)
