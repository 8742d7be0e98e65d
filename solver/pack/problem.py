"""Buffers as the packers see them: aliases merged, gaps cut out, time as a row of sections.

In: ``Buffer``s, pairs to keep apart. Out: a ``Problem`` of plain integers. A *section* is a span of steps in which
the set of live items does not change; an item is live in one or several runs of sections.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from adaflex.errors import TableError
from adaflex.solver.pack.columns import MOST, Columns, Ints, check_buffer, columns, common_step
from adaflex.solver.pack.library import number_sections
from adaflex.solver.table import Buffer

Span = tuple[int, int]
MUCH = 100_000  # runs above which the core numbers the sections
DENSE = 64  # steps per buffer up to which a table over all steps numbers the sections
STEPS = 16  # alignments looked at for the bound


@dataclass(frozen=True, eq=False)
class Problem:
    """What must not overlap, in sections. An item is one buffer, or several aliased ones that share a place."""

    ids: Sequence[str]  # of the buffers
    owner: Ints  # item of each buffer
    lead: Ints  # first buffer of each item
    size: Ints
    alignment: Ints
    pin: Ints  # -1: free
    run_start: Ints  # runs of item i: run_start[i] .. run_start[i + 1]; half open, ascending, apart
    run_low: Ints
    run_high: Ints
    times: Ints  # first step of each section, and the end
    apart: tuple[tuple[int, int], ...]  # items that may not share bytes although their lives are apart

    @property
    def count(self) -> int:
        """How many items there are."""
        return len(self.size)

    @property
    def sections(self) -> int:
        """How many sections there are."""
        return max(0, len(self.times) - 1)

    @cached_property
    def idle(self) -> NDArray[np.bool_]:
        """Items that hold nothing at any step and are kept apart from nothing: they may lie anywhere."""
        found: NDArray[np.bool_] = self.run_start[1:] == self.run_start[:-1]
        for a, b in self.apart:
            found[[a, b]] &= self.size[[a, b]] == 0
        return found

    @cached_property
    def lower_bound(self) -> int:
        """No packing is lower: the most bytes alive at once, the largest size, and the highest end of a pinned item."""
        ends = np.where(self.size > 0, np.maximum(self.pin, 0) + self.size, 0)
        stacked = fullest(self)[0] if self.sections else 0
        return max(stacked, int(ends.max(initial=0)))

    @cached_property
    def spans(self) -> list[tuple[Span, ...]]:
        """Runs of each item."""
        runs = list(zip(self.run_low.tolist(), self.run_high.tolist(), strict=True))
        starts = self.run_start.tolist()
        return [tuple(runs[a:b]) for a, b in itertools.pairwise(starts)]

    @cached_property
    def hull(self) -> tuple[Ints, Ints]:
        """First and last section (half open) of each item; (0, 0) where it never lives."""
        low, high = np.zeros(self.count, dtype=np.int64), np.zeros(self.count, dtype=np.int64)
        lives = np.flatnonzero(self.run_start[1:] > self.run_start[:-1])
        low[lives] = self.run_low[self.run_start[lives]]
        high[lives] = self.run_high[self.run_start[lives + 1] - 1]
        return low, high

    def per_item(self, runs: Ints) -> Ints:
        """The sum of a number per run over the runs of each item."""
        return np.diff(np.concatenate(([0], np.cumsum(runs)))[self.run_start])

    def name(self, item: int) -> str:
        """The id of an item's first buffer."""
        return self.ids[int(self.lead[item])]

    def names(self, items: Sequence[int] | Ints) -> tuple[str, ...]:
        """The ids of all buffers of some items (of a whole problem, not of a part)."""
        place = np.full(self.count, -1, dtype=np.int64)
        place[items] = np.arange(len(items))
        at = place[self.owner]
        buffers = np.flatnonzero(at >= 0)
        return tuple(self.ids[k] for k in buffers[np.argsort(at[buffers], kind="stable")].tolist())


def problem(
    buffers: Sequence[Buffer],
    *,
    alignment: int = 1,
    separate: Sequence[tuple[str, str]] = (),
    joined: Sequence[tuple[str, str]] = (),
) -> Problem:
    """Check and compile ``buffers``; every offset will be a multiple of the buffer's own alignment and ``alignment``.

    Pairs ``joined`` share a place as aliases do. Raises ``TableError`` for buffers that make no sense.
    """
    rows = columns(buffers)
    if not 1 <= alignment < MOST:
        raise TableError(f"alignment is {alignment}; it must be at least 1")
    if (
        float((rows.size + np.maximum(rows.alignment, alignment)).astype(float).sum()) + rows.pin.max(initial=0)
        >= 2**61
    ):
        raise TableError("the sizes and alignments of all buffers add up to 2**61 bytes or more; that cannot be packed")
    if not rows.special and not joined:
        items = _plain_items(rows, alignment)
    else:
        items = _merged_items(buffers, rows, alignment, joined)
    owner, lead, size, step, pin, runs = items
    lives = runs[0] < runs[1]
    start = np.concatenate(([0], np.cumsum(np.bincount(runs[2][lives], minlength=len(size))))).astype(np.int64)
    times, low, high = sections_of(runs[0][lives], runs[1][lives])
    pairs = _apart(separate, rows.ids, owner)
    return Problem(rows.ids, owner, lead, size, step, pin, start, low, high, times, pairs)


