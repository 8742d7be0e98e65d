"""Streaming programs: branch on what the relaxation sees badly, the skips first, then the size of the staging ring.

In: a live program with a ring column. Out: an ``Answer`` for all skips and ring sizes. Half a skip looks free to the
relaxation, a whole one leaves the link idle for a block: deciding skips raises the bound most. With the ring nearly
fixed its rows are plain knapsacks. The bound is the least over all open nodes, so nothing is left out.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from adaflex.solver.branching import WHOLE, better, is_settled, least_sure, several, whole
from adaflex.solver.model import INFINITE
from adaflex.solver.neighbourhood import polish
from adaflex.solver.prices import Bounds
from adaflex.solver.sift import Run, solve_sifted
from adaflex.solver.solve import Answer, Duals, Live

FACTORS = (0.0, 0.4, 0.7, 0.85, 0.93, 1.0, 1.08, 1.18, 1.35, 1.7, 2.5)  # of the LP's ring: first cut into intervals
LEVELS = (1.05, 1.1, 1.15, 1.2, 1.35, 1.6)  # of the LP's ring: in a little more than it integers fit easily
NARROW = 0.02  # relative width below which an interval is not cut again


@dataclass(order=True)
class Node:
    """A part of the program: some skips held at 0 or 1, the ring between two sizes, and the LP there."""

    bound: float
    number: int
    low: float = field(compare=False, default=0.0)
    high: float = field(compare=False, default=INFINITE)
    held: tuple[tuple[int, float], ...] = field(compare=False, default=())
    part: Duals | None = field(compare=False, default=None)


@dataclass
class Tree:
    """The open nodes and the best plan so far."""

    live: Live
    run: Run
    wide: NDArray[np.int64]  # choices over several sites
    groups: Sequence[Sequence[int]]
    best: Answer | None = None
    queue: list[Node] = field(default_factory=list)
    settled: float = INFINITE  # least bound of nodes that are done
    counter: Iterator[int] = field(default_factory=itertools.count)

    def push(self, low: float, high: float, held: tuple[tuple[int, float], ...], bound: float = -INFINITE) -> None:
        """Open a node unless nothing fits in it; one whose LP does not finish keeps its parent's ``bound``."""
        self.enter(low, high, held)
        part = self.live.relax(time_limit=max(0.1, self.run.left))
        if part is not None:
            heapq.heappush(self.queue, Node(max(bound, part.value), next(self.counter), low, high, held, part))
        elif not self.live.lp_infeasible():
            self.settled = min(self.settled, bound)

    def enter(self, low: float, high: float, held: Sequence[tuple[int, float]]) -> None:
        """Make the live program the one of a node."""
        fixed = dict(held)
        self.live.set_bounds(self.live.program.ring, low, high)
        for column in self.wide:
            value = fixed.get(int(column))
            most = float(self.live.program.upper[column])
            self.live.set_bounds(int(column), value or 0.0, most if value is None else value)

    def offer(self, answer: Answer) -> None:
        """Keep an answer's plan if it is the best."""
        self.best = better(self.best, answer)

    def settled_by(self, node: Node) -> bool:
        """Whether nothing open is better than the best plan by more than the gap."""
        return is_settled(self.best, node.bound, self.run.gap)


def solve_by_ring(
    live: Live,
    duals: Duals,
    run: Run,
    start: Sequence[int] | None,
    groups: Sequence[Sequence[int]] = (),
    bounds: Bounds | None = None,
) -> Answer:
    """Plans and bounds along the chain of blocks first, where there is one; then a tree.

    Lowest bound first: decide its skips, then find a plan there, then cut its ring and solve each interval.
    """
    begin = time.perf_counter()
    if float(duals.values[live.program.ring]) <= 0.0:
        return solve_sifted(live, duals, run, start)
    tree = Tree(live, run, several(live.program), groups)
    least = _along_chain(tree, bounds, duals) if bounds is not None else -INFINITE
    tree.queue.append(Node(max(duals.value, least), next(tree.counter), part=duals))
    patience = time.perf_counter() + 0.25 * run.left
    looked = False
    while tree.queue and run.left > 0.1 and not tree.settled_by(tree.queue[0]):
        node = heapq.heappop(tree.queue)
        split = undecided(node, tree.wide)
        if not looked and (split < 0 or time.perf_counter() > patience):
            looked = True
            _first(tree, node, start)
            heapq.heappush(tree.queue, node)
        elif split >= 0:
            for value in (0.0, 1.0):
                tree.push(node.low, node.high, (*node.held, (split, value)), node.bound)
        elif node.high == INFINITE and node.low == 0.0:
            assert node.part is not None
            middle = float(node.part.values[live.program.ring])
            for low, high in itertools.pairwise([*(factor * middle for factor in FACTORS), INFINITE]):
                tree.push(low, high, node.held, node.bound)
        else:
            _solve_node(tree, node)
    tree.enter(0.0, INFINITE, ())
    bound = max(least, min([tree.settled, *(node.bound for node in tree.queue)]))
    return whole(tree.best, bound, run.gap, time.perf_counter() - begin)


def _along_chain(tree: Tree, bounds: Bounds, duals: Duals) -> float:
    """Bounds by ring size, plans where they are lowest, improved block by block; returns a bound of every plan."""
    live, run = tree.live, tree.run
    live.set_bounds(live.program.ring, bounds.reach, INFINITE)
    part = live.relax(time_limit=max(0.1, run.left))
    beyond = part.value if part is not None else INFINITE if live.lp_infeasible() else -INFINITE
    bounds.improve(INFINITE, time.perf_counter() + 0.08 * run.left)
    middle = float(duals.values[live.program.ring])
    _near_levels(tree, middle, _skips(tree, bounds, duals, middle))
    tree.enter(0.0, INFINITE, ())
    if tree.best is not None:
        share = replace(run, deadline=time.perf_counter() + 0.75 * run.left)
        tree.best = polish(live, tree.best, tree.groups, share, width=6)
    target = tree.best.value if tree.best is not None and tree.best.value is not None else INFINITE
    bounds.improve(target * (1 - 0.5 * run.gap), time.perf_counter() + 0.6 * run.left)
    return min(bounds.least, beyond)


