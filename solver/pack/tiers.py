"""Buffers on several memories, replayed: what decisions cost in time. This is the truth; nothing here searches.

In: a ``Flow`` (steps, buffers, memories, links) and ``Decisions``: on which memory each step computes, and where each
buffer lies between two of its uses. Out: a ``Schedule`` with every transfer, or None where something does not fit.

Rules. Steps run one after the other. A step needs its buffers on the memory it computes on; what lies elsewhere is
copied there, link by link, in order of steps, one transfer at a time per link and direction. A copy may start as many
steps early as there is room for it. What is written is dirty: to lie elsewhere it is copied out, into steps with room.
An input keeps its place in its home memory, so dropping it is free. Results stay where they are made.
"""

from __future__ import annotations

from dataclasses import dataclass

from adaflex.errors import TableError

Gap = tuple[int, int]  # buffer, number (from 1) of the use before which it lies there


@dataclass(frozen=True)
class Level:
    """A memory and its link to the one above. Level 0 is the fastest and has no link."""

    name: str
    capacity_bytes: int | None = None
    bandwidth: tuple[tuple[int, int], ...] = ((1, 1_000_000_000),)  # (request bytes, bytes per second), ascending
    latency_ns: int = 0

    def time_of(self, size: int) -> int:
        """Nanoseconds of one transfer: latency, and the speed of the largest listed request not above ``size``."""
        fitting = [speed for request, speed in self.bandwidth if request <= size]
        return self.latency_ns + -(-size * 10**9 // (fitting[-1] if fitting else self.bandwidth[0][1]))


@dataclass(frozen=True)
class Flow:
    """Steps in order: ``reads[k]`` and ``writes[k]`` are indices of buffers, ``compute_ns[k][l]`` its time on level l.

    None where a step cannot run on a level. ``home`` is the level of each input; what a step writes has none.
    """

    compute_ns: tuple[tuple[int | None, ...], ...]
    reads: tuple[tuple[int, ...], ...]
    writes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    home: tuple[int, ...]
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Decisions:
    """The level each step computes on, and the level each buffer lies on before each use but its first."""

    places: tuple[int, ...]
    lies: tuple[tuple[Gap, int], ...]


@dataclass(frozen=True)
class Transfer:
    """One copy over one link (named by its lower level): which buffer, for which step, begin and end."""

    buffer: int
    step: int
    begin_ns: int
    end_ns: int
    link: int = 1
    down: bool = False


@dataclass(frozen=True)
class Schedule:
    """What the replay says of some decisions."""

    total_ns: int
    stall_ns: int
    traffic_bytes: int
    decisions: Decisions
    transfers: tuple[Transfer, ...]
    peaks: tuple[int, ...]  # bytes held on each level at its busiest step
    step_begins: tuple[int, ...]
    step_ends: tuple[int, ...]

    @property
    def peak_bytes(self) -> int:
        """Of the fastest memory."""
        return self.peaks[0]


def uses_of(flow: Flow) -> list[list[int]]:
    """Steps that write or read each buffer, ascending."""
    found: list[list[int]] = [[] for _ in flow.sizes]
    for step, (reads, writes) in enumerate(zip(flow.reads, flow.writes, strict=True)):
        for buffer in dict.fromkeys((*reads, *writes)):
            found[buffer].append(step)
    return found


def levels_for(flow: Flow, step: int) -> list[int]:
    """The levels on which a step can run and that hold what it reads and writes."""
    held = sum(flow.sizes[b] for b in {*flow.reads[step], *flow.writes[step]})
    caps = [level.capacity_bytes for level in flow.levels]
    times = flow.compute_ns[step]
    return [k for k, cap in enumerate(caps) if times[k] is not None and (cap is None or held <= cap)]


def check_flow(flow: Flow) -> None:
    """Raise ``TableError`` where a figure makes no sense or some step cannot run."""
    if not len(flow.compute_ns) == len(flow.reads) == len(flow.writes) or len(flow.sizes) != len(flow.home):
        raise TableError("a flow needs times, reads and writes for each step, a size and a home for each buffer")
    for level in flow.levels[1:]:
        if not level.bandwidth or min(speed for _, speed in level.bandwidth) <= 0 or level.latency_ns < 0:
            raise TableError(f"store {level.name!r} needs a positive bandwidth and a latency of at least 0")
    if min((*flow.sizes, *(t for times in flow.compute_ns for t in times if t is not None), 0)) < 0:
        raise TableError("a flow has a negative size or time")
    written: set[int] = set()
    for step, (reads, writes) in enumerate(zip(flow.reads, flow.writes, strict=True)):
        if written & set(writes) or set(reads) & set(writes) or any(b in r for b in writes for r in flow.reads[:step]):
            raise TableError(f"step {step} writes a buffer that was read or written before; give it one of its own")
        written |= set(writes)
        fits = levels_for(flow, step)
        if not fits:
            held = sum(flow.sizes[b] for b in {*reads, *writes})
            raise TableError(f"step {step} needs {held} bytes at once, more than any memory it can run on holds")


class Replay:
    """The state of one replay: bytes held by level and step, when links are free, when copies are there."""

    def __init__(self, flow: Flow, decisions: Decisions) -> None:
        self.flow, self.places = flow, decisions.places
        self.lies = dict(decisions.lies)
        self.uses = uses_of(flow)
        self.steps = len(flow.reads)
        self.written = {b for writes in flow.writes for b in writes}
        self.held = [[0] * self.steps for _ in flow.levels]
        self.free = {(link, down): 0 for link in range(1, len(flow.levels)) for down in (False, True)}
        self.transfers: list[Transfer] = []
        self.begins: list[int] = []
        self.ends: list[int] = []
        self.there: dict[tuple[int, int], int] = {}  # (buffer, level) -> when its copy is complete
        self.gates = [0] * (self.steps + 1)  # earliest begin of each step: what leaves must be gone by then

    def hold(self) -> bool:
        """Count what the decisions hold on each level; whether all of it fits."""
        flow = self.flow
        spans: set[tuple[int, int, int]] = set()  # (buffer, level, step)
        for buffer, steps in enumerate(self.uses):
            fixed = flow.home[buffer] if steps and buffer not in self.written else -1
            spans |= {(buffer, fixed, step) for step in range(self.steps) if fixed >= 0}
            for number, step in enumerate(steps):
                spans.add((buffer, self.places[step], step))
                if number:
                    level = self.lies[buffer, number]
                    spans |= {(buffer, level, k) for k in range(steps[number - 1], step + 1)}
        for buffer, level, step in spans:
            self.held[level][step] += flow.sizes[buffer]
        return all(self._fits(level, step, 0) for level in range(len(flow.levels)) for step in range(self.steps))

    def _fits(self, level: int, step: int, size: int) -> bool:
        most = self.flow.levels[level].capacity_bytes
        return most is None or self.held[level][step] + size <= most

    def move(self, buffer: int, step: int, path: tuple[int, int], ready: int) -> int:
        """Copy a buffer from one level to another, link after link; returns when it is there."""
        source, target = path
        down = target > source
        links = range(source + 1, target + 1) if down else range(source, target, -1)
        for link in links:
            begin = max(ready, self.free[link, down])
            ready = begin + self.flow.levels[link].time_of(self.flow.sizes[buffer])
            self.free[link, down] = ready
            self.transfers.append(Transfer(buffer, step, begin, ready, link, down))
        return ready

    def source_of(self, buffer: int, number: int, place: int) -> int:
        """Where a use takes its buffer from: where it lies, or its home where that is nearer."""
        lies = self.lies[buffer, number] if number else self.flow.home[buffer]
        if buffer in self.written or abs(lies - place) <= abs(self.flow.home[buffer] - place):
            return lies
        return self.flow.home[buffer]

    def fetch(self, buffer: int, number: int, step: int) -> int:
        """Bring a buffer to where a step computes; returns when it is there."""
        place = self.places[step]
        source = self.source_of(buffer, number, place)
        ready = self.there.get((buffer, source), 0)
        if source == place:
            return ready
        last = self.uses[buffer][number - 1] if number else -1
        first = step
        size = self.flow.sizes[buffer]
        while first - 1 > last and self._fits(place, first - 1, size):
            first -= 1
            self.held[place][first] += size
        opened = max(self.ends[first - 1] if first else 0, self.gates[first])
        arrival = self.move(buffer, step, (source, place), max(ready, opened))
        self.there[buffer, place] = arrival
        return arrival

    def leave(self, buffer: int, number: int, step: int) -> None:
        """After use ``number``: bring the buffer to where it lies until the next one, if it is not there already."""
        if number + 1 >= len(self.uses[buffer]):
            return
        place, target = self.places[step], self.lies[buffer, number + 1]
        was = self.lies.get((buffer, number), -1)
        clean = buffer not in self.written
        if target in (place, was) or (clean and target == self.flow.home[buffer]):
            return
        done = self.move(buffer, step, (place, target), self.ends[step])
        self.there[buffer, target] = done
        until = step
        while until + 1 < self.steps and self._fits(place, until + 1, self.flow.sizes[buffer]):
            if self.ends[step] + self._computed(step, until + 1) >= done:
                break
            until += 1
            self.held[place][until] += self.flow.sizes[buffer]
        self.gates[until + 1] = max(self.gates[until + 1], done)

    def _computed(self, step: int, until: int) -> int:
        """Compute time of the steps between, the least that passes."""
        return sum(self.flow.compute_ns[k][self.places[k]] or 0 for k in range(step + 1, until))

    def run(self) -> None:
        """Replay all steps."""
        clock = 0
        for step, (reads, writes) in enumerate(zip(self.flow.reads, self.flow.writes, strict=True)):
            numbers = {b: self.uses[b].index(step) for b in (*reads, *writes)}
            ready = max((self.fetch(b, numbers[b], step) for b in dict.fromkeys(reads)), default=0)
            begin = max(clock, ready, self.gates[step])
            clock = begin + (self.flow.compute_ns[step][self.places[step]] or 0)
            self.begins.append(begin)
            self.ends.append(clock)
            for buffer in writes:
                self.there[buffer, self.places[step]] = clock
            for buffer in dict.fromkeys((*reads, *writes)):
                self.leave(buffer, numbers[buffer], step)


def simulate(flow: Flow, decisions: Decisions) -> Schedule | None:
    """Replay decisions; None where a step cannot run where it should, or some level holds too much."""
    places = decisions.places
    if any(flow.compute_ns[step][place] is None for step, place in enumerate(places)):
        return None
    replay = Replay(flow, decisions)
    if not replay.hold():
        return None
    replay.run()
    busy = sum(flow.compute_ns[step][place] or 0 for step, place in enumerate(places))
    total = max([0, *replay.ends])
    traffic = sum(flow.sizes[t.buffer] for t in replay.transfers)
    peaks = tuple(max(row, default=0) for row in replay.held)
    return Schedule(
        total,
        total - busy,
        traffic,
        decisions,
        tuple(replay.transfers),
        peaks,
        tuple(replay.begins),
        tuple(replay.ends),
    )


def chrome_trace(flow: Flow, schedule: Schedule) -> list[dict[str, object]]:
    """Events for a trace viewer: compute on one row, each link's directions on others (microseconds)."""
    rows: list[tuple[str, int, int, int]] = [
        (f"step {step}", 0, begin, end)
        for step, (begin, end) in enumerate(zip(schedule.step_begins, schedule.step_ends, strict=True))
    ]
    rows += [(f"buffer {t.buffer}", 2 * t.link - 1 + t.down, t.begin_ns, t.end_ns) for t in schedule.transfers]
    return [
        {"name": name, "ph": "X", "pid": 0, "tid": row, "ts": begin / 1e3, "dur": (end - begin) / 1e3}
        for name, row, begin, end in rows
    ]
