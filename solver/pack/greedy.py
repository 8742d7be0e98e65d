"""Greedy packing: a portfolio of orders, each item at the lowest place (or the tightest gap) that is free for its life.

In: ``Buffer``s. Out: a valid ``Packing``, the best of the portfolio, with the live-bytes bound. Deterministic; no
compiler needed. search.py goes on from here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from adaflex.solver.pack.columns import Ints
from adaflex.solver.pack.packing import Packing, PackStatus
from adaflex.solver.pack.problem import (
    Problem,
    busiest,
    fullest,
    height_of,
    live_sums,
    offsets_of,
    problem,
)
from adaflex.solver.table import Buffer

CLOSE = 4000  # items up to which all pairs that overlap are listed beforehand
FEW = 100  # neighbours on average below which lists are faster than arrays
ORDERS = (
    "size", "area", "length", "contention", "size,length", "length,size",
    "contention,size", "contention,area", "area,size", "first", "end", "spread",
    "given", "plain size", "neighbours", "neighbours*size", "arrival",
)  # fmt: skip


def pack(
    buffers: Sequence[Buffer],
    *,
    capacity: int | None = None,
    alignment: int = 1,
    separate: Sequence[tuple[str, str]] = (),
) -> Packing:
    """Offsets for ``buffers`` by the best of seventeen orders and two fits.

    Status ``optimal`` where the height equals the bound, ``fits`` where a capacity was given and it is held,
    ``infeasible`` where the bound is above it, else ``packed`` (``unknown`` with a capacity). Sizes and offsets in
    bytes, steps half open. Raises ``TableError`` for buffers that make no sense.
    """
    begin = time.perf_counter()
    task = problem(buffers, alignment=alignment, separate=separate)
    bound = task.lower_bound
    places, name = portfolio(task, bound if capacity is None else max(bound, capacity))
    return packing_of(task, places, (bound, capacity), method=f"greedy by {name}", seconds=time.perf_counter() - begin)


def packing_of(
    task: Problem,
    places: Sequence[int] | Ints | None,
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
    most, worst, live = fullest(task) if task.sections else (0, 0, task.lead[:0])
    ends = np.where(task.size > 0, np.maximum(task.pin, 0) + task.size, 0)
    if most <= capacity < ends.max(initial=0):
        item = int(np.argmax(ends > capacity))
        kind = "is pinned to end at" if task.pin[item] >= 0 else "needs"
        return task.names([item]), f"buffer {task.name(item)!r} {kind} {ends[item]} bytes, more than {capacity}"
    live = live[np.argsort(-task.size[live], kind="stable")]
    hold = "hold" if most == task.size[live].sum() else "stacked at their alignments hold"
    text = f"at step {task.times[worst]} {len(live)} buffers live {hold} {most} bytes"
    return task.names(live), f"{text}, {most - capacity} more than {capacity}"


def ordered(task: Problem, names: Sequence[str] = ORDERS) -> Iterator[tuple[str, Ints]]:
    """The items in each of the orders named, made when asked for; ties by index."""
    size = task.size
    low, high = task.hull
    first, end = (task.times[low], task.times[high]) if len(task.times) else (low, high)
    length = task.per_item(task.times[task.run_high] - task.times[task.run_low])
    area = size.astype(np.float64) * length
    sections = task.per_item(task.run_high - task.run_low)
    begun = np.concatenate(([0], np.cumsum(np.bincount(low, minlength=task.sections + 1))))
    ended = np.cumsum(np.bincount(high, minlength=task.sections + 1))
    degree = begun[high] - ended[low] - 1  # items that are live with it
    most: Ints | None = None
    for name in names:
        if (name == "balanced" or "contention" in name) and most is None:
            most = busiest(task, live_sums(task))
        by: dict[str, Callable[[Ints], list[Ints | NDArray[np.float64]]]] = {
            "size": lambda m: [-size, first], "area": lambda m: [-area, first], "length": lambda m: [-length, first],
            "contention": lambda m: [-m, -size, first], "size,length": lambda m: [-size, -length],
            "length,size": lambda m: [-length, -size], "contention,size": lambda m: [-m, -size, -length],
            "contention,area": lambda m: [-m, -area], "area,size": lambda m: [-area, -size],
            "first": lambda m: [first, -size], "end": lambda m: [-end, -size], "spread": lambda m: [first - end, -area],
            "given": lambda m: [0 * size], "plain size": lambda m: [-size], "neighbours": lambda m: [-degree, -size],
            "neighbours*size": lambda m: [-degree * size, -size], "arrival": lambda m: [first],
            "balanced": lambda m: [-size * np.sqrt(sections) * (m / max(1, m.max(initial=1))) ** 8.0],
        }  # fmt: skip
        yield name, np.lexsort(by[name](size if most is None else most)[::-1])


def portfolio(task: Problem, enough: int) -> tuple[list[int] | None, str]:
    """The lowest packing over all orders and fits; stops at a height of at most ``enough``."""
    place = placer(task)
    best: list[int] | None = None
    name = ""
    lowest = -1
    for order, ranked in ordered(task):
        for tight in (False, True):
            places = place(ranked.tolist(), tight)
            if places is None:
                return None, order
            height = height_of(task, places)
            if best is None or height < lowest:
                best, lowest, name = places, height, order + (", tightest gap" if tight else "")
            if lowest <= enough:
                return best, name
    return best, name


def neighbours(task: Problem) -> Callable[[int], Ints]:
    """A function that gives the items that must not share bytes with an item: live with it, or kept apart from it."""
    owner = np.repeat(np.arange(task.count), np.diff(task.run_start))
    apart: dict[int, list[int]] = {}
    for a, b in task.apart:
        apart.setdefault(a, []).append(b)
        apart.setdefault(b, []).append(a)

    def near(i: int) -> Ints:
        hit = np.zeros(task.count, dtype=bool)
        for low, high in task.spans[i]:
            hit[owner[(task.run_low < high) & (task.run_high > low)]] = True
        hit[apart.get(i, [])] = True
        hit[i] = False
        return np.flatnonzero(hit)

    if task.count > CLOSE:
        return near
    every = [near(i) for i in range(task.count)]
    return every.__getitem__


def placer(task: Problem) -> Callable[[Sequence[int], bool], list[int] | None]:
    """A function that places items in a given order; None where pinned items overlap."""
    near = neighbours(task)
    size, step, pin = task.size.tolist(), task.alignment.tolist(), task.pin.tolist()
    pinned = [i for i in range(task.count) if pin[i] >= 0]
    few = task.count <= CLOSE and sum(len(near(i)) for i in range(task.count)) < FEW * task.count
    lists = [near(i).tolist() for i in range(task.count)] if few else []

    def place(order: Sequence[int], tight: bool) -> list[int] | None:
        at, top = [-1] * task.count, [-1] * task.count
        at_, top_ = np.array(at, dtype=np.int64), np.array(top, dtype=np.int64)
        for i in [*pinned, *order]:
            if at[i] >= 0:
                continue  # pinned, and placed before the others
            if few:
                busy = sorted([(at[j], top[j]) for j in lists[i] if at[j] >= 0])
            else:
                others = near(i)
                others = others[at_[others] >= 0]
                others = others[np.argsort(at_[others], kind="stable")]
                busy = list(zip(at_[others].tolist(), top_[others].tolist(), strict=True))
            if pin[i] >= 0 and any(low < pin[i] + size[i] and high > pin[i] for low, high in busy):
                return None
            at[i] = pin[i] if pin[i] >= 0 else lowest_gap(busy, size[i], step[i], tight)
            top[i] = at[i] + size[i]
            at_[i], top_[i] = at[i], top[i]
        return at

    return place


def lowest_gap(busy: Sequence[tuple[int, int]], size: int, step: int, tight: bool) -> int:
    """The lowest (or tightest) free place of ``size`` beside busy ranges, which ascend."""
    top, best, room = 0, -1, -1
    if not size:
        return 0
    for low, high in busy:
        at = top if step == 1 else -(-top // step) * step
        if low - at >= size and (not tight or best < 0 or low - at < room):
            best, room = at, low - at
            if not tight:
                return at
        if high > top:
            top = high
    return best if best >= 0 else -(-top // step) * step
