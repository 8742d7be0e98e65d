"""The core in Python, for machines without a compiler: core.cpp statement by statement, on numpy arrays.

In: ``Flat`` arrays. Out: ``Twin``, an ``Engine``: the same bounds, choices and costs as the C++ core.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from adaflex.solver.pairwise.network import Flat, Floats
from adaflex.solver.pairwise.walk import NOTHING, Chosen, Walk

MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Side:
    """An edge as one of its ends sees it."""

    other: int
    table: Floats  # [own option, the other's]
    into: Floats  # message from the other end
    out: Floats  # message to the other end


class Twin:
    """A network held as Python lists of arrays."""

    def __init__(self, flat: Flat) -> None:
        self.flat, self.count = flat, len(flat.nodes)
        lengths = np.diff(flat.start)
        self.least = np.zeros(int(flat.start[-1]))
        self.near: list[list[Side]] = [[] for _ in flat.nodes]
        self.sent: list[Floats] = []
        for e, (a, b) in enumerate(flat.ends.tolist()):
            table = flat.tables[flat.offset[e] : flat.offset[e + 1]].reshape(lengths[a], lengths[b])
            to_a, to_b = np.zeros(lengths[a]), np.zeros(lengths[b])
            self.sent += [to_a, to_b]
            self.near[a].append(Side(b, table, to_a, to_b))
            self.near[b].append(Side(a, table.T, to_b, to_a))
        self.runs: list[list[tuple[int, int, Floats]]] = [[] for _ in flat.nodes]
        used = 0
        for node, first, end in flat.spans.tolist():
            self.runs[node].append((first, end, flat.use[used : used + lengths[node]]))
            used += lengths[node]

    def passing(self, rising: bool, own: Floats, chosen: Chosen) -> float:
        """See ``Engine``."""
        bound = 0.0
        for i in range(self.count) if rising else range(self.count - 1, -1, -1):
            sides = self.near[i]
            total = own[self.flat.columns(i)].copy()
            greedy = total.copy()
            later = 0
            for side in sides:
                ahead = (side.other > i) == rising
                later += ahead
                total += side.into
                greedy += side.into if ahead else side.table[:, chosen[side.other]]
            least = float(total.min())
            bound += least
            total -= least
            self.least[self.flat.columns(i)] = total
            chosen[i] = int(greedy.argmin())
            share = 1.0 / max(later, len(sides) - later, 1)
            for side in sides:
                if (side.other > i) != rising:
                    continue
                side.out[:] = ((share * total - side.into)[:, None] + side.table).min(axis=0)
                low = float(side.out.min())
                bound += low
                side.out[:] -= low
        return bound

    def worse(self) -> Floats:
        """See ``Engine``."""
        return self.least.copy()

    def messages(self) -> Floats:
        """See ``Engine``."""
        return np.concatenate(self.sent) if self.sent else np.zeros(0)

    def search(self, priced: Floats, chosen: Chosen, walk: Walk) -> float:
        """See ``Engine``."""
        search = Search(self, priced, chosen, walk.seed)
        if not search.repair(walk.steps):
            chosen[:] = search.x
            return NOTHING
        return search.walk(walk, time.perf_counter() + walk.seconds, chosen)


class Search:
    """An annealed walk by moves of trees of nodes, never outside the rows' room."""

    def __init__(self, net: Twin, priced: Floats, chosen: Chosen, seed: int) -> None:
        self.net, self.priced, self.state = net, priced, seed
        self.x: list[int] = chosen.tolist()
        self.room = net.flat.room.copy()
        self.own = net.flat.cost
        for i in range(net.count):
            self._use(i, self.x[i], -1.0)

    def _use(self, i: int, s: int, sign: float) -> None:
        for first, end, use in self.net.runs[i]:
            self.room[first:end] += sign * use[s]

    def _set(self, i: int, s: int) -> None:
        for first, end, use in self.net.runs[i]:
            self.room[first:end] += use[self.x[i]] - use[s]
        self.x[i] = s

    def _left(self) -> float:
        return float(self.room.min(initial=NOTHING))

    def _random(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) >> 11

    def _waiting(self) -> float:
        return -math.log((self._random() + 1.0) * 2.0**-53)

    def _around(self, i: int, own: Floats, tree: dict[int, int]) -> Floats:
        costs = own[self.net.flat.columns(i)].copy()
        for side in self.net.near[i]:
            if side.other not in tree:
                costs += side.table[:, self.x[side.other]]
        return costs

    def repair(self, steps: int) -> bool:
        """Move single nodes until every row has room, the cheapest relief of the tightest row first."""
        for _ in range(steps):
            if self._left() >= 0.0:
                break
            row = int(self.room.argmin())
            best, node, option = NOTHING, -1, -1
            for i, runs in enumerate(self.net.runs):
                used = next((use for first, end, use in runs if first <= row < end), None)
                if used is None:
                    continue
                costs = self._around(i, self.priced, {})
                freed = np.minimum(used[self.x[i]] - used, -self._left())
                with np.errstate(divide="ignore"):
                    score = np.where(freed > 0.0, np.maximum(costs - costs[self.x[i]], 1e-9) / freed, NOTHING)
                s = int(score.argmin())
                if score[s] < best:
                    best, node, option = float(score[s]), i, s
            if node < 0:
                return False
            self._set(node, option)
        return self._left() >= 0.0

    def value(self) -> float:
        """What the choices cost without prices."""
        cost = 0.0
        for i, s in enumerate(self.x):
            cost += float(self.net.flat.cost[self.net.flat.start[i] + s])
            for side in self.net.near[i]:
                if side.other > i:
                    cost += float(side.table[s, self.x[side.other]])
        return cost

    def walk(self, how: Walk, deadline: float, chosen: Chosen) -> float:
        """``how.moves`` moves of trees of nodes; returns the least true cost met, its choices in ``chosen``."""
        cost = self.value()
        best = cost
        plain = self.net.flat.cost
        self.own = plain + how.share * (self.priced - plain)
        chosen[:] = self.x
        for move in range(how.moves):
            if move % 64 == 0 and time.perf_counter() > deadline:
                break
            heat = how.hot * math.pow(how.cold / how.hot, move / how.moves) if how.hot > 0.0 else 0.0
            root = self._random() % self.net.count
            tree, parent = self._grow(root, 1 + self._random() % how.most)
            fresh, plain_costs = self._decide(tree, parent, heat)
            cost += self._take(tree, parent, fresh, plain_costs, heat)
            if cost < best - 1e-9:
                best = cost
                chosen[:] = self.x
        return best

    def _grow(self, root: int, most: int) -> tuple[list[int], list[int]]:
        """A tree of nodes around ``root`` without further edges inside, in the order of joining."""
        tree, parent, border = [root], [-1], []
        hits = {root: 2}

        def reach(k: int) -> None:
            for side in self.net.near[tree[k]]:
                hits[side.other] = hits.get(side.other, 0) + 1
                if hits[side.other] == 1:
                    border.append((side.other, k))

        reach(0)
        while len(tree) < most and border:
            pick = self._random() % len(border)
            node, above = border[pick]
            border[pick] = border[-1]
            border.pop()
            if hits[node] != 1:
                continue
            hits[node] = 2
            tree.append(node)
            parent.append(above)
            reach(len(tree) - 1)
        return tree, parent

    def _up(self, tree: list[int], parent: list[int], k: int) -> Side:
        above = tree[parent[k]]
        return next(side for side in self.net.near[tree[k]] if side.other == above)

    def _decide(self, tree: list[int], parent: list[int], heat: float) -> tuple[list[int], list[Floats]]:
        """The best options of the tree's nodes at their costs plus noise, all others held; costs without noise."""
        members = {i: k for k, i in enumerate(tree)}
        plain = []
        costs: list[Floats] = []
        for i in tree:
            around = self._around(i, self.own, members)
            plain.append(around)
            noise = [heat * self._waiting() for _ in around] if heat > 0.0 else 0.0
            costs.append(around + noise)
        for k in range(len(tree) - 1, 0, -1):
            costs[parent[k]] += (costs[k][:, None] + self._up(tree, parent, k).table).min(axis=0)
        fresh: list[int] = []
        for k in range(len(tree)):
            own = costs[k] + self._up(tree, parent, k).table[:, fresh[parent[k]]] if k else costs[k]
            fresh.append(int(own.argmin()))
        return fresh, plain

    def _take(self, tree: list[int], parent: list[int], fresh: list[int], plain: list[Floats], heat: float) -> float:
        """Go there if the heat allows it and the rows have room; returns by how much the true cost changed."""
        change = truly = 0.0
        same = True
        cost, start = self.net.flat.cost, self.net.flat.start
        for k, (i, s) in enumerate(zip(tree, fresh, strict=True)):
            before = self.x[i]
            same = same and before == s
            change += float(plain[k][s]) - float(plain[k][before])
            truly += float(cost[start[i] + s]) - float(cost[start[i] + before])
            truly -= float(self.own[start[i] + s]) - float(self.own[start[i] + before])
            if k:
                table = self._up(tree, parent, k).table
                was = table[before, self.x[tree[parent[k]]]]
                change += float(table[s, fresh[parent[k]]]) - float(was)
        if same or change > (heat * self._waiting() if heat > 0.0 else 0.0):
            return 0.0
        before_all = [self.x[i] for i in tree]
        floor = min(self._left(), 0.0)
        for i, s in zip(tree, fresh, strict=True):
            self._set(i, s)
        if self._left() < floor:
            for i, s in zip(tree, before_all, strict=True):
                self._set(i, s)
            return 0.0
        return change + truly
