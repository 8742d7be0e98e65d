"""The packing core in Python: the same searches as core.cpp, node by node, where there is no compiler.

In: a ``Problem``. Out: a ``Twin`` with ``greedy`` and ``search`` like core.py's ``Core``. Slower by two orders of
magnitude; with a node limit it gives the same places.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from adaflex.solver.pack.columns import Ints
from adaflex.solver.pack.core import ALL_RULES, FOUND, LIMIT, NICHE, NONE, RULES, common_unit
from adaflex.solver.pack.greedy import lowest_gap, placer
from adaflex.solver.pack.problem import Problem

MASK = (1 << 64) - 1
SLOTS = 1 << 16


def mix(x: int) -> int:
    """Scatters a number over 64 bits (the last step of splitmix64)."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


class Twin:
    """A problem held for searching; sizes, alignments and pins are divided by their common unit."""

    def __init__(self, task: Problem) -> None:
        self.task = task
        self.unit = common_unit(task)
        self.count = task.count
        self.sections = task.sections
        self.size: list[int] = (task.size // self.unit).tolist()
        self.align: list[int] = [max(1, step // self.unit) for step in task.alignment.tolist()]
        self.pin: list[int] = [pin // self.unit if pin > 0 else pin for pin in task.pin.tolist()]
        self.runs = task.spans
        self.hull = [(runs[0][0], runs[-1][1]) if runs else (0, 0) for runs in self.runs]
        self.weight = [1] * task.sections
        self.linked = False
        self._place: Callable[[Sequence[int], bool], list[int] | None] | None = None

    def greedy(
        self, order: Sequence[int] | Ints, tight: bool, seconds: float = 1e9, below: int = 1 << 61
    ) -> list[int] | None:
        """Places in bytes, items taken in ``order``; None where pinned items overlap."""
        if self._place is None:
            self._place = placer(self.task)
        return self._place(np.asarray(order).tolist(), tight)

    def sweep(self) -> list[int]:
        """Places in bytes by one sweep over time, as core.py's: each item in the lowest gap when its life begins."""
        task = self.task
        places: list[int] = np.maximum(task.pin, 0).tolist()
        kept = {i for pair in task.apart for i in pair}
        base = int((task.pin + task.size)[task.pin >= 0].max(initial=0))
        free = [i for i in range(self.count) if task.pin[i] < 0 and (self.hull[i][0] < self.hull[i][1] or i in kept)]
        free.sort(key=lambda i: -1 if i in kept else self.hull[i][0])
        ends: list[tuple[int, int, int]] = []
        live: list[tuple[int, int]] = []  # (low, high), ascending
        for i in free:
            while ends and ends[0][0] <= self.hull[i][0]:
                _, low, high = heapq.heappop(ends)
                del live[bisect.bisect_left(live, (low, high))]
            size = int(task.size[i])
            at = lowest_gap([(0, base), *live] if base else live, size, int(task.alignment[i]), False)
            places[i] = at
            bisect.insort(live, (at, at + size))
            if i not in kept:
                heapq.heappush(ends, (self.hull[i][1], at, at + size))
        return places

    def reset(self) -> None:
        """Forget which sections failed before."""
        self.weight = [1] * self.sections

    def link(self) -> None:
        """Neighbours, members of sections and obstacles: only the search needs them."""
        if self.linked:
            return
        self.linked = True
        self.nogoods: dict[int, int] = {}  # keys of parts known to have no packing, by their low bits
        self.section_key = [mix(s) | 1 for s in range(self.sections)]
        self.item_key = [
            mix(mix(mix(size) ^ low) ^ high) for size, (low, high) in zip(self.size, self.hull, strict=True)
        ]
        self.members: list[list[int]] = [[] for _ in range(self.sections)]
        self.pins_of: list[list[tuple[int, int]]] = [[] for _ in range(self.sections)]
        live: list[list[int]] = [[] for _ in range(self.sections)]
        for i, runs in enumerate(self.runs):
            for low, high in runs:
                for s in range(low, high):
                    live[s].append(i)
                    if self.pin[i] < 0:
                        self.members[s].append(i)
                    else:
                        self.pins_of[s].append((self.pin[i], self.pin[i] + self.size[i]))
        near: list[set[int]] = [set() for _ in range(self.count)]
        for together in live:
            for i in together:
                near[i].update(together)
        for a, b in self.task.apart:
            near[a].add(b)
            near[b].add(a)
        self.neighbours = [sorted(j for j in near[i] if j != i and self.pin[j] < 0) for i in range(self.count)]
        self.obstacles = [
            sorted((self.pin[j], self.pin[j] + self.size[j]) for j in near[i] if j != i and self.pin[j] >= 0)
            for i in range(self.count)
        ]
        for pins in self.pins_of:
            pins.sort()

    def lift(self, i: int, low: int) -> int:
        """The lowest place of item ``i`` at or above ``low`` that avoids pinned items."""
        step = self.align[i]
        at = -(-low // step) * step
        for start, end in self.obstacles[i]:
            if at < end and at + self.size[i] > start:
                at = -(-end // step) * step
        return at

    def search(
        self, rank: Sequence[int], capacity: int, nodes: int, seconds: float = 1e9, rules: int = ALL_RULES
    ) -> tuple[int, list[int], int]:
        """(FOUND, NONE or LIMIT; places in bytes; nodes used) for a packing within ``capacity`` bytes."""
        self.link()
        run = _Search(self, rank, (min(capacity // self.unit, 1 << 61), nodes, time.perf_counter() + seconds), rules)
        result = run.run()
        return result, [at * self.unit for at in run.at] if result == FOUND else [], run.nodes


class _Search:
    """One depth-first search; the fields and steps are those of ``Search`` in core.cpp."""

    def __init__(self, of: Twin, rank: Sequence[int], limits: tuple[int, int, float], rules: int) -> None:
        self.of, self.rank, self.rules = of, rank, rules
        self.capacity, self.limit, self.deadline = limits
        self.nodes = 0
        self.step = 1 if rules & RULES["weights"] else 0
        if of.task.apart:
            self.rules &= ~RULES["split"]
        self.at = [pin if pin >= 0 else -1 for pin in of.pin]
        self.low = [of.lift(i, 0) if of.pin[i] < 0 else 0 for i in range(of.count)]
        self.floor = [0] * of.sections
        self.total = [0] * of.sections
        self.cross = [0] * (of.sections + 1)
        self.trail: list[tuple[list[int], int, int]] = []
        self.has_pins = any(pin >= 0 for pin in of.pin)
        for i in range(of.count):
            if of.pin[i] < 0:
                for low, high in of.runs[i]:
                    for s in range(low, high):
                        self.total[s] += of.size[i]
                for b in range(of.hull[i][0] + 1, of.hull[i][1]):
                    self.cross[b] += 1
        self.twin = self.find_twins() if self.rules & RULES["twins"] and not of.task.apart else [-1] * of.count

    def find_twins(self) -> list[int]:
        of, found = self.of, [-1] * self.of.count
        groups: dict[object, list[int]] = defaultdict(list)
        for i in range(of.count):
            if of.pin[i] < 0:
                groups[of.size[i], of.align[i], of.runs[i]].append(i)
        for group in groups.values():
            group.sort(key=lambda i: self.rank[i])
            for before, i in itertools.pairwise(group):
                found[i] = before
        return found

    def run(self) -> int:
        free = [i for i in range(self.of.count) if self.of.pin[i] < 0]
        if any(self.low[i] + self.of.size[i] > self.capacity for i in free):
            return NONE
        if self.rules & RULES["sections"] and not self.sections_hold(0, self.of.sections, 0):
            return NONE
        return self.solve_parts(free, 0, self.of.sections, (-1, -1), True)

    def set(self, where: list[int], index: int, value: int) -> None:
        self.trail.append((where, index, where[index]))
        where[index] = value

    def undo(self, mark: int) -> None:
        while len(self.trail) > mark:
            where, index, before = self.trail.pop()
            where[index] = before

    def sections_hold(self, low: int, high: int, monotone: int) -> bool:
        for s in range(low, high):
            if max(self.floor[s], monotone) + self.total[s] > self.capacity:
                self.of.weight[s] += self.step
                return False
        if self.has_pins:
            for s in range(low, high):
                base = max(self.floor[s], monotone)
                above = sum(max(0, end - max(start, base)) for start, end in self.of.pins_of[s])
                if self.total[s] and base + self.total[s] + above > self.capacity:
                    return False
        return True

    def witnessed(self, low: int, high: int) -> bool:
        for s in range(low, high):
            most = self.capacity - self.total[s]
            if self.total[s] and not any(self.at[m] < 0 and self.low[m] <= most for m in self.of.members[s]):
                self.of.weight[s] += self.step
                return False
        return True

    def place(self, i: int, low: int, high: int) -> tuple[bool, bool]:
        of, at = self.of, self.low[i]
        top = at + of.size[i]
        first, last = of.hull[i]
        self.set(self.at, i, at)
        for a, b in of.runs[i]:
            for s in range(a, b):
                self.set(self.total, s, self.total[s] - of.size[i])
                self.set(self.floor, s, top)
        for b in range(first + 1, last):
            self.set(self.cross, b, self.cross[b] - 1)
        fits, raised = True, False
        for j in of.neighbours[i]:
            if self.at[j] >= 0 or self.low[j] >= top:
                continue
            raised = True
            self.set(self.low, j, of.lift(j, top))
            if self.low[j] + of.size[j] > self.capacity:
                of.weight[of.hull[j][0]] += self.step if fits else 0
                fits = False
            first, last = min(first, of.hull[j][0]), max(last, of.hull[j][1])
        if not fits:
            return False, raised
        monotone = at if self.rules & RULES["monotone"] and not self.rules & NICHE else 0
        if self.rules & RULES["sections"] and not self.sections_hold(low, high, monotone):
            return False, raised
        return not self.rules & RULES["unplaced_floor"] or self.witnessed(first, last), raised

    def solve_parts(self, items: list[int], low: int, high: int, after: tuple[int, int], split: bool) -> int:
        if not items:
            return FOUND
        borders = [low, *(b for b in range(low + 1, high) if self.cross[b] == 0), high]
        if not split or not self.rules & RULES["split"] or len(borders) == 2:
            return self.solve(items, low, high, after)
        part_of = {}
        for k in range(len(borders) - 1):
            part_of.update(dict.fromkeys(range(borders[k], borders[k + 1]), k))
        parts: list[list[int]] = [[] for _ in borders[1:]]
        for i in items:
            parts[part_of[self.of.hull[i][0]]].append(i)
        for k in sorted(range(len(parts)), key=lambda k: len(parts[k])):
            if parts[k]:
                result = self.solve(parts[k], borders[k], borders[k + 1], after)
                if result != FOUND:
                    return result
        return FOUND

    def out_of_limits(self) -> bool:
        self.nodes += 1
        return self.nodes > self.limit or (self.nodes & 31 == 0 and time.perf_counter() > self.deadline)

    def solve(self, items: list[int], low: int, high: int, after: tuple[int, int]) -> int:
        if self.rules & NICHE:
            return self.solve_niche(items, low, high)
        cut = self.capacity
        if self.rules & RULES["dominance"]:
            cut = min(cut, *(self.low[i] + self.of.size[i] for i in items))
        candidates = [
            (self.low[i], self.rank[i], i)
            for i in items
            if self.low[i] < cut and (self.low[i], self.rank[i]) >= after and not self.waits(i)
        ]
        for at, rank, i in sorted(candidates):
            result = self.attempt(i, items, (low, high), (at, rank))
            if result is not None:
                return result
        return NONE

    def waits(self, i: int) -> bool:
        return self.twin[i] >= 0 and self.at[self.twin[i]] < 0

    def attempt(self, i: int, items: list[int], within: tuple[int, int], after: tuple[int, int]) -> int | None:
        """Place ``i`` and solve the rest; None: try the next candidate."""
        if self.out_of_limits():
            return LIMIT
        low, high = within
        mark = len(self.trail)
        fits, raised = self.place(i, low, high)
        if fits:
            first, last = self.of.hull[i]
            split = any(self.cross[b] == 0 for b in range(max(low + 1, first), min(high - 1, last) + 1))
            result = self.solve_parts([j for j in items if j != i], low, high, after, split)
            if result != NONE:
                return result
        self.undo(mark)
        return NONE if self.rules & RULES["hatless"] and not raised else None

    def choose(self, items: list[int], low: int, high: int) -> int:
        count = [0] * (high - low + 1)
        for i in items:
            first, last = self.of.hull[i]
            if self.low[i] == self.floor[first]:
                count[first - low] += 1
                count[last - low] -= 1
        for k in range(1, high - low):
            count[k] += count[k - 1]
        best, best_score, a = -1, 0.0, low
        while a < high:
            if not self.total[a]:
                a += 1
                continue
            b = a + 1
            while b < high and self.total[b] and self.floor[b] == self.floor[a]:
                b += 1
            left = a == low or not self.total[a - 1] or self.floor[a - 1] > self.floor[a]
            right = b == high or not self.total[b] or self.floor[b] > self.floor[a]
            for s in range(a, b) if left and right else ():
                slack = self.capacity - self.total[s] - self.floor[s]
                score = (count[s - low] + (1 if slack > 0 else 0)) / self.of.weight[s]
                if best < 0 or score < best_score:
                    best, best_score = s, score
            a = b
        return best

    def key(self, items: list[int], low: int, high: int) -> int:
        """Stands for a part as it is: what is not placed yet, and how high the floor is where something is missing."""
        total = mix(self.capacity) + sum(self.of.item_key[i] for i in items)
        for s in range(low, high):
            if self.total[s]:
                total += (self.floor[s] + 1) * self.of.section_key[s]
        return mix(total & MASK)

    def solve_niche(self, items: list[int], low: int, high: int) -> int:
        if not self.rules & RULES["nogoods"]:
            return self.fill_niches(items, low, high)
        part = self.key(items, low, high)
        if self.of.nogoods.get(part % SLOTS) == part:
            return NONE
        result = self.fill_niches(items, low, high)
        if result == NONE:
            self.of.nogoods[part % SLOTS] = part
        return result

    def fill_niches(self, items: list[int], low: int, high: int) -> int:
        begin = len(self.trail)
        while True:
            s = self.choose(items, low, high)
            f = self.floor[s]
            members = [i for i in self.of.members[s] if self.at[i] < 0 and self.low[i] == f and not self.waits(i)]
            for i in sorted(members, key=lambda i: self.rank[i]):
                result = self.attempt(i, items, (low, high), (0, 0))
                if result == NONE:
                    self.undo(begin)
                if result is not None:
                    return result
            if self.capacity - self.total[s] - f <= 0 or not self.waste(s, f):
                self.undo(begin)
                return NONE

    def waste(self, s: int, f: int) -> bool:
        of = self.of
        self.nodes += 1
        unplaced = [j for j in of.members[s] if self.at[j] < 0]
        starts = [self.low[j] for j in unplaced if self.low[j] > f]
        for j in unplaced:
            if self.low[j] <= f:
                for k in of.neighbours[j]:
                    if self.at[k] < 0 and not of.hull[k][0] <= s < of.hull[k][1]:
                        starts.append(self.low[k] + of.size[k])
        above = min([self.capacity + 1, *starts])
        if above + self.total[s] > self.capacity:
            return False
        self.set(self.floor, s, above)
        first, last = s, s + 1
        for j in unplaced:
            if self.low[j] < above:
                self.set(self.low, j, above)
                if above + of.size[j] > self.capacity:
                    return False
                first, last = min(first, of.hull[j][0]), max(last, of.hull[j][1])
        return self.witnessed(first, last)
