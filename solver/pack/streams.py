"""Which buffers stay, which are fetched again, from where, and on which memory each step computes.

In: a ``Flow``. Out: the fastest schedule found, a lower bound, and what LRU, Belady and a benefit-per-byte greedy
come to. Every candidate is judged by the replay in tiers.py; small problems are searched through, others locally.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import networkx as nx

from adaflex.errors import TableError
from adaflex.solver.pack.files import MemoryProblem
from adaflex.solver.pack.tiers import Decisions, Flow, Gap, Level, Schedule, check_flow, levels_for, simulate, uses_of

EXHAUSTIVE = 2000  # combinations of decisions up to which all are replayed
NEVER = 1 << 60


@dataclass(frozen=True)
class Streamed:
    """The best schedule found, a bound of the total time (equal where proven), and the policies compared with."""

    best: Schedule
    bound_ns: int
    policies: tuple[tuple[str, int], ...]


def stream(
    flow: Flow, *, time_limit_s: float = 5.0, rounds: int = 400, seed: int = 0, most: int = EXHAUSTIVE
) -> Streamed:
    """The fastest schedule found: all decisions where they are few, else the best policy improved step by step.

    Raises ``TableError`` where a figure makes no sense or nothing was found that fits.
    """
    check_flow(flow)
    deadline = time.perf_counter() + time_limit_s
    options = options_of(flow)
    known = {name: made for name, choice in policies(flow) if (made := simulate(flow, choice)) is not None}
    best = min(known.values(), key=rank, default=None)
    bound = lower_bound(flow)
    count = math.prod(len(row) for row in options)
    if count <= most:
        for choice in every(flow, options):
            made = simulate(flow, choice)
            best = made if made is not None and (best is None or rank(made) < rank(best)) else best
    else:
        rng = random.Random(seed)
        best = best or _any(flow, options, rounds, rng)
        best = best and _improved(flow, best, options, (deadline, rounds, bound, rng))
    if best is None:
        raise TableError("no schedule was found in which every buffer has a place; give some store more capacity")
    bound = best.total_ns if count <= most else min(bound, best.total_ns)
    return Streamed(best, bound, tuple((name, made.total_ns) for name, made in known.items()))


def flow_of(problem: MemoryProblem) -> Flow:
    """The flow of a problem with operators and stores; ``TableError`` where a name is unknown or memory is missing."""
    if not problem.operators or not problem.stores or problem.capacity_bytes is None:
        raise TableError("streaming needs operators, at least one store and capacity_bytes of working memory")
    index = {buffer.id: number for number, buffer in enumerate(problem.buffers)}
    levels = {store.name: number for number, store in enumerate(problem.stores, 1)}
    homes = dict(problem.homes)
    for op in problem.operators:
        for name in (*op.reads, *op.writes):
            if name not in index:
                raise TableError(f"operator {op.id!r} uses unknown buffer {name!r}")
    for what, name, known in (
        *((f"operator {op.id!r}", name, levels) for op in problem.operators for name, _ in op.elsewhere),
        *((f"the home of buffer {buffer!r}", name, levels) for buffer, name in problem.homes),
        *(("homes", buffer, index) for buffer, _ in problem.homes),
    ):
        if name not in known:
            raise TableError(f"{what} names unknown {'store' if known is levels else 'buffer'} {name!r}")
    stores = tuple(
        Level(s.name, s.capacity_bytes, s.bandwidth or ((1, s.bytes_per_second),), s.latency_ns) for s in problem.stores
    )
    return Flow(
        tuple(
            tuple(
                op.time_ns if not level else dict(op.elsewhere).get(stores[level - 1].name)
                for level in range(len(stores) + 1)
            )
            for op in problem.operators
        ),
        tuple(tuple(index[name] for name in op.reads) for op in problem.operators),
        tuple(tuple(index[name] for name in op.writes) for op in problem.operators),
        tuple(buffer.size_bytes for buffer in problem.buffers),
        tuple(levels.get(homes.get(buffer.id, ""), len(stores)) for buffer in problem.buffers),
        (Level("working memory", problem.capacity_bytes), *stores),
    )


def rank(made: Schedule) -> tuple[int, int]:
    """Faster is better, then less traffic."""
    return made.total_ns, made.traffic_bytes


def gaps_of(flow: Flow) -> list[Gap]:
    """Every buffer before every use but its first."""
    return [(b, k) for b, steps in enumerate(uses_of(flow)) for k in range(1, len(steps))]


def options_of(flow: Flow) -> list[tuple[int, ...]]:
    """The levels each step may compute on, then those each gap may lie on."""
    steps = [tuple(levels_for(flow, step)) for step in range(len(flow.reads))]
    caps = [level.capacity_bytes for level in flow.levels]
    return steps + [
        tuple(level for level, cap in enumerate(caps) if cap is None or flow.sizes[buffer] <= cap)
        for buffer, _ in gaps_of(flow)
    ]


def every(flow: Flow, options: Sequence[tuple[int, ...]]) -> Iterator[Decisions]:
    """All decisions there are."""
    for picked in itertools.product(*options):
        yield decided(flow, picked)


def decided(flow: Flow, picked: Sequence[int]) -> Decisions:
    """Decisions from one level per step and gap."""
    steps = len(flow.reads)
    return Decisions(tuple(picked[:steps]), tuple(zip(gaps_of(flow), picked[steps:], strict=True)))


def _any(flow: Flow, options: Sequence[tuple[int, ...]], rounds: int, rng: random.Random) -> Schedule | None:
    """Some schedule that fits, where no policy does."""
    tried = (simulate(flow, decided(flow, [rng.choice(row) for row in options])) for _ in range(rounds))
    return next((made for made in tried if made is not None), None)


def _improved(
    flow: Flow, best: Schedule, options: Sequence[tuple[int, ...]], limits: tuple[float, int, int, random.Random]
) -> Schedule:
    """Change one to three decisions at a time as long as the replay gets faster."""
    deadline, rounds, bound, rng = limits
    free = [number for number, row in enumerate(options) if len(row) > 1]
    for _ in range(rounds * max(1, len(free) // 8) if free else 0):
        if best.total_ns <= bound or time.perf_counter() > deadline:
            break
        picked = [*best.decisions.places, *(level for _, level in best.decisions.lies)]
        for number in rng.sample(free, min(len(free), rng.choice((1, 1, 2, 3)))):
            picked[number] = rng.choice([level for level in options[number] if level != picked[number]])
        made = simulate(flow, decided(flow, picked))
        if made is not None and rank(made) < rank(best):
            best = made
    return best


def lower_bound(flow: Flow) -> int:
    """No schedule is faster: all compute after the first fetch; and each link moves what can only be used above it."""
    least = [min(t for t in times if t is not None) for times in flow.compute_ns]
    leads = [
        time + max((_path_ns(flow, b, flow.home[b], place) for b in flow.reads[0]), default=0)
        for place, time in enumerate(flow.compute_ns[0] if flow.reads else ())
        if time is not None
    ]
    found = [min(leads, default=0) + sum(least[1:])]
    written = {b for writes in flow.writes for b in writes}
    for link in range(1, len(flow.levels)):
        forced = [
            (flow.levels[link].time_of(flow.sizes[b]), min(least[step] for step in steps))
            for b, steps in enumerate(uses_of(flow))
            if steps and b not in written and flow.home[b] >= link and all(_above(flow, s, link) for s in steps)
        ]
        found.append(sum(took for took, _ in forced) + min((after for _, after in forced), default=0))
    return max(found)


def _above(flow: Flow, step: int, link: int) -> bool:
    """Whether a step can only run above a link."""
    return all(time is None for time in flow.compute_ns[step][link:])


def _path_ns(flow: Flow, buffer: int, one: int, other: int) -> int:
    links = range(min(one, other) + 1, max(one, other) + 1)
    return sum(flow.levels[link].time_of(flow.sizes[buffer]) for link in links)


def policies(flow: Flow) -> Iterator[tuple[str, Decisions]]:
    """What is commonly done, each with every step as near to the top as it can run; and least execution and traffic."""
    places = tuple(levels_for(flow, step)[0] for step in range(len(flow.reads)))
    length = {gap: uses[gap[1]] - uses[gap[1] - 1] for gap in gaps_of(flow) for uses in [uses_of(flow)[gap[0]]]}
    shortest = sorted(length, key=lambda gap: (length[gap], gap))
    for rule in ("lru", "belady"):
        kept = evicted(flow, rule)
        yield rule, placed(flow, places, [gap for gap in shortest if gap in kept])
    yield "benefit per byte", placed(flow, places, shortest)
    yield "keep nothing", placed(flow, places, [])
    for level in range(1, len(flow.levels)):
        if any(times[level] is not None for times in flow.compute_ns):
            yield f"least work with {flow.levels[level].name}", placed(flow, least_work(flow, level)[1], shortest)


def evicted(flow: Flow, rule: str) -> set[Gap]:
    """The gaps LRU or Belady (farthest next use) keep on the first level: when it is full the rule names who goes."""
    uses, most = uses_of(flow), flow.levels[0].capacity_bytes
    inside: dict[int, int] = {}  # buffer -> step of its last use
    numbers = [0] * len(flow.sizes)
    kept: set[Gap] = set()
    for step, (reads, writes) in enumerate(zip(flow.reads, flow.writes, strict=True)):
        now = dict.fromkeys((*reads, *writes))
        for buffer in now:
            if buffer in inside:
                kept.add((buffer, numbers[buffer]))
            inside[buffer] = step
            numbers[buffer] += 1
        for buffer in [b for b in inside if b not in now and numbers[b] >= len(uses[b])]:
            del inside[buffer]
        while most is not None and sum(flow.sizes[b] for b in inside) > most and len(inside) > len(now):
            idle = [b for b in inside if b not in now]
            far = {b: next((s for s in uses[b] if s > step), NEVER) for b in idle}
            del inside[min(idle, key=lambda b: inside[b]) if rule == "lru" else max(idle, key=lambda b: (far[b], b))]
    return kept


def placed(flow: Flow, places: Sequence[int], wanted: Iterable[Gap]) -> Decisions:
    """Wanted gaps stay where they are used while there is room, in order; others lie on the next level with room."""
    uses, written = uses_of(flow), {b for writes in flow.writes for b in writes}
    held = [[0] * len(flow.reads) for _ in flow.levels]

    def add(buffer: int, level: int, steps: Iterable[int]) -> None:
        for step in steps:
            held[level][step] += flow.sizes[buffer]

    for buffer, steps in enumerate(uses):
        if steps and buffer not in written:
            add(buffer, flow.home[buffer], range(len(flow.reads)))
        for step in steps:
            if buffer in written or places[step] != flow.home[buffer]:
                add(buffer, places[step], [step])

    def room(buffer: int, level: int, steps: Iterable[int]) -> bool:
        most = flow.levels[level].capacity_bytes
        return most is None or all(held[level][step] + flow.sizes[buffer] <= most for step in steps)

    first = list(wanted)
    lies: dict[Gap, int] = {}
    for gap in dict.fromkeys((*first, *gaps_of(flow))):
        buffer, number = gap
        low, high = uses[buffer][number - 1], uses[buffer][number]
        start = places[low] + (0 if gap in set(first) else 1)
        for level in (*range(min(start, len(flow.levels) - 1), len(flow.levels)), *range(start - 1, -1, -1)):
            if buffer not in written and level == flow.home[buffer]:
                over: list[int] = []
            else:
                over = [s for s in range(low, high + 1) if s not in (low, high) or places[s] != level]
            if room(buffer, level, over):
                add(buffer, level, over)
                lies[gap] = level
                break
        else:
            lies[gap] = len(flow.levels) - 1
    return Decisions(tuple(places), tuple((gap, lies[gap]) for gap in gaps_of(flow)))


def least_work(flow: Flow, level: int) -> tuple[float, tuple[int, ...]]:
    """Places on the first level or ``level`` of least execution plus traffic between them: a minimum cut.

    Capacities are not looked at and every buffer crosses at most once each way (ZeRO-Offload's data-flow cut).
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(("top", "below"))
    for step, times in enumerate(flow.compute_ns):
        top, below = times[0], times[level]
        graph.add_edge("top", step, capacity=math.inf if below is None else below)
        graph.add_edge(step, "below", capacity=math.inf if top is None else top)
    written = {b: step for step, writes in enumerate(flow.writes) for b in writes}
    for buffer in range(len(flow.sizes)):
        readers = [step for step, reads in enumerate(flow.reads) if buffer in reads]
        cost = _path_ns(flow, buffer, 0, level)
        up, down, maker = ("up", buffer), ("down", buffer), written.get(buffer, "below" if flow.home[buffer] else "top")
        graph.add_edge(up, maker, capacity=cost)
        graph.add_edge(maker, down, capacity=cost)
        for reader in readers:
            graph.add_edge(reader, up, capacity=math.inf)
            graph.add_edge(down, reader, capacity=math.inf)
    cost, (above, _) = nx.minimum_cut(graph, "top", "below")
    return float(cost), tuple(0 if step in above else level for step in range(len(flow.reads)))
