"""Keeps the streamed weights of a program coming: a ring for each call that runs at the same time.

In: a ``Program`` with its tier schedule, its ``Stream``. Out: a ``Turn`` per call, which fills in the addresses of
streamed constants as their blocks arrive, and says when they are not needed any more.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from adaflex.runtime.program import Program
from adaflex.runtime.ring import Ring
from adaflex.runtime.stream import Stream


@dataclass(frozen=True)
class _Entry:
    """What happens around one entry of the schedule."""

    blocks: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]  # to wait for, with (slot, offset in the block)
    released: int  # blocks that end after it


class Turn:
    """One call's way through the blocks."""

    def __init__(self, ring: Ring, entries: list[_Entry], addresses: list[int]) -> None:
        self._ring, self._entries, self._addresses = ring, entries, addresses

    def enter(self, entry: int) -> None:
        """Wait for what this entry of the schedule reads."""
        for block, slots in self._entries[entry].blocks:
            start = self._ring.wait(block)
            for slot, offset in slots:
                self._addresses[slot] = start + offset

    def leave(self, entry: int) -> None:
        """Give back what ends with this entry."""
        if self._entries[entry].released:
            self._ring.release(self._entries[entry].released)


@dataclass
class _Pool:
    free: list[Ring] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    waited_ns: int = 0  # of all calls so far


class Staging:
    """The rings of a program, made when calls first need them."""

    def __init__(self, program: Program, stream: Stream) -> None:
        self.stream, self._blocks = stream, program.blocks
        self._entries = _entries(program)
        self._pool = _Pool()

    @property
    def waited_ns(self) -> int:
        """How long all calls together have waited for the disk."""
        return self._pool.waited_ns

    @contextlib.contextmanager
    def turn(self, addresses: list[int]) -> Iterator[Turn]:
        """A ring for one call. One whose call failed halfway is not used again."""
        with self._pool.lock:
            ring = self._pool.free.pop() if self._pool.free else None
        ring = ring or Ring(self.stream, self._blocks)
        before = ring.waited_ns
        try:
            yield Turn(ring, self._entries, addresses)
        except BaseException:
            ring.close()
            raise
        with self._pool.lock:
            self._pool.waited_ns += ring.waited_ns - before
            self._pool.free.append(ring)


def _entries(program: Program) -> list[_Entry]:
    slots: dict[int, list[tuple[int, int]]] = {}
    for number, slot in enumerate(program.slots):
        if slot.kind == "constant" and program.constants[slot.constant].tier == "disk":
            at = program.constants[slot.constant].offset
            block = next(
                place for place, b in enumerate(program.blocks) if b.offset <= at and at < b.offset + b.size_bytes
            )
            slots.setdefault(block, []).append((number, at - program.blocks[block].offset))
    waits: list[list[int]] = [[] for _ in program.schedule]
    ends = [0] * len(program.schedule)
    for number, each in enumerate(program.blocks):
        ends[each.last] += 1
        if each.size_bytes:
            waits[each.first].append(number)
    return [
        _Entry(tuple((block, tuple(slots.get(block, ()))) for block in blocks), count)
        for blocks, count in zip(waits, ends, strict=True)
    ]
