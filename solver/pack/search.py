"""Packing in earnest: does it fit in a capacity, and what is the least height? With proof, or with both bounds.

In: ``Buffer``s, a capacity or none, limits. Out: a ``Packing``. First the greedy portfolio, then a search restarted
with varied orders; time components are packed one by one. The question "does it fit" comes first; the least height
is found by asking it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from adaflex.solver.pack.ask import Asker, Clock
from adaflex.solver.pack.columns import Ints
from adaflex.solver.pack.core import ALL_RULES, FOUND, LIMIT, NONE, Core
from adaflex.solver.pack.greedy import ORDERS, ordered, packing_of, too_much
from adaflex.solver.pack.library import library
from adaflex.solver.pack.packing import Packing
from adaflex.solver.pack.problem import Problem, height_of, lower_bound, offsets_of, problem
from adaflex.solver.pack.twin import Twin
from adaflex.solver.table import Buffer

MANY = 1500  # items above which greedy packings are lowered by pushing items out before searching
LARGE = 30_000  # items above which only the greedy portfolio runs
LARGE_PAIRS = 60_000_000
TWIN_MOST = 250  # items above which Python only packs greedily


@dataclass
class Found:
    """What is known of one part: its best places, and the largest capacity proven too small + 1."""

    places: list[int]
    height: int
    bound: int
    methods: list[str] = field(default_factory=list)


def pack(
    buffers: Sequence[Buffer],
    *,
    capacity: int | None = None,
    alignment: int = 1,
    separate: Sequence[tuple[str, str]] = (),
    time_limit_s: float = 10.0,
    node_limit: int | None = None,
    seed: int = 0,
    native: bool = True,
    rules: int = ALL_RULES,
    joined: Sequence[tuple[str, str]] = (),
) -> Packing:
    """Pack ``buffers`` within ``capacity`` bytes, or as low as possible where it is None.

    With a capacity: ``fits`` (with offsets), ``infeasible`` (proven; ``blame`` names buffers that cannot be
    together) or ``unknown`` (valid offsets above the capacity, and the bound). Without: ``optimal`` or ``packed``.
    Pairs ``joined`` share a place as aliases do. With ``node_limit`` the answer does not depend on the machine's
    speed. Steps are half open, offsets in bytes.
    Raises ``TableError`` for buffers that make no sense.
    """
    begin = time.perf_counter()
    task = problem(buffers, alignment=alignment, separate=separate, joined=joined)
    clock = Clock(begin + time_limit_s, node_limit)
    bound = lower_bound(task)
    if capacity is not None and bound > capacity:
        names, reason = too_much(task, capacity)
        seconds = time.perf_counter() - begin
        return Packing("infeasible", (), 0, bound, capacity, names, reason, 0, seconds, "live bytes")
    how = (seed, native, rules)
    found = quick(task, capacity, bound, how) if task.count <= LARGE else None
    found = found or solve_task(task, capacity, clock, how)
    if found is None:
        return pins_clash(task, bound, capacity, time.perf_counter() - begin)
    limits = (max(bound, found.bound), capacity)
    made = packing_of(task, found.places, limits, method=found.methods[-1], seconds=0.0, nodes=clock.used)
    if capacity is not None and found.bound > capacity:
        names, reason = blame(task, capacity, clock, how)
        made = replace(made, status="infeasible", offsets=(), blame=names, reason=reason)
    return replace(made, seconds=time.perf_counter() - begin)


def pins_clash(task: Problem, bound: int, capacity: int | None, seconds: float) -> Packing:
    """The answer where two pinned buffers share bytes while both are live."""
    pair = clash(task)
    assert pair is not None
    one, other = (task.name(i) for i in pair)
    reason = f"buffers {one!r} and {other!r} are pinned so that they share bytes while both are live"
    return Packing("infeasible", (), 0, bound, capacity, (one, other), reason, 0, seconds, "pins")


def quick(task: Problem, capacity: int | None, bound: int, how: tuple[int, bool, int]) -> Found | None:
    """What one look gives: a sweep over time where there are very many items, the greedy order by size elsewhere."""
    core = engine(task, how[1])
    if task.count > LARGE:
        places = core.sweep()
        return Found(places, height_of(task, places), bound, ["sweep over time"]) if not clash(task) else None
    enough = bound if capacity is None else capacity
    tried = core.greedy(np.lexsort((task.times[task.hull[0]] if len(task.times) else task.size, -task.size)), False)
    if tried is not None and height_of(task, tried) <= enough:
        return Found(tried, height_of(task, tried), bound, ["greedy by size"])
    return None


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


def solve_task(task: Problem, capacity: int | None, clock: Clock, how: tuple[int, bool, int]) -> Found | None:
    """Solve every time component; parts that cannot matter for the height are only packed below the others."""
    if task.count > LARGE:
        return solve_large(task, capacity, clock, how)
    idle = np.where(task.idle, task.size, 0)
    whole = Found(
        np.maximum(task.pin, 0).tolist(),
        int((idle + np.maximum(task.pin, 0))[idle > 0].max(initial=0)),
        0,
        ["nothing to pack"],
    )
    groups = components(task)
    parts = [(part_of(task, members), members) for members in groups]
    parts.sort(key=lambda part: -lower_bound(part[0]))
    for number, (part, members) in enumerate(parts):
        enough = max(whole.height, lower_bound(part)) if capacity is None else capacity
        share = clock.part(1.0 / (len(parts) - number)) if number + 1 < len(parts) else clock
        found = solve_part(part, enough, capacity is None, share, how)
        clock.used += share.used if share is not clock else 0
        if found is None:
            return None
        for place, member in zip(found.places, members.tolist(), strict=True):
            whole.places[member] = place
        whole.height = max(whole.height, found.height)
        whole.bound = max(whole.bound, found.bound)
        whole.methods += found.methods
        if capacity is not None and found.bound > capacity:
            break
    return whole


def solve_large(task: Problem, capacity: int | None, clock: Clock, how: tuple[int, bool, int]) -> Found | None:
    """A sweep over time, then greedy orders as long as time lasts."""
    bound = lower_bound(task)
    found = quick(task, capacity, bound, how)
    if found is None or found.height <= (bound if capacity is None else capacity) or clock.over():
        return found
    better = greedy_portfolio(task, engine(task, how[1]), bound if capacity is None else capacity, clock, found)
    return found if better is None else better


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


def engine(task: Problem, native: bool) -> Core | Twin:
    """The C++ core where there is a compiler (and it is wanted), else its twin in Python."""
    lib = library() if native else None
    return Core(task, lib) if lib is not None else Twin(task)


def push_out(task: Problem, core: Core, found: Found, enough: int, clock: Clock) -> None:
    """Lower a packing of more items than the search can order: aim at a part of what is above the bound each time."""
    share = 0.8
    while found.height > max(enough, found.bound) and share < 0.998 and not clock.over():
        goal = max(enough, found.bound + int((found.height - found.bound) * share))
        part = clock.part(0.35)
        moves = 1 << 60 if part.nodes_left is None else part.nodes_left
        seconds = part.deadline - time.perf_counter() if part.nodes_left is None else 1e9
        places, used = core.eject(found.places, goal, moves, max(0.01, seconds))
        clock.used += used
        if places is None:
            share **= 0.4
        else:
            found.places, found.height = places, height_of(task, places)
            found.methods.append("pushing out")


def solve_part(task: Problem, enough: int, minimise: bool, clock: Clock, how: tuple[int, bool, int]) -> Found | None:
    """Pack one component to height ``enough``, or as low as it goes where ``minimise``."""
    seed, native, rules = how
    core = engine(task, native)
    found = greedy_portfolio(task, core, enough, clock.part(0.4) if task.count > MANY else clock)
    if found is None or found.height <= enough:
        return found
    if not searchable(task, core):
        return found
    rounded, step = round_sizes(task)
    if step > 1:
        core = engine(rounded, native)
    asker = Asker(rounded, core, plain(rounded), seed, rules)
    if task.count > MANY and isinstance(core, Core):
        part = clock.part(0.9)
        push_out(rounded, core, found, enough, part)
        clock.used += part.used
    if minimise:
        lower_height(task, asker, found, enough, clock, step)
    else:
        question(task, asker, found, enough, (clock, step, how))
    return found


def question(
    task: Problem, asker: Asker, found: Found, capacity: int, limits: tuple[Clock, int, tuple[int, bool, int]]
) -> None:
    """Ask whether ``capacity`` suffices; with sizes rounded up to ``step`` only the outer answers are the truth."""
    clock, step, (seed, native, rules) = limits
    if capacity % step == 0:
        ask(task, asker, found, (capacity, capacity), clock)
        return
    part = clock.part(0.4)
    ask(task, asker, found, (capacity // step * step, 0), part)
    clock.used += part.used
    if found.height > capacity:
        part = clock.part(0.4)
        ask(task, asker, found, (-(-capacity // step) * step, capacity), part)
        clock.used += part.used
    if found.bound <= capacity < found.height:
        exact = Asker(task, engine(task, native), False, seed, rules)
        ask(task, exact, found, (capacity, capacity), clock)


def searchable(task: Problem, core: Core | Twin) -> bool:
    """Whether the search can hold the problem: few enough items and overlapping pairs."""
    if isinstance(core, Twin) and task.count > TWIN_MOST:
        return False
    starts = np.bincount(task.run_low, minlength=task.sections + 1)
    live = np.cumsum(starts - np.bincount(task.run_high, minlength=task.sections + 1))
    return task.count <= LARGE and int((live * starts).sum()) <= LARGE_PAIRS


def plain(task: Problem) -> bool:
    """Whether the niche search can take it: every item one run, free, and no alignment beyond the common unit."""
    if task.apart or bool(np.any(task.alignment != task.alignment[:1])):
        return False
    one = np.diff(task.run_start) <= 1
    return bool(np.all(one & (task.pin < 0) & (task.size % task.alignment == 0)))


def round_sizes(task: Problem) -> tuple[Problem, int]:
    """Where all items share one alignment and none is pinned, sizes rounded up to it: offsets then follow."""
    if bool(np.any(task.alignment != task.alignment[:1]) or np.any(task.pin >= 0)):
        return task, 1
    step = int(task.alignment[0])
    return (task, 1) if step == 1 else (replace(task, size=-(-task.size // step) * step), step)


def greedy_portfolio(
    task: Problem, core: Core | Twin, enough: int, clock: Clock, best: Found | None = None
) -> Found | None:
    """The best of all orders and two fits (for very many items: as many as time allows); None: pins overlap."""
    bound = lower_bound(task)
    names = ["balanced", *ORDERS] if task.count > MANY else [*ORDERS, "balanced"]
    for name, order in ordered(task, names):
        for tight in (False, True):
            left = max(0.05, clock.deadline - time.perf_counter()) if best is not None else 1e9
            places = core.greedy(order, tight, left, best.height if best is not None else 1 << 61)
            if places is None and best is None:
                return None
            if places is not None:
                height = height_of(task, places)
                if best is None or height < best.height:
                    best = Found(places, height, bound, [f"greedy by {name}" + (", tightest gap" if tight else "")])
            if best is not None and (best.height <= max(enough, bound) or time.perf_counter() > clock.deadline):
                return best
    return best


def ask(task: Problem, asker: Asker, found: Found, capacities: tuple[int, int], clock: Clock) -> int:
    """Ask for one capacity (rounded up, true); improves ``found`` and returns the core's answer."""
    result, places = asker.ask(capacities[0], clock)
    if result == FOUND:
        height = height_of(task, places)
        if height < found.height:
            found.places, found.height = places, height
            found.methods.append("search")
    elif result == NONE and capacities[1] >= found.bound:
        found.bound = max(found.bound, capacities[1] + 1)
        found.methods.append("exhausted")
    return result


