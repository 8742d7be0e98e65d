"""Solves networks: exact reductions, prices and a bound, an annealed search, and the program where it is small enough.

In: a ``Network``, a judge that says what a complete choice really costs, limits. Out: ``Found``: the best choice the
judge accepted and a bound of the network. The bound and the search take turns until the time is up or they meet.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from adaflex.solver.pairwise.bound import Ascent, ascent, fix
from adaflex.solver.pairwise.network import Network
from adaflex.solver.pairwise.program import COST, exceeded, program_of, room_rows
from adaflex.solver.pairwise.reduce import simplify
from adaflex.solver.pairwise.walk import NOTHING, Walk
from adaflex.solver.solve import Live

DIRECT = 120_000  # allowed entries of all tables up to which the program is worth its time
ROWS = 300  # rows of the room that a program begins with at most
FIRST_SWEEPS = 30
STARTS = (1.0, 0.7, 1.0, 1.5, 1.0, 3.0)  # times the best prices
SPREAD = 0.5  # of a start's prices
CLOSE_TURNS = 24  # of search where the bound cannot rise any more
WALKED = 100  # moves for every choice there is: where there are few, more walks find nothing else
Judge = Callable[[Sequence[int]], float | None]  # what a choice costs; None: not allowed


@dataclass(frozen=True)
class Setting:
    """A way to search. Heats are in units of the cost per node."""

    share: float
    most: int
    hot: float
    cold: float


SETTINGS = (  # chosen on one contest instance (V); the turns rank them anew on each problem
    Setting(1.0, 12, 2.5, 0.1),
    Setting(0.0, 40, 12.0, 0.03),
    Setting(0.3, 40, 12.0, 0.3),
    Setting(0.0, 40, 60.0, 0.03),
    Setting(0.3, 30, 0.3, 0.003),
    Setting(0.0, 6, 0.05, 0.001),
)


@dataclass(frozen=True)
class Patience:
    """When to stop: a deadline on ``time.perf_counter``; ``rounds`` of searching for answers that repeat."""

    deadline: float
    rounds: int | None = None
    solver: bool = True

    @property
    def left(self) -> float:
        """Seconds left."""
        return max(0.0, self.deadline - time.perf_counter())


@dataclass
class Found:
    """The best known choice and the best bound; ``status`` as everywhere."""

    judge: Judge
    choice: tuple[int, ...] | None = None
    value: float = math.inf
    bound: float = -math.inf
    open_nodes: int = 0
    whole: bool = True  # all costs are whole numbers: nothing short of equality is a proof
    slack: float = 0.0  # by how much the judge may round up

    def offer(self, whole: Sequence[int]) -> None:
        """Keep a complete choice if the judge accepts it and it costs less."""
        value = self.judge(whole)
        if value is not None and value < self.value:
            self.choice, self.value = tuple(whole), value

    @property
    def closed(self) -> bool:
        """Whether nothing better can exist."""
        return self.bound >= self.value if self.whole else self.near

    @property
    def near(self) -> bool:
        """Whether value and bound are as close as floating point can tell them apart."""
        return math.isfinite(self.value) and self.bound >= self.value - self.slack - 2e-9 * abs(self.value)

    @property
    def status(self) -> str:
        """What is known."""
        if self.choice is None:
            return "infeasible" if self.bound == math.inf else "unknown"
        return "optimal" if self.closed else "feasible"


def solve(net: Network, judge: Judge, patience: Patience, *, whole_costs: bool = True, slack: float = 0.0) -> Found:
    """The best choice for a network; ``net`` is changed. ``whole_costs``: all costs are whole numbers; ``slack``: by
    how much the judge may round up.
    """
    found = Found(judge, whole=whole_costs, slack=slack)
    begin = time.perf_counter()
    if not simplify(net, begin + 0.35 * patience.left):
        found.bound = math.inf
        return found
    found.open_nodes = len(net.open)
    if not net.open:
        found.offer(net.complete({}))
        found.bound = net.constant
        return found
    state = ascent(net)
    search = Searching(net, state, found)
    search.first(patience)
    state = search.state = ascent(net, _cap(net, state, found))
    close = 0  # turns since nothing more can be proven
    possible = math.prod(float(len(net.cost[i])) for i in net.open)  # choices for all nodes; inf: very many
    tried = math.inf  # entries of the smallest program tried
    for number in itertools.count():
        _climb(net, state, found, patience, whole_costs)
        if found.closed or patience.left < 0.02:
            break
        if number in (0, 3) or number % 8 == 7:
            tried = _program(net, state, found, (patience, whole_costs, tried))
            if found.closed or found.bound == math.inf:
                break
        if number == patience.rounds:
            break
        search.turn(patience)
        close += found.near
        if found.closed or close > CLOSE_TURNS or search.moves > WALKED * possible:
            break
    return found


def _cap(net: Network, state: Ascent, found: Found) -> float:
    """What may stand for forbidden without drowning the bound in rounding."""
    if math.isfinite(found.value):
        return max(2.0 * (found.value - net.floor()), 1e-9 * abs(found.value), 1e-300)
    return max(100.0 * abs(state.best), 1e-3 * net.largest(), 1.0)


def _climb(net: Network, state: Ascent, found: Found, patience: Patience, whole: bool) -> None:
    left = patience.left
    target = found.value if math.isfinite(found.value) else state.best + net.constant + 0.3 * abs(state.best)
    sweeps = 300 if patience.rounds is None else 100
    state.climb(time.perf_counter() + 0.1 * left, sweeps, target - net.constant)
    found.bound = max(found.bound, _proven(state.best + net.constant, found, whole))


def _proven(bound: float, found: Found, whole: bool) -> float:
    """A bound less what rounding may have added to it, rounded up where costs are whole."""
    if not math.isfinite(bound):
        return bound
    bound -= 1e-9 * abs(bound) + 1e-6 * whole
    return min(float(math.ceil(bound)) if whole else bound, found.value)


def _program(net: Network, state: Ascent, found: Found, limits: tuple[Patience, bool, float]) -> float:
    """Forbid what cannot be in a better plan; solve the program of what is left where that is small.

    Returns its size.
    """
    patience, whole, tried = limits
    rest = net.copy()
    if math.isfinite(found.value):
        for _ in range(FIRST_SWEEPS):
            state.sweep(state.best_prices)
        touched = fix(rest, state, found.value)
        if touched and not simplify(rest, time.perf_counter() + 0.2 * patience.left):
            found.bound = found.value
            return 0.0
    size = rest.entries()
    if not rest.open or not patience.solver or size > DIRECT or size > 0.8 * tried:
        if not rest.open:
            found.offer(rest.complete({}))
            found.bound = max(found.bound, _proven(min(rest.constant, found.value), found, whole))
        return min(size, tried)
    _solve_program(rest, found, time.perf_counter() + 0.3 * patience.left, whole)
    return size


def _solve_program(rest: Network, found: Found, deadline: float, whole: bool) -> None:
    """Solve with few of the room's rows, then with those the answer exceeds too; each time the bound is one of all."""
    count = len(rest.room)
    program, columns = program_of(rest, np.arange(count) if count <= ROWS else np.zeros(0, dtype=np.int64))
    live = Live(program, COST, reference=found.value if math.isfinite(found.value) else None)
    while time.perf_counter() < deadline:
        start = rest.trace(found.choice) if found.choice is not None else None
        taken = columns.taken(start) if start else None
        answer = live.solve(time_limit=deadline - time.perf_counter(), start=taken)
        if answer.status == "infeasible":
            found.bound = found.value  # infinite where nothing is known
        elif answer.bound is not None:
            found.bound = max(found.bound, _proven(answer.bound, found, whole))
        if answer.values is None or found.closed:
            return
        chosen = columns.chosen(answer.values)
        more = exceeded(rest, chosen, ROWS // 10)
        if not len(more):
            found.offer(rest.complete(chosen))
            found.bound = min(found.bound, found.value)
            if answer.bound is not None:
                found.bound = max(found.bound, _proven(answer.bound, found, whole))
            return
        for row in room_rows(rest, columns, more):
            live.add_row(row)


@dataclass
class Searching:
    """Turns of the search by settings; those that did best so far get more of them, and longer ones."""

    net: Network
    state: Ascent
    found: Found
    results: dict[Setting, float] = field(default_factory=dict)
    speed: float = 0.0  # moves per second
    turns: int = 0
    moves: int = 0  # of all walks

    def first(self, patience: Patience) -> None:
        """Some sweeps, and a plan made from the choices met on the way."""
        for _ in range(FIRST_SWEEPS):
            self.state.sweep(self.state.prices)
            self.state.best = max(self.state.best, self.state.bound)
            if patience.left <= 0:
                break
        self._run(Setting(1.0, 12, 0.0, 0.0), 2 * len(self.net.open), 0.2 * patience.left, self._rounded())

    def turn(self, patience: Patience) -> None:
        """One walk; its length grows with the number of turns."""
        ranked = sorted(self.results, key=lambda s: self.results[s])
        untried = [s for s in SETTINGS if s not in self.results]
        pick = untried[0] if untried else ranked[0] if self.turns % 2 else SETTINGS[self.turns // 2 % len(SETTINGS)]
        self.turns += 1
        moves = int(10 * len(self.net.open) * 1.15**self.turns) + 1000
        start = self._known() if self.turns % 2 or pick.hot < 1.0 else self._fresh(patience)
        value = self._run(pick, moves, patience.left, start)
        self.results[pick] = min(value, self.results.get(pick, math.inf))

    def _fresh(self, patience: Patience) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """The best of a few choices met at prices around the best ones, each walked on for a while."""
        rng = np.random.default_rng(self.turns)
        best, lowest = self._rounded(), math.inf
        for factor in STARTS:
            if patience.left < 0.02:
                break
            noise = np.exp(SPREAD * rng.standard_normal(len(self.state.best_prices)))
            self.state.sweep(factor * noise * self.state.best_prices)
            start = self._rounded()
            value = self._run(SETTINGS[0], 10 * len(self.net.open), 0.1 * patience.left, start)
            if value < lowest:
                best, lowest = start, value
        return best

    def _rounded(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return self.state.chosen.copy()

    def _known(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        known = self.net.trace(self.found.choice) if self.found.choice is not None else None
        if known is None:
            return self._rounded()
        return np.array([known[i] for i in self.state.flat.nodes], dtype=np.int32)

    def _run(
        self, how: Setting, moves: int, seconds: float, start: np.ndarray[tuple[int], np.dtype[np.int32]]
    ) -> float:
        size = len(self.net.open)
        unit = abs(self.found.value if math.isfinite(self.found.value) else self.state.best) / size
        begin = time.perf_counter()
        if self.speed:
            moves = max(1, min(moves, int(self.speed * seconds)))
        self.moves += moves
        walk = Walk(1 + self.turns, 4 * size, moves, how.most, how.hot * unit, how.cold * unit, how.share, seconds)
        value = self.state.core.search(self.state.own(self.state.best_prices), start, walk)
        self.speed = moves / max(time.perf_counter() - begin, 1e-6)
        if value < NOTHING:
            self.found.offer(self.net.complete({i: int(s) for i, s in zip(self.state.flat.nodes, start, strict=True)}))
        return value
