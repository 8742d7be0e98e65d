"""Sizes as plain data: what a tensor's symbolic sizes are, in a form that needs neither torch nor sympy to evaluate.

In: nodes with fake tensors in ``meta["val"]``. Out: ``Size`` values: an int, a symbol's name, or an operator tuple.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any, TypeAlias

import torch

from adaflex.errors import CaptureError

Size: TypeAlias = "int | str | tuple[Any, ...]"
"""``7``; ``"s0"``; ``("+", a, b, ...)``, ``("*", a, b, ...)``, ``("//", a, b)``, ``("%", a, b)``, ``("min", ...)``,
``("max", ...)``, ``("cdiv", a, b)``: nested, JSON-ready (lists are read as tuples), evaluated over integers."""

OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "cdiv": lambda a, b: -(-a // b),
    "min": min,
    "max": max,
}


Guard: TypeAlias = tuple[str, Size, Size]
"""What the sizes of a call must satisfy: ``("<=", "s1", 8)``, with "==", "!=", "<=" or "<" between two sizes."""


class SizeError(CaptureError, ValueError):
    """A size that no Size describes."""


RELATIONS: Mapping[str, Callable[[int, int], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
}
_RELATIONS = {
    "Equality": ("==", False),
    "Unequality": ("!=", False),
    "LessThan": ("<=", False),
    "StrictLessThan": ("<", False),
    "GreaterThan": ("<=", True),
    "StrictGreaterThan": ("<", True),
}


def guard_of(expression: Any, names: Mapping[str, str]) -> Guard | None:
    """A sympy relation as a Guard; None where it is another expression, or only tells a size of 0 or 1 apart.

    Tracing takes sizes for neither 0 nor 1 throughout, and the graph nevertheless serves those wherever it can.
    """
    if type(expression).__name__ not in _RELATIONS:
        return None
    word, turned = _RELATIONS[type(expression).__name__]
    try:
        left, right = (_from_expression(each, names) for each in expression.args)
    except ValueError:
        return None
    if word == "!=":
        left, right = _cancelled(left, right)
        if {left, right} & {0, 1}:
            return None
    if turned:
        left, right = right, left
    return _more_than_one(left, right) if word == "<" else (word, left, right)


def _more_than_one(left: Size, right: Size) -> Guard | None:
    """a < b * a as 0 < a, where b is made of symbols alone: that b is more than 1 only tells sizes of 0 and 1 apart."""
    one, many = _cancelled(left, right)
    if one != 1 or not all(isinstance(each, str) for each in _factors(many)):
        return ("<", left, right)
    return None if _bounds(left)[0] > 0 else ("<", 0, left)


def _factors(size: Size) -> list[Size]:
    return list(size[1:]) if isinstance(size, tuple) and size[0] == "*" else [size]


def _cancelled(left: Size, right: Size) -> tuple[Size, Size]:
    """Two sizes without the factors they share: s0 * s1 and s0 differ where s1 is not 1, or s0 is 0."""
    ours, theirs = _factors(left), _factors(right)
    for factor in tuple(ours):
        if factor in theirs:
            ours.remove(factor)
            theirs.remove(factor)
    first, second = (1 if not each else each[0] if len(each) == 1 else ("*", *each) for each in (ours, theirs))
    return first, second


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    """The size as an int, given every symbol's value; KeyError names a missing symbol, ZeroDivisionError as Python."""
    if isinstance(size, bool):
        return int(size)
    if isinstance(size, int):
        return size
    if isinstance(size, str):
        return values[size]
    return reduce(OPERATORS[size[0]], (evaluate(part, values) for part in size[1:]))


def symbols_in(size: Size) -> set[str]:
    """The names of the symbols that the size depends on; empty for a number."""
    if isinstance(size, int):
        return set()
    if isinstance(size, str):
        return {size}
    return set().union(*(symbols_in(part) for part in size[1:]))


