"""Buffers on several memories: what stays in working memory between its uses, what is fetched again, and when.

In: steps with compute times and the buffers each reads, sizes, the link. Out: a schedule whose time the simulator
establishes, a lower bound, and what LRU, Belady and a benefit-per-byte greedy would have done. The simulator is the
truth; the search only proposes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from adaflex.errors import TableError

Gap = tuple[int, int]  # buffer, number of the use it is kept for


@dataclass(frozen=True)
class Flow:
    """Steps in order. ``reads[k]`` are indices of the buffers step k needs in working memory."""

    compute_ns: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    capacity: int
    bytes_per_second: int  # of the link from the memory below
    latency_ns: int = 0
    slow_ns: tuple[int, ...] = ()  # per buffer: extra time of a step that reads it where it lies; (): not possible


@dataclass(frozen=True)
class Transfer:
    """One fetch: which buffer, for which step, begin and end on the link."""

    buffer: int
    step: int
    begin_ns: int
    end_ns: int


@dataclass(frozen=True)
class Schedule:
    """What the simulator says of a set of kept gaps."""

    total_ns: int
    stall_ns: int
    traffic_bytes: int
    kept: frozenset[Gap]
    transfers: tuple[Transfer, ...]
    peak_bytes: int
    step_ends: tuple[int, ...]


@dataclass(frozen=True)
class Streamed:
    """The best schedule found, a bound of the total time, and the policies it was compared with."""

    best: Schedule
    bound_ns: int
    policies: tuple[tuple[str, int], ...]


def uses_of(flow: Flow) -> list[list[int]]:
    """Steps that use each buffer, ascending."""
    found: list[list[int]] = [[] for _ in flow.sizes]
    for step, reads in enumerate(flow.reads):
        for buffer in reads:
            found[buffer].append(step)
    return found


def check_flow(flow: Flow) -> None:
    """Raise ``TableError`` where some step does not fit by itself or a figure makes no sense."""
    if len(flow.compute_ns) != len(flow.reads) or flow.bytes_per_second <= 0 or flow.latency_ns < 0:
        raise TableError("a flow needs one compute time per step, a positive bandwidth and a latency of at least 0")
    if min((*flow.sizes, *flow.compute_ns, 0)) < 0:
        raise TableError("a flow has a negative size or time")
    for step, reads in enumerate(flow.reads):
        if sum(flow.sizes[b] for b in set(reads)) > flow.capacity:
            raise TableError(f"step {step} reads more than the working memory of {flow.capacity} bytes holds")


def occupancy(flow: Flow, kept: frozenset[Gap]) -> list[int]:
    """Bytes held during each step by what is read there or kept across it."""
    held = [sum(flow.sizes[b] for b in set(reads)) for reads in flow.reads]
    for buffer, steps in enumerate(uses_of(flow)):
        for number in range(1, len(steps)):
            if (buffer, number) in kept:
                for step in range(steps[number - 1] + 1, steps[number]):
                    held[step] += flow.sizes[buffer]
    return held


def simulate(flow: Flow, kept: frozenset[Gap]) -> Schedule | None:
    """Replay: fetches in order of use, each as early as there is room for it; None where the kept set does not fit."""
    held = occupancy(flow, kept)
    if max(held, default=0) > flow.capacity:
        return None
    numbers = [0] * len(flow.sizes)
    link, ends = 0, list[int]()
    transfers: list[Transfer] = []
    clock, stall = 0, 0
    order = [(step, b) for step, reads in enumerate(flow.reads) for b in dict.fromkeys(reads)]
    for place, (step, buffer) in enumerate(order):
        number = numbers[buffer]
        numbers[buffer] += 1
        if (buffer, number) not in kept:
            first = step
            while (
                first > 0
                and held[first - 1] + flow.sizes[buffer] <= flow.capacity
                and buffer not in flow.reads[first - 1]
            ):
                first -= 1
            for earlier in range(first, step):
                held[earlier] += flow.sizes[buffer]
            opened = ends[first - 1] if 0 < first <= len(ends) else 0
            link = max(link, opened)
            arrival = link + flow.latency_ns + -(-flow.sizes[buffer] * 10**9 // flow.bytes_per_second)
            transfers.append(Transfer(buffer, step, link, arrival))
            link = arrival
        if place + 1 == len(order) or order[place + 1][0] != step:
            _finish(flow, step, transfers, ends)
    while len(ends) < len(flow.compute_ns):
        ends.append((ends[-1] if ends else 0) + flow.compute_ns[len(ends)])
    clock = ends[-1] if ends else 0
    stall = clock - sum(flow.compute_ns)
    traffic = sum(flow.sizes[t.buffer] for t in transfers)
    return Schedule(clock, stall, traffic, kept, tuple(transfers), max(held, default=0), tuple(ends))


def _finish(flow: Flow, step: int, transfers: Sequence[Transfer], ends: list[int]) -> None:
    """Append the end of ``step`` (and of steps before it that read nothing)."""
    while len(ends) < step:
        ends.append((ends[-1] if ends else 0) + flow.compute_ns[len(ends)])
    ready = max((t.end_ns for t in transfers if t.step == step), default=0)
    ends.append(max(ready, ends[-1] if ends else 0) + flow.compute_ns[step])


def lower_bound(flow: Flow) -> int:
    """No schedule is faster: all compute after the first fetch, and the link moves at least what cannot be kept."""
    uses = uses_of(flow)
    once = sum(flow.sizes[b] for b, steps in enumerate(uses) if steps)
    fetches = sum(1 for steps in uses if steps)
    link = once * 10**9 // flow.bytes_per_second + flow.latency_ns * fetches
    first = min((flow.sizes[b] for b in (flow.reads[0] if flow.reads else ())), default=0)
    lead = (flow.latency_ns + first * 10**9 // flow.bytes_per_second) if flow.reads and flow.reads[0] else 0
    last = flow.compute_ns[-1] if flow.reads and flow.reads[-1] else 0
    return max(sum(flow.compute_ns) + lead, link + min(last, min(flow.compute_ns, default=0)))


def evict(flow: Flow, rule: str) -> frozenset[Gap]:
    """What LRU or Belady (farthest next use) would have kept: on a full memory the rule names who goes."""
    uses = uses_of(flow)
    inside: dict[int, int] = {}  # buffer -> step of its last use
    numbers = [0] * len(flow.sizes)
    kept: set[Gap] = set()
    for step, reads in enumerate(flow.reads):
        for buffer in dict.fromkeys(reads):
            if buffer in inside:
                kept.add((buffer, numbers[buffer]))
            inside[buffer] = step
            numbers[buffer] += 1
        for buffer in list(inside):
            if buffer not in reads and numbers[buffer] >= len(uses[buffer]):
                del inside[buffer]
        while sum(flow.sizes[b] for b in inside) > flow.capacity:
            idle = [b for b in inside if b not in reads]
            far = {b: next((s for s in uses[b] if s > step), 1 << 60) for b in idle}
            del inside[min(idle, key=lambda b: inside[b]) if rule == "lru" else max(idle, key=lambda b: (far[b], b))]
    return _fitting(flow, kept)


def _fitting(flow: Flow, wanted: set[Gap]) -> frozenset[Gap]:
    """The wanted gaps without those for which there is no room, longest gaps dropped first."""
    uses = uses_of(flow)
    found: set[Gap] = set()
    held = occupancy(flow, frozenset())
    for buffer, number in sorted(wanted, key=lambda g: (uses[g[0]][g[1]] - uses[g[0]][g[1] - 1], g)):
        between = range(uses[buffer][number - 1] + 1, uses[buffer][number])
        if all(held[step] + flow.sizes[buffer] <= flow.capacity for step in between):
            found.add((buffer, number))
            for step in between:
                held[step] += flow.sizes[buffer]
    return frozenset(found)


def benefit_per_byte(flow: Flow) -> frozenset[Gap]:
    """Keep the gaps that save most fetching per byte and step held (an XLA-like greedy)."""
    uses = uses_of(flow)
    every = {(b, k) for b, steps in enumerate(uses) for k in range(1, len(steps))}
    return _fitting(flow, every)


def stream(flow: Flow, *, time_limit_s: float = 5.0, rounds: int = 400, seed: int = 0) -> Streamed:
    """The fastest schedule found: the best policy, then gaps added and dropped as long as the replay gets faster."""
    check_flow(flow)
    deadline = time.perf_counter() + time_limit_s
    starts = {"lru": evict(flow, "lru"), "belady": evict(flow, "belady"), "benefit per byte": benefit_per_byte(flow)}
    starts["keep nothing"] = frozenset()
    made = {name: simulate(flow, kept) for name, kept in starts.items()}
    known = {name: schedule for name, schedule in made.items() if schedule is not None}
    best = min(known.values(), key=lambda s: (s.total_ns, s.traffic_bytes))
    bound = lower_bound(flow)
    rng = random.Random(seed)
    gaps = sorted({(b, k) for b, steps in enumerate(uses_of(flow)) for k in range(1, len(steps))})
    for _ in range(rounds if gaps else 0):
        if best.total_ns <= bound or time.perf_counter() > deadline:
            break
        flipped = set(rng.sample(gaps, min(len(gaps), rng.choice((1, 1, 2, 3)))))
        trial = simulate(flow, frozenset(set(best.kept) ^ flipped))
        if trial is not None and (trial.total_ns, trial.traffic_bytes) < (best.total_ns, best.traffic_bytes):
            best = trial
    return Streamed(best, bound, tuple((name, schedule.total_ns) for name, schedule in known.items()))


def chrome_trace(flow: Flow, schedule: Schedule) -> list[dict[str, object]]:
    """Events for a trace viewer: compute on one row, transfers on another (microseconds)."""
    events: list[dict[str, object]] = []
    for step, end in enumerate(schedule.step_ends):
        begin = end - flow.compute_ns[step]
        events.append(
            {
                "name": f"step {step}",
                "ph": "X",
                "pid": 0,
                "tid": 0,
                "ts": begin / 1e3,
                "dur": flow.compute_ns[step] / 1e3,
            }
        )
    for t in schedule.transfers:
        took = (t.end_ns - t.begin_ns) / 1e3
        events.append(
            {"name": f"buffer {t.buffer}", "ph": "X", "pid": 0, "tid": 1, "ts": t.begin_ns / 1e3, "dur": took}
        )
    return events
