"""Greedy packing: a portfolio of orders, each item at the lowest place (or the tightest gap) that is free for its life.

In: ``Buffer``s. Out: a valid ``Packing``, the best of the portfolio, with the live-bytes bound. Deterministic; no
compiler needed. search.py goes on from here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from adaflex.solver.pack.packing import Packing, PackStatus
from adaflex.solver.pack.problem import Problem, height_of, live_sums, lower_bound, offsets_of, problem
from adaflex.solver.table import Buffer

Ints = NDArray[np.int64]
ORDERS = (
    "size", "area", "length", "contention", "size,length", "length,size",
    "contention,size", "contention,area", "area,size", "first", "end", "spread",
)  # fmt: skip


def pack(
    buffers: Sequence[Buffer],
    *,
    capacity: int | None = None,
    alignment: int = 1,
    separate: Sequence[tuple[str, str]] = (),
) -> Packing:
    """Offsets for ``buffers`` by the best of twelve orders and two fits.

    Status ``optimal`` where the height equals the bound, ``fits`` where a capacity was given and it is held,
    ``infeasible`` where the bound is above it, else ``packed`` (``unknown`` with a capacity). Sizes and offsets in
    bytes, steps half open. Raises ``TableError`` for buffers that make no sense.
    """
    begin = time.perf_counter()
    task = problem(buffers, alignment=alignment, separate=separate)
    bound = lower_bound(task)
    places, name = portfolio(task, bound if capacity is None else max(bound, capacity))
    return packing_of(task, places, (bound, capacity), method=f"greedy by {name}", seconds=time.perf_counter() - begin)


def packing_of(
    task: Problem,
    places: Sequence[int] | None,
    limits: tuple[int, int | None],
    *,
    method: str,
    seconds: float,
    nodes: int = 0,
) -> Packing:
    """The packing that ``places`` (one per item) stands for, with the status that bound and capacity give it."""
    bound, capacity = limits
    if places is None:
        return Packing("unknown", (), 0, bound, capacity, (), "pinned buffers overlap", nodes, seconds, method)
    height = height_of(task, places)
    status: PackStatus = "optimal" if height <= bound else "packed"
    blame: tuple[str, ...] = ()
    reason = ""
    if capacity is not None:
        status = "fits" if height <= capacity else "infeasible" if bound > capacity else "unknown"
        if status == "infeasible":
            blame, reason = too_much(task, capacity)
    offsets = offsets_of(task, places) if status != "infeasible" else ()
    return Packing(status, offsets, height, bound, capacity, blame, reason, nodes, seconds, method)


def too_much(task: Problem, capacity: int) -> tuple[tuple[str, ...], str]:
    """The buffers live at the worst step, largest first, and a sentence with the bytes missing."""
    sums = live_sums(task)
    pinned = [i for i in task.items if i.pin >= 0 and i.size and i.pin + i.size > capacity]
    if pinned and max(sums, default=0) <= capacity:
        item = pinned[0]
        name = task.buffers[item.members[0]].id
        return (name,), f"buffer {name!r} is pinned to end at {item.pin + item.size}, beyond {capacity}"
    worst = max(range(len(sums)), key=lambda s: sums[s])
    live = [item for item in task.items if any(a <= worst < b for a, b in item.spans)]
    live.sort(key=lambda item: -item.size)
    names = tuple(task.buffers[item.members[0]].id for item in live)
    over = sums[worst] - capacity
    return (
        names,
        f"at step {task.times[worst]} {len(names)} buffers live hold {sums[worst]} bytes, {over} more than {capacity}",
    )


def ordered(task: Problem, names: Sequence[str] = ORDERS) -> Iterator[tuple[str, list[int]]]:
    """The items in each of the orders named, made when asked for; ties by index."""
    times = np.array(task.times, dtype=np.int64)
    size = np.array([item.size for item in task.items], dtype=np.int64)
    ends = [(item.spans[0][0], item.spans[-1][1]) if item.spans else (0, 0) for item in task.items]
    first, end = (times[np.array([e[k] for e in ends], dtype=np.int64)] if len(times) else size * 0 for k in (0, 1))
    length = np.array(
        [sum(task.times[b] - task.times[a] for a, b in item.spans) for item in task.items], dtype=np.int64
    )
    area = size.astype(np.float64) * length
    sections = np.array([sum(b - a for a, b in item.spans) for item in task.items], dtype=np.int64)
    busiest = size
    for name in names:
        if (name == "balanced" or "contention" in name) and busiest is size:
            sums = live_sums(task)
            busiest = np.array([max((max(sums[a:b]) for a, b in item.spans), default=0) for item in task.items])
        by: dict[str, list[NDArray[np.int64] | NDArray[np.float64]]] = {
            "size": [-size, first], "area": [-area, first], "length": [-length, first],
            "contention": [-busiest, -size, first], "size,length": [-size, -length], "length,size": [-length, -size],
            "contention,size": [-busiest, -size, -length], "contention,area": [-busiest, -area],
            "area,size": [-area, -size], "first": [first, -size], "end": [-end, -size], "spread": [first - end, -area],
            "balanced": [-size * np.sqrt(sections) * (busiest / max(1, busiest.max(initial=1))) ** 8.0],
        }  # fmt: skip
        yield name, np.lexsort(by[name][::-1]).tolist()


def portfolio(task: Problem, enough: int) -> tuple[list[int] | None, str]:
    """The lowest packing over all orders and fits; stops at a height of at most ``enough``."""
    place = placer(task)
    best: list[int] | None = None
    name = ""
    lowest = -1
    for order, ranked in ordered(task):
        for tight in (False, True):
            places = place(ranked, tight)
            if places is None:
                return None, order
            height = height_of(task, places)
            if best is None or height < lowest:
                best, lowest, name = places, height, order + (", tightest gap" if tight else "")
            if lowest <= enough:
                return best, name
    return best, name


def placer(task: Problem) -> Callable[[Sequence[int], bool], list[int] | None]:
    """A function that places items in a given order; None where pinned items overlap."""
    counts = [len(item.spans) for item in task.items]
    first_span = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    spans = np.array([span for item in task.items for span in item.spans], dtype=np.int64).reshape(-1, 2)
    owner = np.repeat(np.arange(len(task.items)), counts)
    size = np.array([item.size for item in task.items], dtype=np.int64)
    apart: dict[int, list[int]] = {}
    for a, b in task.apart:
        apart.setdefault(a, []).append(b)
        apart.setdefault(b, []).append(a)

    def place(order: Sequence[int], tight: bool) -> list[int] | None:
        at = np.full(len(task.items), -1, dtype=np.int64)
        done_first = np.empty(len(spans), dtype=np.int64)
        done_end, done_owner = np.empty_like(done_first), np.empty_like(done_first)
        done = 0
        pinned = [i for i in order if task.items[i].pin >= 0]
        for i in [*pinned, *(i for i in order if task.items[i].pin < 0)]:
            own = spans[first_span[i] : first_span[i + 1]]
            hit = np.zeros(done, dtype=bool)
            for low, high in own:
                hit |= (done_first[:done] < high) & (done_end[:done] > low)
            others = np.unique(done_owner[:done][hit])
            if i in apart:
                others = np.union1d(others, [o for o in apart[i] if at[o] >= 0]).astype(np.int64)
            item = task.items[i]
            if item.pin >= 0:
                if np.any((at[others] < item.pin + item.size) & (at[others] + size[others] > item.pin)):
                    return None
                at[i] = item.pin
            else:
                at[i] = _lowest(at[others], at[others] + size[others], item.size, item.alignment, tight)
            done_first[done : done + len(own)] = own[:, 0]
            done_end[done : done + len(own)] = own[:, 1]
            done_owner[done : done + len(own)] = owner[first_span[i] : first_span[i + 1]]
            done += len(own)
        return [int(v) for v in at]

    return place


def _lowest(low: Ints, high: Ints, size: int, alignment: int, tight: bool) -> int:
    """The lowest (or tightest) free place of ``size`` among busy ranges."""
    if not len(low) or not size:
        return 0
    order = np.argsort(low, kind="stable")
    starts = low[order]
    tops = np.maximum.accumulate(high[order])
    floors = np.concatenate(([0], tops))
    floors = -(-floors // alignment) * alignment
    room = starts - floors[:-1]
    fits = np.nonzero(room >= size)[0]
    if not len(fits):
        return int(floors[-1])
    return int(floors[fits[np.argmin(room[fits])] if tight else fits[0]])