def size_of(value: object, names: Mapping[str, str] | None = None) -> Size:
    """An int or ``torch.SymInt`` as a Size; ``names`` renames torch's symbols. SizeError for unknown operators."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, torch.SymInt):
        size = _from_expression(value.node.expr, names or {})
        low, high = _bounds(size)
        return int(low) if low == high else size  # 1 - max(0, 1 - s0) is 1: a size that is spread, not walked
    raise SizeError(f"a size must be an int or a SymInt, not {type(value).__name__}: make that size static")


def _bounds(size: Size) -> tuple[float, float]:
    """The least and the greatest value, for symbols of at least 1."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, str):
        return 1, math.inf
    operator, *parts = size
    found = [_bounds(part) for part in parts]
    if operator in ("+", "min", "max"):
        join: Any = sum if operator == "+" else min if operator == "min" else max
        return join(low for low, _ in found), join(high for _, high in found)
    if operator == "*":
        return reduce(_product, found)
    (low, high), (least, most) = found
    if not 0 < least == most < math.inf:
        return -math.inf, math.inf
    if operator == "%":
        return 0, most - 1
    ends = (each if math.isinf(each) else OPERATORS[operator](int(each), int(most)) for each in (low, high))
    return next(ends), next(ends)


def _product(left: tuple[float, float], right: tuple[float, float]) -> tuple[float, float]:
    corners = [0.0 if 0 in (a, b) else a * b for a in left for b in right]
    return min(corners), max(corners)


_NAMES = {
    "Add": "+",
    "Mul": "*",
    "FloorDiv": "//",
    "CleanDiv": "//",
    "IntTrueDiv": "//",
    "PythonMod": "%",
    "Mod": "%",
    "CeilDiv": "cdiv",
    "Max": "max",
    "Min": "min",
}


def _scaled(expression: Any, names: Mapping[str, str]) -> Size | None:
    """A size times a float that few bits hold, so that no product of theirs is rounded: s0 * 1.5 is 3 s0 // 2."""
    if type(expression).__name__ == "ToFloat":
        return _from_expression(expression.args[0], names)
    inner = [each for each in expression.args if type(each).__name__ == "ToFloat"]
    plain = [each for each in expression.args if each.is_number]
    if type(expression).__name__ != "Mul" or len(inner) != 1 or len(plain) != 1:
        return None
    above, below = float(plain[0]).as_integer_ratio()
    if not (0 < above <= 1 << 20 and below <= 1 << 10):
        return None
    product: Size = ("*", above, _from_expression(inner[0].args[0], names))
    return product if below == 1 else ("//", product, below)


def _from_expression(expression: Any, names: Mapping[str, str]) -> Size:
    """A sympy expression as a Size, by the name of its class, so that sympy is never imported here."""
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        return names.get(str(expression), str(expression))
    kind = type(expression).__name__
    arguments: Iterable[Any] = expression.args
    if kind == "Pow" and expression.args[1].is_Integer and int(expression.args[1]) > 0:
        return ("*", *[_from_expression(expression.args[0], names)] * int(expression.args[1]))
    if kind in ("TruncToInt", "FloorToInt"):
        found = _scaled(expression.args[0], names)
        if found is not None:
            return found
    if kind not in _NAMES:
        raise SizeError(f"size expression {expression} uses {kind}, which is not supported: make that size static")
    return _counted_up((_NAMES[kind], *(_from_expression(argument, names) for argument in arguments)))


def _counted_up(size: tuple[Any, ...]) -> Size:
    """-(-s0 // 4), a division of what is never above 0, as one of what is: C rounds the other way."""
    operator, above, *below = size
    if operator == "*" and above == -1 and len(below) == 1:
        return _negated(below[0])
    if operator not in ("//", "%") or _bounds(above)[1] > 0 or _bounds(below[0])[0] <= 0:
        return size
    opposite = ("+", *map(_negated, above[1:])) if isinstance(above, tuple) and above[0] == "+" else _negated(above)
    times: Size = ("cdiv", opposite, below[0])
    return _negated(times) if operator == "//" else ("+", ("*", below[0], times), above)


def _negated(size: Size) -> Size:
    if isinstance(size, int):
        return -size
    if isinstance(size, str) or size[0] != "*":
        return ("*", -1, size)
    numbers = [each for each in size[1:] if isinstance(each, int)]
    others = [each for each in size[1:] if not isinstance(each, int)]
    factor = -math.prod(numbers)
    parts = others if factor == 1 else [factor, *others]
    return parts[0] if len(parts) == 1 else ("*", *parts)
