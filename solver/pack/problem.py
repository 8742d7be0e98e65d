"""Buffers as the packers see them: aliases merged, gaps cut out, time as a row of sections.

In: ``Buffer``s, pairs to keep apart. Out: a ``Problem`` of plain integers. A *section* is a span of steps in which
the set of live items does not change; an item is live in one or several runs of sections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adaflex.errors import TableError
from adaflex.solver.table import Buffer

MOST = 1 << 60
Span = tuple[int, int]


@dataclass(frozen=True)
class Item:
    """One or several aliased buffers that share a place: size, alignment, spans of life, pin."""

    members: tuple[int, ...]  # indices of its buffers
    size: int
    alignment: int
    spans: tuple[Span, ...]  # sections, half open, ascending, apart
    pin: int  # -1: free


@dataclass(frozen=True)
class Problem:
    """What must not overlap, in sections."""

    buffers: tuple[Buffer, ...]
    items: tuple[Item, ...]
    times: tuple[int, ...]  # first step of each section, and the end
    apart: tuple[tuple[int, int], ...]  # items that may not share bytes although their lives are apart

    @property
    def sections(self) -> int:
        """How many sections there are."""
        return max(0, len(self.times) - 1)


def problem(buffers: Sequence[Buffer], *, alignment: int = 1, separate: Sequence[tuple[str, str]] = ()) -> Problem:
    """Check and compile ``buffers``; every offset will be a multiple of the buffer's own alignment and ``alignment``.

    Raises ``TableError`` for buffers that make no sense.
    """
    index: dict[str, int] = {}
    for number, buffer in enumerate(buffers):
        check_buffer(buffer)
        if buffer.id in index:
            raise TableError(f"buffer {buffer.id!r} stands twice; ids are unique")
        index[buffer.id] = number
    if not 1 <= alignment < MOST:
        raise TableError(f"alignment is {alignment}; it must be at least 1")
    groups = _alias_groups(buffers, index)
    lives = [_live(buffers, members) for members in groups]
    times = sorted({time for spans in lives for span in spans for time in span})
    section = {time: number for number, time in enumerate(times)}
    items: list[Item] = []
    owner: dict[int, int] = {}
    for members, spans in zip(groups, lives, strict=True):
        owner.update(dict.fromkeys(members, len(items)))
        items.append(_item(buffers, members, tuple((section[a], section[b]) for a, b in spans), alignment))
    pairs = []
    for one, other in separate:
        for name in (one, other):
            if name not in index:
                raise TableError(f"a separation names unknown buffer {name!r}")
        a, b = owner[index[one]], owner[index[other]]
        if a == b:
            raise TableError(f"buffers {one!r} and {other!r} are aliases and cannot be kept apart")
        pairs.append((min(a, b), max(a, b)))
    return Problem(tuple(buffers), tuple(items), tuple(times), tuple(sorted(set(pairs))))


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


def _alias_groups(buffers: Sequence[Buffer], index: dict[str, int]) -> list[list[int]]:
    root = list(range(len(buffers)))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    for number, buffer in enumerate(buffers):
        if buffer.alias:
            if buffer.alias not in index:
                raise TableError(f"buffer {buffer.id!r} is an alias of unknown buffer {buffer.alias!r}")
            a, b = find(number), find(index[buffer.alias])
            root[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for number in range(len(buffers)):
        groups.setdefault(find(number), []).append(number)
    return list(groups.values())


def _live(buffers: Sequence[Buffer], members: Sequence[int]) -> list[Span]:
    """Spans of steps in which any member is live, merged where they touch."""
    spans = []
    for number in members:
        buffer, at = buffers[number], buffers[number].first
        for low, high in sorted(buffer.gaps):
            if low > at:
                spans.append((at, low))
            at = max(at, high)
        if at < buffer.end:
            spans.append((at, buffer.end))
    merged: list[Span] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def _item(buffers: Sequence[Buffer], members: Sequence[int], spans: tuple[Span, ...], alignment: int) -> Item:
    pins = {buffers[m].offset for m in members} - {None}
    if len(pins) > 1:
        raise TableError(f"aliases of buffer {buffers[members[0]].id!r} are pinned at different offsets")
    step = math.lcm(alignment, *(buffers[m].alignment for m in members))
    if step >= MOST:
        raise TableError(f"the alignments of buffer {buffers[members[0]].id!r} have no common multiple below 2**60")
    size = max(buffers[m].size_bytes for m in members)
    pin = pins.pop() if pins else None
    if pin is not None and pin % step:
        raise TableError(f"buffer {buffers[members[0]].id!r} is pinned at {pin}, which is no multiple of {step}")
    return Item(tuple(members), size, step, spans if size else (), -1 if pin is None else pin)


def live_sums(task: Problem) -> list[int]:
    """Bytes alive in each section: the highest is a lower bound of any packing."""
    change = [0] * (task.sections + 1)
    for item in task.items:
        for low, high in item.spans:
            change[low] += item.size
            change[high] -= item.size
    sums, total = [], 0
    for step in change[:-1]:
        total += step
        sums.append(total)
    return sums


def lower_bound(task: Problem) -> int:
    """No packing is lower: the most bytes alive at once, and the highest end of a pinned item."""
    return max([*live_sums(task), *(item.pin + item.size for item in task.items if item.pin >= 0 and item.size), 0])


def offsets_of(task: Problem, places: Sequence[int]) -> tuple[tuple[str, int], ...]:
    """Offsets by buffer id, in the order given, from one offset per item."""
    at = [0] * len(task.buffers)
    for item, place in zip(task.items, places, strict=True):
        for member in item.members:
            at[member] = place
    return tuple((buffer.id, place) for buffer, place in zip(task.buffers, at, strict=True))


def height_of(task: Problem, places: Sequence[int]) -> int:
    """The highest end over all items that ever live."""
    return max((place + item.size for item, place in zip(task.items, places, strict=True) if item.size), default=0)