Items = tuple[Ints, Ints, Ints, Ints, Ints, tuple[Ints, Ints, Ints]]


def _plain_items(rows: Columns, alignment: int) -> Items:
    number = np.arange(len(rows.size), dtype=np.int64)
    step = rows.alignment
    if alignment != 1:
        own, which = np.unique(step, return_inverse=True)
        step = np.array([common_step(rows.ids[int(np.argmax(step == a))], (int(a), alignment)) for a in own])[which]
    wrong = np.flatnonzero((rows.pin >= 0) & (rows.pin % step != 0))
    if len(wrong):
        at = int(wrong[0])
        raise TableError(f"buffer {rows.ids[at]!r} is pinned at {rows.pin[at]}, which is no multiple of {step[at]}")
    return (
        number,
        number,
        rows.size,
        step,
        rows.pin,
        (rows.first, np.where(rows.size > 0, rows.end, rows.first), number),
    )


def _merged_items(buffers: Sequence[Buffer], rows: Columns, alignment: int, joined: Sequence[tuple[str, str]]) -> Items:
    index = {name: number for number, name in enumerate(rows.ids)}
    for number in rows.special:
        if buffers[number].alias and buffers[number].alias not in index:
            raise TableError(f"buffer {buffers[number].id!r} is an alias of unknown buffer {buffers[number].alias!r}")
    aliased = [(n, index[buffers[n].alias]) for n in rows.special if buffers[n].alias]
    groups = _groups(len(rows.ids), [*aliased, *((index[a], index[b]) for a, b in joined)])
    owner = np.empty(len(rows.ids), dtype=np.int64)
    made, runs = [], []
    for item, members in enumerate(groups):
        owner[members] = item
        size, step, pin = _item(buffers, members, alignment)
        made.append((members[0], size, step, pin))
        holding = [m for m in members if buffers[m].size_bytes]
        runs += [(low, high, item) for low, high in _live(buffers, holding)]
    lead, size_, step_, pin_ = np.array(made, dtype=np.int64).reshape(-1, 4).T
    low_, high_, of = np.array(runs, dtype=np.int64).reshape(-1, 3).T
    return owner, lead, size_, step_, pin_, (low_, high_, of)