def lower_height(task: Problem, asker: Asker, found: Found, enough: int, clock: Clock, step: int) -> None:
    """Ask for the bound first (often feasible, and then easier than less), then for less and less below the best."""
    unit = max(step, asker.core.unit)
    drop, share = 1.0, 0.6
    while found.height > max(enough, found.bound) and not clock.over():
        low = max(found.bound, enough)
        target = found.height - max(unit, int((found.height - low) * drop) // unit * unit)
        target = max(low, min(target, found.height - 1))
        part = clock.part(share)
        result = ask(task, asker, found, (-(-target // step) * step, target), part)
        clock.used += part.used
        if result == FOUND:
            drop = min(0.5, drop * 1.5)
        elif result == LIMIT and (found.height - low) * drop <= unit:
            share = min(1.0, share * 2.0)  # one unit less is all that is left to ask
        elif result == LIMIT:
            drop /= 2.0
        share = 0.12 if drop > 0.01 and result != FOUND and share > 0.5 else max(0.12, share)


def blame(task: Problem, capacity: int, clock: Clock, how: tuple[int, bool, int]) -> tuple[tuple[str, ...], str]:
    """Buffers that cannot be packed together, none of them superfluous as far as time allowed to try."""
    if lower_bound(task) > capacity:
        return too_much(task, capacity)
    kept = list(range(task.count))
    block = max(1, len(kept) // 2)
    deadline = min(clock.deadline, time.perf_counter() + 5.0)
    while block and time.perf_counter() < deadline:
        at = 0
        while at < len(kept) and time.perf_counter() < deadline:
            trial = kept[:at] + kept[at + block :]
            part = part_of(task, np.array(trial, dtype=np.int64))
            probe = Clock(min(deadline, time.perf_counter() + 0.3), 20_000)
            found = solve_task(part, capacity, probe, how) if trial else None
            if found is not None and found.bound > capacity:
                kept = trial
            else:
                at += block
        block //= 2
    names = task.names(kept)
    return names, f"no placement of these {len(names)} buffers keeps within {capacity} bytes (exhausted)"


__all__ = ["Packing", "offsets_of", "pack"]
