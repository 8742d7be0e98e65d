"""Asks the core whether a capacity suffices, again and again with varied orders, until a limit.

In: a ``Problem`` held by a core, a capacity, a ``Clock``. Out: found with places, proven impossible, or out of limits.
"""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass

import numpy as np

from adaflex.solver.pack.core import LIMIT, NICHE, RULES, Core
from adaflex.solver.pack.problem import Problem, backwards, busiest, live_sums
from adaflex.solver.pack.sums import Sums
from adaflex.solver.pack.twin import Twin

REVERSAL = RULES["reversal"]
FIRST_NODES = 2000  # of the shortest restart
FORGET = 31  # restarts after which the weights of failed sections start anew
SPREADS = (0.0, 0.3, 1.0)  # of the random factors on an order's keys


@dataclass
class Clock:
    """Limits of a search: a deadline and, for answers that do not depend on speed, nodes."""

    deadline: float
    nodes_left: int | None = None
    used: int = 0

    def over(self) -> bool:
        """Whether a limit has come."""
        return time.perf_counter() >= self.deadline or (self.nodes_left is not None and self.used >= self.nodes_left)

    def part(self, share: float) -> Clock:
        """A clock with a share of what is left, of nodes at least one: who asks again and again comes to an end."""
        left = max(0.0, self.deadline - time.perf_counter())
        nodes = None if self.nodes_left is None else max(1, int((self.nodes_left - self.used) * share))
        return Clock(time.perf_counter() + left * share, nodes)


@dataclass
class Asker:
    """Asks the core whether a capacity suffices, with one varied order after the other."""

    task: Problem
    core: Core | Twin
    plain: bool
    seed: int
    rules: int
    sums: Sums | None = None  # of the sizes as they are

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        task = self.task
        length = np.maximum(task.per_item(task.times[task.run_high] - task.times[task.run_low]), 1)
        most = busiest(task, live_sums(task))
        rows = (length, length * task.size.astype(float), task.size, most * length.astype(float))
        self.features = list(zip(*(row.tolist() for row in rows), strict=True))
        self.asked = 0
        self.mirror: Core | Twin | None = None

    def reversed(self) -> Core | Twin:
        """A core that holds the problem with time running backwards: other choices come first."""
        if self.mirror is None:
            task = backwards(self.task)
            self.mirror = Core(task, self.core.lib) if isinstance(self.core, Core) else Twin(task)
        return self.mirror

    def rank(self) -> list[int]:
        """The next order: one of four keys, its values shaken by random factors."""
        key = self.asked % 4
        spread = self.rng.choice(SPREADS) if self.asked >= 4 else 0.0
        values = [f[key] * (self.rng.lognormvariate(0.0, spread) if spread else 1.0) for f in self.features]
        rank = [0] * len(values)
        for place, i in enumerate(sorted(range(len(values)), key=lambda i: (-values[i], i))):
            rank[i] = place
        return rank

    def ask(self, capacity: int, clock: Clock) -> tuple[int, list[int]]:
        """(FOUND, NONE or LIMIT, places) for a packing within ``capacity``, until ``clock`` is over."""
        for number in itertools.count(1):
            if clock.over():
                break
            nodes = restart_nodes(len(self.features)) * luby(number)
            if clock.nodes_left is not None:
                nodes = min(nodes, clock.nodes_left - clock.used)
            niche = NICHE if self.plain and self.asked % 8 != 7 else 0
            core = self.reversed() if self.rules & REVERSAL and self.asked % 8 > 3 else self.core
            left = max(0.01, clock.deadline - time.perf_counter()) if clock.nodes_left is None else 1e9
            rules = self.rules & ~NICHE | self.rules & niche
            result, places, used = core.search(self.rank(), capacity, nodes, left, rules)
            self.asked += 1
            if self.asked % FORGET == 0:
                self.core.reset()
                if self.mirror is not None:
                    self.mirror.reset()
            clock.used += used
            if result != LIMIT:
                return result, places
        return LIMIT, []


def restart_nodes(count: int) -> int:
    """Nodes of the shortest restart: many items need some slack in their thousand decisions."""
    return FIRST_NODES + count**2 // 64


def luby(number: int) -> int:
    """1, 1, 2, 1, 1, 2, 4, ...: restart lengths that are never much worse than the best fixed ones."""
    while True:
        power = number.bit_length()
        if number == (1 << power) - 1:
            return 1 << (power - 1)
        number -= (1 << (power - 1)) - 1
