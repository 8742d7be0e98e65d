"""Lowers a packing that is known: from the fullest step outward, by pushing out what is too high, by other orders.

In: a ``Problem`` held by a core, what was ``Found`` of it, a goal, a ``Clock``. Out: ``Found`` is changed in place.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from adaflex.solver.pack.ask import Clock
from adaflex.solver.pack.core import Core
from adaflex.solver.pack.problem import Problem, height_of
from adaflex.solver.pack.twin import Twin


@dataclass
class Found:
    """What is known of one part: its best places, and the largest capacity proven too small + 1."""

    places: list[int]
    height: int
    bound: int
    methods: list[str] = field(default_factory=list)


def limits_of(clock: Clock) -> tuple[int, float]:
    """(moves, seconds) that are left: one of them hardly limits."""
    if clock.nodes_left is not None:
        return clock.nodes_left - clock.used, 1e9
    return 1 << 60, max(0.01, clock.deadline - time.perf_counter())


def outward(task: Problem, core: Core | Twin, found: Found, enough: int, clock: Clock, seed: int) -> None:
    """Pack from the fullest step outward, again and again, where items are of that kind."""
    if isinstance(core, Twin) or found.height <= max(enough, found.bound) or clock.over():
        return
    goals = (max(enough, found.bound), found.height)
    places, used = core.outward(found.places, goals, limits_of(clock), seed)
    clock.used += used
    if places is not None:
        found.places, found.height = places, height_of(task, places)
        found.methods.append("outward")


def push_out(task: Problem, core: Core, found: Found, enough: int, clock: Clock) -> None:
    """Lower a packing of more items than the search can order: aim at a part of what is above the bound each time."""
    share = 0.8
    while found.height > max(enough, found.bound) and share < 0.998 and not clock.over():
        goal = max(enough, found.bound + int((found.height - found.bound) * share))
        places, used = core.eject(found.places, goal, *limits_of(clock.part(0.35)))
        clock.used += used
        if places is None:
            share **= 0.4
        else:
            found.places, found.height = places, height_of(task, places)
            found.methods.append("pushing out")


def order_search(task: Problem, core: Twin, found: Found, enough: int, clock: Clock, seed: int) -> None:
    """Lower a packing without the core: what ends highest comes earlier in the greedy order, again and again."""
    rng = random.Random(seed)
    order = sorted(range(task.count), key=lambda i: found.places[i])
    current, height = found.places, found.height
    while found.height > max(enough, found.bound) and not clock.over():
        at = {i: float(k) for k, i in enumerate(order)}
        ends = [current[i] + size for i, size in enumerate(task.size.tolist())]
        reach = height - 0.3 * (height - found.bound) * rng.random()
        late = [i for i in order if ends[i] >= reach]
        for i in rng.sample(late, min(len(late), rng.randint(1, 3))):
            at[i] = at[i] * rng.random()
        trial = sorted(order, key=at.__getitem__)
        places = core.greedy(trial, False)
        clock.used += 1
        if places is None:
            return
        now = height_of(task, places)
        if now <= height:
            order, height, current = trial, now, places
            if now < found.height:
                found.places, found.height = places, now
                found.methods.append("order search")
