"""Sizes that stay so small that nothing made of them overflows, and which elements a walk over strided axes touches.

In: sizes of a program, values of its symbols, axes as (size, stride). Out: numbers, or ``ArtifactError`` where a
program would leave its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaflex.errors import ArtifactError
from adaflex.runtime.region import OPERATORS, Size

MOST = 1 << 48  # of any size or product of sizes: far from what overflows, far above what a machine holds
Axis = tuple[int, int]  # size, stride in elements


def fault(text: str) -> ArtifactError:
    """The error of a program that would leave its memory."""
    return ArtifactError(f"{text}; the file is damaged or was not made by AdaFlex")


class Sizes:
    """Values of sizes: bounded, with divisors above zero, so that C and Python agree on them."""

    def __init__(self, values: Mapping[str, int]) -> None:
        self.values = values

    def value(self, size: Size, what: str) -> int:
        """Any size, also a negative one."""
        if isinstance(size, int):
            found = size
        elif isinstance(size, str):
            found = self.values[size]
        else:
            found = self._result(size, what)
        if not -MOST <= found <= MOST:
            raise fault(f"{what} would be {found}")
        return found

    def _result(self, size: tuple[object, ...], what: str) -> int:
        name, parts = str(size[0]), [self.value(part, what) for part in size[1:]]  # type: ignore[arg-type]
        divides = name in ("//", "%", "cdiv")
        if divides and (parts[0] < 0 or min(parts[1:]) <= 0):
            raise fault(f"{what} is divided by {min(parts[1:])}")
        found = parts[0]
        for part in parts[1:]:
            found = OPERATORS[name](found, part)
            if not -MOST <= found <= MOST:
                raise fault(f"{what} would be {found}")
        return found

    def count(self, size: Size, what: str) -> int:
        """A size that counts something."""
        found = self.value(size, what)
        if found < 0:
            raise fault(f"{what} would be {found}")
        return found

    def product(self, sizes: Sequence[Size], what: str) -> int:
        """The product of counts."""
        found = 1
        for size in sizes:
            found *= self.count(size, what)
            if found > MOST:
                raise fault(f"{what} would be {found}")
        return found


def span(axes: Sequence[Axis], offset: int) -> tuple[int, int]:
    """Lowest and highest element of a walk that has at least one."""
    steps = [(size - 1) * stride for size, stride in axes]
    return offset + sum(step for step in steps if step < 0), offset + sum(step for step in steps if step > 0)


def split(axes: Sequence[Axis], groups: int) -> tuple[list[Axis], list[Axis]] | None:
    """The axes that count ``groups`` and those within a group; None where an axis straddles both."""
    outer: list[Axis] = []
    inner: list[Axis] = []
    for size, stride in axes:
        if groups == 1:
            inner.append((size, stride))
        elif groups % size == 0:
            outer.append((size, stride))
            groups //= size
        elif size % groups == 0:
            outer.append((groups, stride * (size // groups)))
            inner.append((size // groups, stride))
            groups = 1
        else:
            return None
    return (outer, inner) if groups == 1 else None


def own(outer: Sequence[Axis], inner: Sequence[Axis], rest: Sequence[Axis], offset: int, unit: int) -> bool:
    """Does group g of ``outer`` reach elements [g * unit, (g + 1) * unit) alone?"""
    step = unit
    for size, stride in reversed(outer):
        if size > 1 and stride != step:
            return False
        step *= size
    low, high = span([*inner, *rest], offset)
    return low >= 0 and high < unit
