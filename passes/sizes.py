"""Sizes as plain data: what a tensor's symbolic sizes are, in a form that needs neither torch nor sympy to evaluate.

In: nodes with fake tensors in ``meta["val"]``. Out: ``Size`` values: an int, a symbol's name, or an operator tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any, TypeAlias

import torch

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
    """An int or ``torch.SymInt`` as a Size; ``names`` renames torch's symbols. ValueError for unknown operators."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, torch.SymInt):
        return _from_expression(value.node.expr, names or {})
    raise ValueError(f"a size must be an int or a SymInt, not {type(value).__name__}")


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
    if kind not in _NAMES:
        raise ValueError(f"size expression {expression} uses {kind}, which is not supported: make that size static")
    return (_NAMES[kind], *(_from_expression(argument, names) for argument in arguments))