def _groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Numbers below ``count`` in groups: those of a pair are together."""
    root = list(range(count))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    for one, other in pairs:
        a, b = find(one), find(other)
        root[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for number in range(count):
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


def _item(buffers: Sequence[Buffer], members: Sequence[int], alignment: int) -> tuple[int, int, int]:
    """(size, alignment, pin) of buffers that share a place."""
    pins = {buffers[m].offset for m in members} - {None}
    if len(pins) > 1:
        raise TableError(f"aliases of buffer {buffers[members[0]].id!r} are pinned at different offsets")
    step = common_step(buffers[members[0]].id, (alignment, *(buffers[m].alignment for m in members)))
    pin = pins.pop() if pins else None
    if pin is not None and pin % step:
        raise TableError(f"buffer {buffers[members[0]].id!r} is pinned at {pin}, which is no multiple of {step}")
    return max(buffers[m].size_bytes for m in members), step, -1 if pin is None else pin


def sections_of(first: Ints, end: Ints) -> tuple[Ints, Ints, Ints]:
    """(steps at which sections begin, and the end; first section, last section of each run)."""
    if not len(first):
        return first[:0], first, end
    least, most = int(first.min()), int(end.max())
    if most - least > DENSE * len(first):
        times = np.unique(np.concatenate((first, end)))
        return times, np.searchsorted(times, first), np.searchsorted(times, end)
    made = number_sections(first, end, least, most - least) if len(first) > MUCH else None
    if made is not None:
        return made
    seen = np.zeros(most - least + 1, dtype=bool)
    seen[first - least] = seen[end - least] = True
    number = np.cumsum(seen, dtype=np.int32) - 1
    low, high = number[first - least].astype(np.int64), number[end - least].astype(np.int64)
    return np.flatnonzero(seen) + least, low, high


def _apart(separate: Sequence[tuple[str, str]], ids: Sequence[str], owner: Ints) -> tuple[tuple[int, int], ...]:
    if not separate:
        return ()
    index = {name: number for number, name in enumerate(ids)}
    pairs = set()
    for one, other in separate:
        for name in (one, other):
            if name not in index:
                raise TableError(f"a separation names unknown buffer {name!r}")
        a, b = int(owner[index[one]]), int(owner[index[other]])
        if a == b:
            raise TableError(f"buffers {one!r} and {other!r} are aliases and cannot be kept apart")
        pairs.add((min(a, b), max(a, b)))
    return tuple(sorted(pairs))


def live_sums(task: Problem, sizes: Ints | None = None) -> Ints:
    """Bytes alive in each section (or the sum of other numbers): the highest is a lower bound of any packing."""
    change = np.zeros(task.sections + 1, dtype=np.int64)
    size = np.repeat(task.size if sizes is None else sizes, np.diff(task.run_start))
    np.add.at(change, task.run_low, size)
    np.subtract.at(change, task.run_high, size)
    return np.cumsum(change[:-1])


def fullest(task: Problem) -> tuple[int, int, Ints]:
    """(bytes, section, items) of the highest stack that must stand somewhere; the items are those live there.

    Items at multiples of a step fill whole steps but for the one on top: a stack of them counts by itself.
    """
    most, worst, which = 0, 0, np.arange(0)
    for step in _steps(task):
        whole = np.where(task.alignment % step == 0, -(-task.size // step) * step, 0)
        sums = live_sums(task, whole)
        at = int(np.argmax(sums))
        if sums[at] > most:
            items = _live_at(task, at)
            items = items[whole[items] > 0]
            height = int(sums[at] - (whole - task.size)[items].max())
            if height > most:
                most, worst, which = height, at, items
    return most, worst, which


def _steps(task: Problem) -> list[int]:
    kinds = task.alignment[:1]
    if np.any(task.alignment != kinds):
        kinds = np.unique(task.alignment)
    return sorted({1, int(np.gcd.reduce(kinds)), *kinds[:STEPS].tolist()})


def _live_at(task: Problem, section: int) -> Ints:
    runs = np.flatnonzero((task.run_low <= section) & (section < task.run_high))
    return np.repeat(np.arange(task.count), np.diff(task.run_start))[runs]


def busiest(task: Problem, sums: Ints) -> Ints:
    """The most bytes alive at once during the life of each item."""
    low, high = task.run_low, task.run_high
    if not len(low):
        return np.zeros(task.count, dtype=np.int64)
    levels = [sums]  # levels[k][s]: the most over the 2**k sections from s on
    while 2 ** len(levels) <= int((high - low).max()):
        half = 2 ** (len(levels) - 1)
        levels.append(np.maximum(levels[-1][:-half], levels[-1][half:]))
    level = np.frexp((high - low).astype(float))[1] - 1
    most = np.empty(len(low), dtype=np.int64)
    for k, table in enumerate(levels):
        at = np.flatnonzero(level == k)
        most[at] = np.maximum(table[low[at]], table[high[at] - 2**k])
    found = np.zeros(task.count, dtype=np.int64)
    np.maximum.at(found, np.repeat(np.arange(task.count), np.diff(task.run_start)), most)
    return found


def backwards(task: Problem) -> Problem:
    """The same problem with time running backwards: its packings are the same."""
    owner = np.repeat(np.arange(task.count), np.diff(task.run_start))
    low, high = task.sections - task.run_high, task.sections - task.run_low
    order = np.lexsort((low, owner))
    return replace(task, run_low=low[order], run_high=high[order], times=-task.times[::-1])


def offsets_of(task: Problem, places: Sequence[int] | Ints) -> tuple[tuple[str, int], ...]:
    """Offsets by buffer id, in the order given, from one offset per item."""
    at = np.asarray(places, dtype=np.int64)[task.owner]
    collecting = gc.isenabled()
    gc.disable()  # a million pairs would be looked through again and again
    try:
        return tuple(zip(task.ids, at.tolist(), strict=True))
    finally:
        if collecting:
            gc.enable()


def height_of(task: Problem, places: Sequence[int] | Ints) -> int:
    """The highest end over all items that ever live."""
    ends = np.asarray(places, dtype=np.int64) + task.size
    return int(ends[task.size > 0].max(initial=0))


__all__ = [
    "MOST", "Problem", "Span", "backwards", "busiest", "check_buffer", "fullest", "height_of", "live_sums",
    "offsets_of", "problem", "sections_of",
]  # fmt: skip