def _skips(tree: Tree, bounds: Bounds, duals: Duals, middle: float) -> tuple[tuple[int, float], ...]:
    """Skips to begin with: the LP's, rounded, or the chain's, whichever leaves the lower LP; else none."""
    if not len(tree.wide):
        return ()
    lowest = min(bounds.open, default=None)
    taken = set(bounds.plan(lowest.factors, lowest.high)) if lowest is not None else set()
    found: list[tuple[float, tuple[tuple[int, float], ...]]] = []
    for ask in (lambda c: duals.values[c] > 0.5, lambda c: c in taken):
        held = tuple((int(column), float(ask(int(column)))) for column in tree.wide)
        tree.enter(LEVELS[0] * middle, LEVELS[0] * middle, held)
        part = tree.live.relax(time_limit=max(0.1, tree.run.left))
        if part is not None:
            found.append((part.value, held))
    return min(found, default=(0.0, ()))[1]


def undecided(node: Node, wide: NDArray[np.int64]) -> int:
    """The choice over several sites that the node's LP is least sure of; -1 where all are decided."""
    return -1 if node.part is None else least_sure(node.part.values, wide)


def _solve_node(tree: Tree, node: Node) -> None:
    """Solve a node for a share of the time left; cut its ring in two where that did not settle it."""
    live, run = tree.live, tree.run
    tree.enter(node.low, node.high, node.held)
    share = Run(time.perf_counter() + min(run.left, max(0.5, 0.3 * run.left)), 0.5 * run.gap, run.nodes)
    answer = solve_sifted(live, node.part, share, _start_within(live, node, _taken(live, tree.best)))
    tree.offer(answer)
    reached = max(node.bound, answer.bound if answer.bound is not None else -INFINITE)
    if answer.status == "infeasible":
        return
    if answer.status == "optimal" or node.high - node.low <= NARROW * node.high or node.high == INFINITE:
        tree.settled = min(tree.settled, reached)
        return
    cut = (node.low + node.high) / 2 if node.low > 0 else node.high * 0.8
    for low, high in ((node.low, cut), (cut, node.high)):
        tree.push(low, high, node.held, reached)


def _first(tree: Tree, node: Node, start: Sequence[int] | None) -> None:
    """A good plan: near the LP with the node's skips and a larger ring; then block by block, all skips free."""
    live, run = tree.live, tree.run
    assert node.part is not None
    _near_levels(tree, float(node.part.values[live.program.ring]), node.held)
    if tree.best is None and start is not None:
        tree.enter(0.0, INFINITE, ())
        tree.offer(live.solve(time_limit=1.0, gap=1e6, start=start))
    tree.enter(0.0, INFINITE, ())
    if tree.best is not None:
        share = replace(run, deadline=time.perf_counter() + 0.75 * run.left)
        tree.best = polish(live, tree.best, tree.groups, share, width=6)


def _near_levels(tree: Tree, middle: float, held: tuple[tuple[int, float], ...]) -> None:
    """Plans near the LP with rings somewhat larger than its own."""
    live, run = tree.live, tree.run
    for factor in LEVELS:
        tree.enter(factor * middle, factor * middle, held)
        part = live.relax(time_limit=max(0.1, run.left))
        if part is None or run.left < 0.5:
            continue
        known = tree.best
        for kept in (2, 5, 24):
            tree.offer(near(live, part, kept, Run(time.perf_counter() + min(2.0, 0.1 * run.left), 2e-3, run.nodes)))
            if tree.best is not known:
                break


def near(live: Live, part: Duals, kept: int, run: Run) -> Answer:
    """Hold every site that the LP decides; solve for the others among ``kept`` times the choices it mixes there."""
    program = live.program
    values = part.values[: program.choices]
    reduced = np.maximum(part.reduced[: program.choices], 0.0)
    free: list[int] = []
    for row in program.rows:
        columns = row.columns
        if row.name.startswith("cover ") and float(values[columns].max()) < 1.0 - WHOLE:
            ranked = columns[np.argsort(reduced[columns], kind="stable")]
            free += ranked[: kept * int(np.sum(values[columns] > 1e-9))].tolist()
    held = np.setdiff1d(np.nonzero(live.high > live.low)[0], np.array(free, dtype=np.int64))
    low, high, fixed = live.low[held], live.high[held], np.round(values[held])
    live.set_many(held, fixed, fixed)
    answer = live.solve(time_limit=run.left, gap=run.gap, nodes=run.nodes)
    live.set_many(held, low, high)
    return answer


def _taken(live: Live, best: Answer | None) -> list[int] | None:
    if best is None or best.values is None:
        return None
    return [int(i) for i in np.nonzero(best.values[: live.program.choices] > 0.5)[0]]


def _start_within(live: Live, node: Node, start: Sequence[int] | None) -> Sequence[int] | None:
    """The known plan where it lies in the node."""
    if start is None:
        return None
    taken = set(start)
    need = 0.0
    for row in live.program.rows:
        if row.name.startswith("ring "):
            need = max(need, sum(v for c, v in zip(row.columns, row.values, strict=True) if int(c) in taken))
    fits = need <= node.high and all((column in taken) == bool(value) for column, value in node.held)
    return start if fits else None
