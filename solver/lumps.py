"""Branches on the few choices that are large beside the gap, as skipping a whole block is, before all others.

In: a live program without a staging ring and the duals of its LP. Out: an ``Answer`` for the whole program. The LP
takes a twentieth of a skip where a budget is a little short; once the skips are whole, what is left is a knapsack of
many small choices, whose LP is all but exact. First how many are taken is decided, then which.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from adaflex.solver.branching import WHOLE, better, is_settled, least_sure, several, whole
from adaflex.solver.model import INFINITE, Row
from adaflex.solver.sift import Run, solve_sifted
from adaflex.solver.solve import Answer, Duals, Live

SHARE = 0.7  # of the time, for the tree; the rest for the program as it stands


@dataclass(order=True)
class Node:
    """A part of the program: how many of the large choices are taken, some of them decided, and the LP there."""

    bound: float
    number: int
    least: float = field(compare=False)
    most: float = field(compare=False)
    held: tuple[tuple[int, float], ...] = field(compare=False)
    part: Duals = field(compare=False)


@dataclass
class Tree:
    """The open nodes and the best plan so far."""

    live: Live
    run: Run
    large: NDArray[np.int64]
    count: int  # the row that counts them
    best: Answer | None = None
    queue: list[Node] = field(default_factory=list)
    settled: float = INFINITE  # least bound of nodes that are done
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def enter(self, least: float, most: float, held: Sequence[tuple[int, float]]) -> None:
        """Make the live program the one of a node."""
        self.live.set_limits(self.count, least, most)
        low, high = np.zeros(len(self.large)), self.live.program.upper[self.large].copy()
        places = {int(column): place for place, column in enumerate(self.large)}
        for column, value in held:
            low[places[column]] = high[places[column]] = value
        self.live.set_many(self.large, low, high)

    def push(self, least: float, most: float, held: tuple[tuple[int, float], ...], bound: float) -> None:
        """Open a node unless nothing fits in it; one whose LP does not finish keeps its parent's ``bound``."""
        self.enter(least, most, held)
        part = self.live.relax(time_limit=max(0.1, self.run.left))
        if part is not None:
            heapq.heappush(self.queue, Node(max(bound, part.value), next(self.numbers), least, most, held, part))
        elif not self.live.lp_infeasible():
            self.settled = min(self.settled, bound)

    def split(self, node: Node) -> bool:
        """Open the two parts of a node; False where its LP takes every large choice wholly or not at all."""
        values = node.part.values[self.large]
        total = float(values.sum())
        if abs(total - round(total)) > WHOLE:
            self.push(node.least, math.floor(total), node.held, node.bound)
            self.push(math.ceil(total), node.most, node.held, node.bound)
            return True
        column = least_sure(node.part.values, self.large)
        if column < 0:
            return False
        for value in (0.0, 1.0):
            self.push(node.least, node.most, (*node.held, (column, value)), node.bound)
        return True

    def offer(self, answer: Answer) -> None:
        """Keep an answer's plan if it is the best."""
        self.best = better(self.best, answer)

    def settled_by(self, bound: float) -> bool:
        """Whether nothing worth at least ``bound`` is better than the best plan by more than the gap."""
        return is_settled(self.best, bound, self.run.gap)


def large_choices(live: Live, duals: Duals, run: Run) -> NDArray[np.int64]:
    """Choices over several sites that are worth more than the gap; none where the LP takes them all wholly."""
    costs, _ = live.program.objectives[live.objective]
    wide = several(live.program)
    worth = np.abs(costs[wide]) > max(run.gap, 1e-9) * abs(duals.value)
    found = wide[worth & (live.high[wide] > live.low[wide])]
    return found if least_sure(duals.values, found) >= 0 else found[:0]


def solve_by_lumps(live: Live, duals: Duals, run: Run, start: Sequence[int] | None) -> Answer:
    """Lowest bound first: decide how many large choices, then which; then the small ones, many at a time."""
    large = large_choices(live, duals, run)
    if not len(large):
        return solve_sifted(live, duals, run, start)
    begin = time.perf_counter()
    count = live.add_row(Row("large choices", large, np.ones(len(large)), 0.0, float(len(large))))
    share = replace(run, deadline=begin + SHARE * run.left)
    tree = Tree(live, share, large, count)
    tree.queue.append(Node(duals.value, next(tree.numbers), 0.0, float(len(large)), (), duals))
    while tree.queue and share.left > 0.1 and not tree.settled_by(tree.queue[0].bound):
        node = heapq.heappop(tree.queue)
        if not tree.split(node):
            _solve(tree, node, start)
    tree.enter(0.0, float(len(large)), ())
    bound = min([tree.settled, *(node.bound for node in tree.queue)])
    found = whole(tree.best, bound, run.gap, time.perf_counter() - begin)
    if found.status in ("optimal", "infeasible") or tree.settled_by(bound):
        return found
    taken = start if found.values is None else np.nonzero(found.values[: live.program.choices] > 0.5)[0].tolist()
    answer = solve_sifted(live, duals, run, taken)
    if answer.status == "infeasible":
        return answer
    tree.offer(answer)
    bound = max(bound, -INFINITE if answer.bound is None else answer.bound)
    return whole(tree.best, bound, run.gap, time.perf_counter() - begin)


def _solve(tree: Tree, node: Node, start: Sequence[int] | None) -> None:
    """Solve a node: with its LP's large choices first, then, where that is not near enough, with all that it allows."""
    values = np.round(node.part.values[tree.large])
    held = tuple((int(column), float(value)) for column, value in zip(tree.large, values, strict=True))
    for fixed in (held, node.held):
        tree.enter(node.least, node.most, fixed)
        limit = time.perf_counter() + min(tree.run.left, max(0.5, 0.3 * tree.run.left))
        run = replace(tree.run, deadline=limit, gap=0.5 * tree.run.gap)
        part = node.part if fixed == node.held else tree.live.relax(time_limit=run.left)
        answer = solve_sifted(tree.live, part, run)
        tree.offer(answer)
        if tree.settled_by(node.bound):
            break
    else:
        if answer.status == "infeasible":
            return
        node = replace(node, bound=max(node.bound, -INFINITE if answer.bound is None else answer.bound))
    tree.settled = min(tree.settled, node.bound)
