"""Sums of sizes: heights at which items that rest on one another cannot end raise the bound.

In: a ``Problem`` in the core's units, a bound. Out: the bound, above what is proven impossible.

Of all packings within a height take one whose offsets add up to the least. A free item in it lies at 0 or at the first
multiple of its alignment from the end of another that it may not overlap: it could move down otherwise. In each section
what lies below an item is some of the others live there, and nothing for at most (height - bytes live). Offsets that
are not both are impossible. Aliases are one item and gaps cut sections, so both hold for them; so they do for pins
(which lie where they lie) and items kept apart (which rest on one another without a section in common).
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from adaflex.solver.pack.core import common_unit
from adaflex.solver.pack.problem import Problem

WORK = 100_000_000  # at most for one problem, in about nanoseconds


class TooMuch(Exception):
    """More work than it is worth."""


def spread(sums: int, width: int) -> int:
    """The bits of ``sums``, and up to ``width`` bits above each."""
    done = 0
    while done < width:
        more = min(done + 1, width - done)
        sums |= sums << more
        done += more
    return sums


def without_one(sizes: Sequence[int]) -> list[int]:
    """For each size the sums of subsets of the others, as bits."""
    found = [0] * len(sizes)

    def split(low: int, high: int, sums: int) -> None:
        if high - low < 2:
            found[low:high] = [sums] * (high - low)
            return
        middle = (low + high) // 2
        for a, b, out in ((low, middle, sizes[middle:high]), (middle, high, sizes[low:middle])):
            with_out = sums
            for size in out:
                with_out |= with_out << size
            split(a, b, with_out)

    split(0, len(sizes), 1)
    return found


@dataclass
class Sums:
    """What rests on what: asked for heights in bytes, kept in units."""

    task: Problem
    left: int = WORK

    def __post_init__(self) -> None:
        task = self.task
        self.unit = common_unit(task)
        self.size: list[int] = (task.size // self.unit).tolist()
        self.pin: list[int] = [pin // self.unit if pin > 0 else pin for pin in task.pin.tolist()]

    @cached_property
    def free(self) -> dict[int, int]:
        """Free items as bits, by alignment."""
        found: dict[int, int] = defaultdict(int)
        for i, step in enumerate(self.task.alignment.tolist()):
            if self.pin[i] < 0:
                found[max(1, step // self.unit)] |= 1 << i
        return found

    @cached_property
    def live(self) -> list[list[int]]:
        """Items of each section."""
        found: list[list[int]] = [[] for _ in range(self.task.sections)]
        for i, runs in enumerate(self.task.spans):
            for low, high in runs:
                for s in range(low, high):
                    found[s].append(i)
        return found

    @cached_property
    def near(self) -> list[int]:
        """What an item may not overlap, as bits."""
        found = [0] * self.task.count
        for items in self.live:
            together = sum(1 << i for i in items)
            for i in items:
                found[i] |= together
        for a, b in self.task.apart:
            found[a] |= 1 << b
            found[b] |= 1 << a
        return [bits & ~(1 << i) for i, bits in enumerate(found)]

    @cached_property
    def below(self) -> list[list[int]]:
        """Sums of the others of each section, by item."""
        return [without_one([self.size[i] for i in items]) for items in self.live]

    def raised(self, bound: int, most: int) -> int:
        """The bound in bytes, at most ``most``, above heights that are impossible, as far as it is worth it."""
        height = -(-bound // self.unit)

        def known() -> int:
            return max(bound, min(most, height * self.unit))

        try:
            while known() < most and self.impossible(height):
                height += 1
        except TooMuch:
            pass
        return known()

    def spend(self, times: int, height: int) -> None:
        """Count some steps on bits up to ``height``."""
        self.left -= times * (100 + height // 64)
        if self.left < 0:
            raise TooMuch

    def impossible(self, height: int) -> bool:
        """Whether no packing is ``height`` units high, where none is lower."""
        lives = int((self.task.run_high - self.task.run_low).sum())
        self.spend(lives * (height.bit_length() + self.task.count.bit_length()), height)
        rooms = [(1 << max(0, height - size + 1)) - 1 for size in self.size]
        for items, sums in zip(self.live, self.below, strict=True):
            spare = height - sum(self.size[i] for i in items)
            for i, below in zip(items, sums, strict=True):
                rooms[i] &= spread(below, spare) if spare >= 0 else 0
        least, most = self.chains(rooms, height)
        if any(low < 0 for low, size in zip(least, self.size, strict=True) if size):
            return True
        if not any(at + size == height for at, size in zip(most, self.size, strict=True)):
            return True
        tails = [height - at - size for at, size in zip(most, self.size, strict=True)]
        return any(self.late(items, least, height) or self.late(items, tails, height) for items in self.live)

    def late(self, items: Sequence[int], least: Sequence[int], height: int) -> bool:
        """Whether items that cannot lie lower than ``least`` need more than the height."""
        top = 0
        for i in sorted(items, key=least.__getitem__):
            top = max(top, least[i]) + self.size[i]
        return top > height

    def chains(self, rooms: Sequence[int], height: int) -> tuple[list[int], list[int]]:
        """Least and greatest offset of each item within its room that chains from 0 or pins lead to; -1: none."""
        least, most = [-1] * len(rooms), [-1] * len(rooms)
        waiting: dict[int, int] = defaultdict(int)
        waiting[0] = sum(self.free.values())
        for i, pin in enumerate(self.pin):
            if 0 <= pin <= height:
                waiting[pin] |= 1 << i
        heap = list(waiting)
        heapq.heapify(heap)
        while heap:
            at, done = heapq.heappop(heap), 0
            while new := waiting[at] & ~done:  # what has no size is rested on at its own offset
                done |= new
                self.spend(10 * new.bit_count(), height)
                for i in _bits(new):
                    if not rooms[i] >> at & 1:
                        continue
                    most[i] = at
                    if least[i] < 0:
                        least[i] = at
                    for step, free in self.free.items():
                        start = -(-(at + self.size[i]) // step) * step
                        if start <= height and (bits := free & self.near[i]):
                            if start not in waiting:
                                heapq.heappush(heap, start)
                            waiting[start] |= bits
        return least, most


def _bits(number: int) -> list[int]:
    """The places of the bits that are set."""
    found = []
    while number:
        low = number & -number
        found.append(low.bit_length() - 1)
        number ^= low
    return found
