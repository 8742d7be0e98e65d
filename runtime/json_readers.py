"""Readers of plain data out of JSON: each takes a value and where it stands, and gives it back checked.

In: plain values that may be hostile. Out: numbers, text, sizes, tuples and dataclasses, or ``ArtifactError`` naming the
place that breaks the schema.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from adaflex.errors import ArtifactError
from adaflex.runtime.region import OPERATORS

Read = Callable[[Any, str], Any]

INT64 = (-(2**63), 2**63 - 1)
MOST_ITEMS = 1 << 20  # of any one list
MOST_TEXT = 1 << 16  # characters of any one string
MOST_NESTING = 48  # of a size, or of an argument's lists
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def fault(where: str, value: Any, wanted: str) -> ArtifactError:
    """The error of a value that is not what the schema asks for."""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ArtifactError(
        f"{where} is {shown}; the format asks for {wanted}, so the file is damaged or was not made here"
    )


def integer(low: int = INT64[0], high: int = INT64[1]) -> Read:
    """Reads an int between two bounds, both included."""

    def read(value: Any, where: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise fault(where, value, f"a whole number from {low} to {high}")
        return value

    return read


def one_of(words: Any) -> Read:
    """Reads one of a few words."""

    def read(value: Any, where: str) -> str:
        if type(value) is not str or value not in words:
            raise fault(where, value, f"one of {', '.join(sorted(words))}")
        return value

    return read


def text(value: Any, where: str) -> str:
    """Reads a string."""
    if type(value) is not str or len(value) > MOST_TEXT:
        raise fault(where, value, f"text of at most {MOST_TEXT} characters")
    return value


def number(value: Any, where: str) -> float:
    """Reads a float."""
    if type(value) is str and value in NOT_FINITE:
        return NOT_FINITE[value]
    if type(value) is not float or not math.isfinite(value):
        raise fault(where, value, "a number with a decimal point, or nan, inf or -inf as text")
    return value


def flag(value: Any, where: str) -> bool:
    """Reads true or false."""
    if type(value) is not bool:
        raise fault(where, value, "true or false")
    return value


def size(value: Any, where: str, depth: int = 0) -> Any:
    """Reads a size: an int, a symbol, or an operator with at least two operands."""
    if type(value) is int and INT64[0] <= value <= INT64[1]:
        return value
    if type(value) is str and value.isidentifier() and len(value) < 64:
        return value
    if type(value) is not list or len(value) < 3 or depth > MOST_NESTING:
        raise fault(where, value, "a size: a whole number, a symbol, or [operator, size, size, ...]")
    if type(value[0]) is not str or value[0] not in OPERATORS:
        raise fault(where, value[0], f"one of the operators {' '.join(OPERATORS)}")
    parts = tuple(size(part, where, depth + 1) for part in value[1:])
    if value[0] in ("//", "%", "cdiv") and any(type(part) is int and part <= 0 for part in parts[1:]):
        raise fault(where, value, "a divisor above zero")
    return (value[0], *parts)


def count(value: Any, where: str) -> Any:
    """Reads a size that, where it is a number, is not negative."""
    read = size(value, where)
    if type(read) is int and read < 0:
        raise fault(where, value, "a size that is not negative")
    return read


def many(read: Read, most: int = MOST_ITEMS) -> Read:
    """Reads a list into a tuple."""

    def read_all(value: Any, where: str) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > most:
            raise fault(where, value, f"a list of at most {most} entries")
        return tuple(read(item, f"{where}[{place}]") for place, item in enumerate(value))

    return read_all


def pair(first: Read, second: Read) -> Read:
    """Reads a list of exactly two."""

    def read(value: Any, where: str) -> tuple[Any, Any]:
        if type(value) is not list or len(value) != 2:
            raise fault(where, value, "a list of two entries")
        return first(value[0], where + "[0]"), second(value[1], where + "[1]")

    return read


def exactly(count: int, read: Read) -> Read:
    """Reads a list of that many entries."""

    def read_all(value: Any, where: str) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != count:
            raise fault(where, value, f"a list of {count} entries")
        return tuple(read(entry, f"{where}[{place}]") for place, entry in enumerate(value))

    return read_all


def optional(read: Read) -> Read:
    """Reads null, or what ``read`` reads."""
    return lambda value, where: None if value is None else read(value, where)


def record(kind: Any, readers: Mapping[str, Read]) -> Read:
    """Reads an object into the dataclass ``kind``: no unknown keys, none missing that has no default."""
    wanted = {entry.name: entry.default is MISSING for entry in fields(kind)}
    assert wanted.keys() == readers.keys(), f"the table of {kind.__name__} is out of date"

    def read(value: Any, where: str) -> Any:
        if type(value) is not dict:
            raise fault(where, value, "an object")
        for key in value:
            if key not in readers:
                raise ArtifactError(f"{where} has the unknown key {key!r:.60}; a newer AdaFlex may know it: update it")
        for name, needed in wanted.items():
            if needed and name not in value:
                raise ArtifactError(f"{where} lacks the key '{name}'; the file is damaged or was not made here")
        return kind(**{name: readers[name](given, f"{where}.{name}") for name, given in value.items()})

    return read
