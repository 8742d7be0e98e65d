"""Buffers as columns of integers: what a million of them need to be read and checked in a moment.

In: ``Buffer``s, or columns read from a file (``BufferTable``, which is a sequence of ``Buffer``s made when asked for).
Out: ``Columns``, or a ``TableError`` that names the first buffer that makes no sense.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import overload

import numpy as np
from numpy.typing import NDArray

from adaflex.errors import TableError
from adaflex.solver.table import Buffer

Ints = NDArray[np.int64]
MOST = 1 << 60


class BufferTable(Sequence[Buffer]):
    """Plain buffers (one span of life, no pin, no alias) held as columns."""

    def __init__(self, ids: Sequence[str], size: Ints, first: Ints, end: Ints) -> None:
        self.ids, self.size, self.first, self.end = ids, size, first, end

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Buffer]:
        columns = (self.size.tolist(), self.first.tolist(), self.end.tolist())
        return (Buffer(*row) for row in zip(self.ids, *columns, strict=True))

    @overload
    def __getitem__(self, index: int) -> Buffer: ...
    @overload
    def __getitem__(self, index: slice) -> BufferTable: ...
    def __getitem__(self, index: int | slice) -> Buffer | BufferTable:
        if isinstance(index, slice):
            return BufferTable(self.ids[index], self.size[index], self.first[index], self.end[index])
        return Buffer(self.ids[index], int(self.size[index]), int(self.first[index]), int(self.end[index]))


@dataclass(frozen=True)
class Columns:
    """One row per buffer; ``special`` are the buffers with gaps or an alias."""

    ids: Sequence[str]
    size: Ints
    first: Ints
    end: Ints
    alignment: Ints
    pin: Ints  # -1: free
    special: tuple[int, ...]


def columns(buffers: Sequence[Buffer]) -> Columns:
    """The columns of ``buffers``, checked; raises ``TableError`` for buffers that make no sense."""
    if isinstance(buffers, BufferTable):
        ones = np.ones(len(buffers), dtype=np.int64)
        made = Columns(buffers.ids, buffers.size, buffers.first, buffers.end, ones, -ones, ())
    else:
        try:
            made = _gathered(buffers)
        except OverflowError:
            for buffer in buffers:
                check_buffer(buffer)
            raise
    _check(buffers, made)
    return made


def _gathered(buffers: Sequence[Buffer]) -> Columns:
    count = len(buffers)

    def column(name: str) -> Ints:
        return np.fromiter(map(attrgetter(name), buffers), dtype=np.int64, count=count)

    alignments, pins = (set(map(attrgetter(name), buffers)) for name in ("alignment", "offset"))
    alignment = np.full(count, alignments.pop(), dtype=np.int64) if len(alignments) == 1 else column("alignment")
    pin = np.full(count, -1, dtype=np.int64)
    if pins - {None}:
        for number, buffer in enumerate(buffers):
            if buffer.offset is not None:
                if buffer.offset < 0:
                    check_buffer(buffer)
                pin[number] = buffer.offset
    special: tuple[int, ...] = ()
    if any(map(attrgetter("gaps"), buffers)) or any(map(attrgetter("alias"), buffers)):
        special = tuple(number for number, b in enumerate(buffers) if b.gaps or b.alias)
    ids = list(map(attrgetter("id"), buffers))
    return Columns(ids, column("size_bytes"), column("first"), column("end"), alignment, pin, special)


def _check(buffers: Sequence[Buffer], rows: Columns) -> None:
    wrong = (rows.size < 0) | (rows.size >= MOST) | (rows.end < rows.first) | (rows.alignment < 1)
    wrong |= (rows.first <= -MOST) | (rows.end >= MOST) | (rows.alignment >= MOST) | (rows.pin >= MOST)
    pinned = np.flatnonzero(rows.pin >= 0)
    wrong[pinned] |= rows.pin[pinned] % np.maximum(rows.alignment[pinned], 1) != 0
    for number in sorted({*np.flatnonzero(wrong).tolist(), *rows.special}):
        check_buffer(buffers[number])
    if len(set(rows.ids)) < len(rows.ids):
        seen: set[str] = set()
        for name in rows.ids:
            if name in seen:
                raise TableError(f"buffer {name!r} stands twice; ids are unique")
            seen.add(name)


def check_buffer(buffer: Buffer) -> None:
    """Raise ``TableError`` where a buffer makes no sense by itself."""
    name = f"buffer {buffer.id!r}"
    if not 0 <= buffer.size_bytes < MOST:
        raise TableError(f"{name} has size {buffer.size_bytes}; it must be at least 0 and below 2**60")
    if buffer.end < buffer.first:
        raise TableError(f"{name} ends at {buffer.end} before it starts at {buffer.first}")
    if max(abs(buffer.first), abs(buffer.end)) >= MOST:
        raise TableError(f"{name} lives from {buffer.first} to {buffer.end}; steps must stay below 2**60")
    if not 1 <= buffer.alignment < MOST:
        raise TableError(f"{name} has alignment {buffer.alignment}; it must be at least 1")
    if buffer.offset is not None and not 0 <= buffer.offset < MOST:
        raise TableError(f"{name} is pinned at {buffer.offset}; an offset is at least 0")
    if buffer.offset is not None and buffer.offset % buffer.alignment:
        raise TableError(
            f"{name} is pinned at {buffer.offset}, which is no multiple of its alignment {buffer.alignment}"
        )
    for low, high in buffer.gaps:
        if not buffer.first <= low < high <= buffer.end:
            raise TableError(f"{name} has a gap from {low} to {high} outside its life {buffer.first} to {buffer.end}")


def common_step(name: str, alignments: Sequence[int]) -> int:
    """The least common multiple of all alignments that buffer ``name`` must have."""
    step = math.lcm(*alignments)
    if step >= MOST:
        raise TableError(f"the alignments of buffer {name!r} have no common multiple below 2**60")
    return step


__all__ = ["MOST", "BufferTable", "Columns", "Ints", "check_buffer", "columns", "common_step"]
