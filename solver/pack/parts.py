"""Problems taken apart: time components, maximal sections, pins that clash, what the searches can take.

In: a ``Problem``. Out: parts of it, and what is true of it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from adaflex.solver.pack.columns import Ints
from adaflex.solver.pack.problem import Problem

LARGE = 30_000  # items above which only the greedy portfolio runs
LARGE_PAIRS = 60_000_000


def clash(task: Problem) -> tuple[int, int] | None:
    """Two pinned items that share bytes and are live together, or are kept apart; None: pins agree."""
    pinned = np.flatnonzero((task.pin >= 0) & (task.size > 0))
    pinned = pinned[np.argsort(task.pin[pinned], kind="stable")]
    apart = set(task.apart)
    open_: list[int] = []  # pinned items that reach beyond the one looked at
    for i in pinned.tolist():
        open_ = [j for j in open_ if task.pin[j] + task.size[j] > task.pin[i]]
        for j in open_:
            together = any(a < d and c < b for a, b in task.spans[i] for c, d in task.spans[j])
            if together or (min(i, j), max(i, j)) in apart:
                return j, i
        open_.append(i)
    return None


def components(task: Problem) -> list[Ints]:
    """Items by time component: between two of them no item is live across. One group where pairs are kept apart."""
    every = np.flatnonzero(~task.idle)
    if task.apart or not len(every):
        return [every] if len(every) else []
    low, high = (side[every] for side in task.hull)
    order = np.argsort(low, kind="stable")
    reach = np.maximum.accumulate(high[order])
    cuts = np.flatnonzero(low[order][1:] >= reach[:-1]) + 1
    return list(np.split(every[order], cuts))


def part_of(task: Problem, members: Ints) -> Problem:
    """The problem of some items, with sections cut down to the maximal ones: those no neighbour's live set contains."""
    counts = np.diff(task.run_start)[members]
    start = np.concatenate(([0], np.cumsum(counts)))
    runs = np.repeat(task.run_start[members] - start[:-1], counts) + np.arange(start[-1])
    low, high = task.run_low[runs], task.run_high[runs]
    begins, ends = np.unique(low), np.unique(high)
    after = np.append(begins[1:], np.iinfo(np.int64).max)
    tops = begins[ends[np.searchsorted(ends, begins, side="right")] <= after] if len(begins) else begins
    low, high = np.searchsorted(tops, low), np.searchsorted(tops, high)
    kept = low < high
    start = np.concatenate(([0], np.cumsum(np.add.reduceat(np.append(kept, 0), start[:-1]) * (counts > 0))))
    index = {i: k for k, i in enumerate(members.tolist())} if task.apart else {}
    apart = tuple((index[a], index[b]) for a, b in task.apart if a in index and b in index)
    times = np.append(task.times[tops], task.times[-1] if len(task.times) else 0)
    return replace(
        task, lead=task.lead[members], size=task.size[members], alignment=task.alignment[members],
        pin=task.pin[members], run_start=start.astype(np.int64), run_low=low[kept], run_high=high[kept], times=times,
        apart=apart,
    )  # fmt: skip


def pairs_of(task: Problem) -> int:
    """About how many pairs of items are live together."""
    starts = np.bincount(task.run_low, minlength=task.sections + 1)
    live = np.cumsum(starts - np.bincount(task.run_high, minlength=task.sections + 1))
    return int((live * starts).sum())


def searchable(task: Problem) -> bool:
    """Whether the search can hold the problem: few enough items and overlapping pairs."""
    return task.count <= LARGE and pairs_of(task) <= LARGE_PAIRS


def plain(task: Problem) -> bool:
    """Whether the niche search can take it: every item one run, free, and no alignment beyond the common unit."""
    if task.apart or bool(np.any(task.alignment != task.alignment[:1])):
        return False
    one = np.diff(task.run_start) <= 1
    return bool(np.all(one & (task.pin < 0) & (task.size % task.alignment == 0)))


def round_sizes(task: Problem) -> tuple[Problem, int]:
    """Where no item is pinned, sizes rounded up to what divides all alignments: offsets are multiples of it."""
    step = int(np.gcd.reduce(task.alignment))
    if step <= 1 or bool(np.any(task.pin >= 0)):
        return task, 1
    return replace(task, size=-(-task.size // step) * step), step
