"""Packing in earnest: does it fit in a capacity, and what is the least height? With proof, or with both bounds.

In: ``Buffer``s, a capacity or none, limits. Out: a ``Packing``. First the greedy portfolio, then a search restarted
with varied orders; time components are packed one by one. The question "does it fit" comes first; the least height
is found by asking it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from adaflex.solver.pack.ask import Asker, Clock, restart_nodes
from adaflex.solver.pack.at_once import pack_at_once
from adaflex.solver.pack.columns import Ints
from adaflex.solver.pack.core import ALL_RULES, FOUND, LIMIT, NONE, RULES, Core
from adaflex.solver.pack.greedy import ORDERS, ordered, packing_of, too_much
from adaflex.solver.pack.library import library
from adaflex.solver.pack.lower import Found, order_search, outward, push_out
from adaflex.solver.pack.packing import Packing, PackStatus
from adaflex.solver.pack.parts import LARGE, clash, components, pairs_of, part_of, plain, round_sizes, searchable
from adaflex.solver.pack.problem import Problem, height_of, offsets_of, problem
from adaflex.solver.pack.sums import Sums
from adaflex.solver.pack.twin import Twin
from adaflex.solver.table import Buffer

PUSHED = 250  # items above which pushing items out comes between searches
QUICK = (  # orders and fits tried first, with all else left undone
    ("plain size", False), ("neighbours*size", False), ("balanced", False), ("first", False), ("given", False),
    ("size", False), ("arrival", True), ("area", False), ("length", False), ("contention,area", False),
)  # fmt: skip
Trial = Callable[[int], list[int] | None]  # places below a height
MANY_PAIRS = 4_000_000  # pairs that overlap, above which nothing else is done
OUTWARD = 0.6  # of the time of many items
MANY = 1500  # items above which greedy packings are lowered by pushing items out before searching
TWIN_MOST = 250  # items above which Python only packs greedily


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
    first = None if not native or separate or joined else pack_at_once(buffers, capacity, alignment)
    if first is not None and first.height <= (first.bound if capacity is None else capacity):
        status: PackStatus = "optimal" if capacity is None else "fits"
        offsets, seconds = tuple(zip(first.ids, first.places, strict=True)), time.perf_counter() - begin
        return Packing(status, offsets, first.height, first.bound, capacity, seconds=seconds, method="greedy")
    task = problem(buffers, alignment=alignment, separate=separate, joined=joined)
    clock = Clock(begin + time_limit_s, node_limit)
    bound = task.lower_bound
    if capacity is not None and bound > capacity:
        names, reason = too_much(task, capacity)
        seconds = time.perf_counter() - begin
        return Packing("infeasible", (), 0, bound, capacity, names, reason, 0, seconds, "live bytes")
    how = (seed, native, rules)
    found = solve_task(task, capacity, clock, how, first.places if first else None)
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


def quick_trials(task: Problem, core: Core | Twin, enough: int) -> Iterator[Trial]:
    """Packings made fast, each asked for one below a height; the first has none only where pins overlap."""

    def greedily(order: Ints, tight: bool) -> Trial:
        return lambda below: core.greedy(order, tight, below=below)

    if task.count > MANY and isinstance(core, Core):
        places, _ = core.outward(None, (enough, 0), (1, 1e9), 0)
        if places is not None:
            yield lambda below: places
    orders = QUICK[:4] if task.count > MANY else QUICK
    for (_, tight), (_, order) in zip(orders, ordered(task, [name for name, _ in orders]), strict=True):
        yield greedily(order, tight)


def quick(task: Problem, trials: Iterable[Trial], groups: list[Ints], enough: int) -> tuple[Found | None, list[int]]:
    """The best of some trials for each group of items, and the heights of groups; None: pins overlap."""
    group_of = np.zeros(task.count, dtype=np.int64)
    for number, members in enumerate(groups):
        group_of[members] = number
    places: Ints | None = None
    heights = np.zeros(max(1, len(groups)), dtype=np.int64)
    for trial in trials:
        made = trial(int(heights[0]) if len(groups) == 1 and places is not None else 1 << 61)
        if made is None and places is None:
            return None, []
        if made is not None:
            at = np.asarray(made, dtype=np.int64)
            tops = np.zeros_like(heights)
            np.maximum.at(tops, group_of, np.where(task.size > 0, at + task.size, 0))
            better = (tops < heights) if places is not None else tops >= 0
            places = at if places is None else np.where(better[group_of], at, places)
            heights = np.where(better, tops, heights)
        if heights.max() <= enough:
            break
    assert places is not None
    return Found(places.tolist(), height_of(task, places), 0, ["greedy"]), heights.tolist()


def solve_task(
    task: Problem, capacity: int | None, clock: Clock, how: tuple[int, bool, int], places: list[int] | None = None
) -> Found | None:
    """Solve every time component; parts that cannot matter for the height are only packed below the others.

    ``places`` are known already, as good as greedy orders make them.
    """
    if task.count > LARGE:
        return solve_large(task, capacity, clock, how)
    groups = components(task)
    bound = task.lower_bound
    enough = bound if capacity is None else capacity
    trials = iter([lambda below: places]) if places else quick_trials(task, engine(task, how[1]), enough)
    whole, heights = quick(task, trials, groups, enough)
    if whole is None or whole.height <= enough:
        return whole if whole is None else replace(whole, bound=bound)
    parts = [(part_of(task, members), members, high) for members, high in zip(groups, heights, strict=False)]
    floors = [part.lower_bound for part, _, _ in parts]
    idle = int(np.where(task.idle & (task.size > 0), np.maximum(task.pin, 0) + task.size, 0).max(initial=0))
    whole.height, whole.bound = idle, idle
    order = sorted(range(len(parts)), key=lambda k: -floors[k])
    for number, k in enumerate(order):
        part, members, high = parts[k]
        enough = max(whole.height, floors[k]) if capacity is None else capacity
        if high <= enough:
            whole.height, whole.bound = max(whole.height, high), max(whole.bound, floors[k])
            continue
        share = clock.part(max(0.5, 1.0 / (len(parts) - number))) if number + 1 < len(parts) else clock
        start = Found([whole.places[i] for i in members.tolist()], high, floors[k], list(whole.methods[:1]))
        found = solve_part(part, (enough, max(bound, floors[k])), capacity is None, share, how, start)
        clock.used += share.used if share is not clock else 0
        for place, member in zip(found.places, members.tolist(), strict=True):
            whole.places[member] = place
        whole.height, whole.bound = max(whole.height, found.height), max(whole.bound, found.bound)
        whole.methods += found.methods
        if capacity is not None and found.bound > capacity:
            break
    return whole


def solve_large(task: Problem, capacity: int | None, clock: Clock, how: tuple[int, bool, int]) -> Found | None:
    """A sweep over time, then greedy orders as long as time lasts."""
    bound = task.lower_bound
    if clash(task):
        return None
    core = engine(task, how[1])
    places = core.sweep()
    found = Found(places, height_of(task, places), bound, ["sweep over time"])
    if found.height <= (bound if capacity is None else capacity) or clock.over():
        return found
    greedy_portfolio(task, core, bound if capacity is None else capacity, clock, found)
    return found


def engine(task: Problem, native: bool) -> Core | Twin:
    """The C++ core where there is a compiler (and it is wanted), else its twin in Python."""
    lib = library() if native else None
    return Core(task, lib) if lib is not None else Twin(task)


def solve_part(
    task: Problem, goals: tuple[int, int], minimise: bool, clock: Clock, how: tuple[int, bool, int], found: Found
) -> Found:
    """Pack one component, of which places are ``found``, to height ``enough``, or as low as it goes where ``minimise``.

    ``goals`` are that height, and the one below which nothing is gained for the whole.
    """
    enough, hope = goals
    seed, native, rules = how
    core = engine(task, native)
    many = task.count > MANY
    if many:
        spend(clock, OUTWARD, lambda part: outward(task, core, found, enough, part, seed))
    if task.count > PUSHED and "outward" not in found.methods:
        greedy_portfolio(task, core, enough, clock.part(0.2) if many else clock, found)
    if isinstance(core, Twin) and task.count > TWIN_MOST:
        order_search(task, core, found, enough, clock, seed)
    if found.height <= enough or (isinstance(core, Twin) and task.count > TWIN_MOST) or not searchable(task):
        return found
    rounded, step = round_sizes(task)
    if step > 1:
        core = engine(rounded, native)
    sums = Sums(task) if rules & RULES["sums"] else None
    asker = Asker(rounded, core, plain(rounded), seed, rules, sums)
    if first_words(task, asker, found, (enough, hope, step), minimise, clock):
        return found
    if not asker.plain:  # else the most bytes alive are such a sum themselves
        raise_bound(asker, found)
        if found.height <= max(enough, found.bound) or (not minimise and found.bound > enough):
            return found
    first = enough if not minimise else max(found.bound, enough)
    if task.count > PUSHED and isinstance(core, Core) and found.height > first >= found.bound:
        if not many:
            spend(clock, 0.5, lambda part: outward(task, asker.core, found, first, part, seed))
        whole = many and pairs_of(task) > MANY_PAIRS
        share = 1.0 if whole else 0.9 if many else 0.5
        spend(clock, share, lambda part: push_out(rounded, core, found, first, part))
        if whole:
            return found
    if minimise:
        lower_height(task, asker, found, enough, clock, step)
        before = -1
        while step > 1 and max(found.bound, enough) < found.height <= found.bound + step and before != found.height:
            before = found.height  # what rounding up cannot tell
            question(task, asker, found, before - 1, (clock, step, how))
    elif found.bound <= enough < found.height:
        question(task, asker, found, enough, (clock, step, how))
    return found


def raise_bound(asker: Asker, found: Found) -> None:
    """Lift the bound over heights that no sum of sizes reaches."""
    raised = asker.sums.raised(found.bound, found.height) if asker.sums is not None else found.bound
    if raised > found.bound:
        found.bound = raised
        found.methods.append("sums of sizes")


def first_words(
    task: Problem, asker: Asker, found: Found, goals: tuple[int, int, int], minimise: bool, clock: Clock
) -> bool:
    """Questions that may end it at once, for few items before all greedy orders. True: nothing is left to ask."""
    enough, hope, step = goals
    first = enough if not minimise else max(found.bound, enough)

    def over() -> bool:
        return found.height <= max(enough, found.bound) or (not minimise and found.bound > enough)

    def probe(goal: int, restarts: int) -> None:
        most = restarts * restart_nodes(task.count)
        part = Clock(clock.deadline, most if clock.nodes_left is None else min(most, clock.nodes_left - clock.used))
        ask(task, asker, found, (-(-goal // step) * step, goal), part)
        clock.used += part.used

    if task.count <= PUSHED:
        probe(first, 3)
        if not over():
            greedy_portfolio(task, asker.core, enough, clock, found)
    if not over() and not minimise and hope < enough and task.count <= MANY:
        probe(hope, 4)  # a tight goal is often met sooner than a loose one
    loose = not minimise and enough > found.bound + found.bound // 500
    if not over() and PUSHED < task.count <= MANY and not loose:
        spend(clock, 0.4, lambda part: ask(task, asker, found, (-(-first // step) * step, first), part))
    return over()


def spend(clock: Clock, share: float, work: Callable[[Clock], object]) -> None:
    """Let ``work`` have a share of what is left of a clock."""
    part = clock.part(share)
    work(part)
    clock.used += part.used


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
        exact = Asker(task, engine(task, native), False, seed, rules, asker.sums)
        ask(task, exact, found, (capacity, capacity), clock)


def greedy_portfolio(task: Problem, core: Core | Twin, enough: int, clock: Clock, found: Found) -> None:
    """Try all orders and two fits, as many as time allows."""
    bound = task.lower_bound
    names = ["balanced", *ORDERS] if task.count > MANY else [*ORDERS, "balanced"]
    for name, order in ordered(task, names):
        for tight in (False, True):
            if found.height <= max(enough, bound) or time.perf_counter() > clock.deadline:
                return
            left = max(0.05, clock.deadline - time.perf_counter())
            places = core.greedy(order, tight, left, found.height)
            if places is not None and height_of(task, places) < found.height:
                found.places, found.height = places, height_of(task, places)
                found.methods.append(f"greedy by {name}" + (", tightest gap" if tight else ""))


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
        raise_bound(asker, found)
    return result


def lower_height(task: Problem, asker: Asker, found: Found, enough: int, clock: Clock, step: int) -> None:
    """Ask for the bound first (often feasible, and then easier than less), then for less and less below the best."""
    unit = max(step, asker.core.unit)
    drop, share = 1.0, 0.6
    while found.height > max(enough, found.bound) and not clock.over():
        low = max(found.bound, enough)
        target = found.height - max(unit, int((found.height - low) * drop) // unit * unit)
        target = max(low, min(target, found.height - 1))
        if step > 1 and -(-target // step) == -(-found.height // step):
            break  # with sizes rounded up that is what is known already
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
    if task.lower_bound > capacity:
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
