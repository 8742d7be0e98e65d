"""Amounts as people write them: ``64KiB``, ``8ms``, ``1_000_000``.

In: text. Out: whole bytes or nanoseconds, or an ``OptionError`` naming the text.
"""

from __future__ import annotations

import re
from fractions import Fraction

from adaflex.errors import OptionError

BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
BYTES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
SECONDS = {"": 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "µs": 10**3, "ns": 1, "min": 60 * 10**9}
NUMBER = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?)\s*([a-zµ]*)", re.IGNORECASE)


def _parse(text: str, units: dict[str, int], what: str, example: str) -> int:
    found = NUMBER.fullmatch(text.strip())
    if found is None or found.group(2).lower() not in units:
        raise OptionError(f"{text!r} is no {what}; write for example {example}")
    amount = Fraction(found.group(1).replace("_", "")) * units[found.group(2).lower()]
    if amount >= 1 << 62:
        raise OptionError(f"{text!r} is too large a {what}; it must stay below 2**62")
    return int(amount)


def parse_bytes(text: str) -> int:
    """Bytes of ``120MiB``, ``1.5GB`` or a bare number of bytes."""
    return _parse(text, BYTES, "size", "64KiB, 120MiB or 1.5GB")


def parse_time(text: str) -> int:
    """Nanoseconds of ``8ms``, ``350us`` or a bare number of seconds."""
    return _parse(text, SECONDS, "time", "8ms, 350us or 0.5s")


def show_bytes(count: float) -> str:
    """A size for people: exact below 10 KiB, else with a binary prefix."""
    for name, unit in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= 10 * unit or (name == "KiB" and abs(count) >= 10 * unit):
            return f"{count / unit:,.2f} {name}"
    return f"{count:,.0f} bytes"


def show_time(nanoseconds: float) -> str:
    """A time for people."""
    for name, unit in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if abs(nanoseconds) >= unit:
            return f"{nanoseconds / unit:,.3f} {name}"
    return f"{nanoseconds:,.0f} ns"
