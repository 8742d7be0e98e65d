"""Prices on the rows and the bound they prove, by passes of messages and subgradient steps; what cannot be optimal.

In: a ``Network``. Out: ``Ascent``: the best bound, prices, choices met on the way; ``fix`` forbids whatever would cost
more than a known plan. Tree-reweighted messages: Kolmogorov, "Convergent tree-reweighted message passing", 2006.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaflex.solver.pairwise.core import Engine, engine
from adaflex.solver.pairwise.network import Flat, Floats, Network, flatten
from adaflex.solver.pairwise.walk import Chosen

BIG = 1e15  # stands for forbidden where nothing better is known: too large for bounds, enough for choices
PATIENCE, COOLER, STEADY = 40, 0.75, 0.9  # sweeps without gain before steps shrink; how much of a direction is kept
LEAST_STEP = 1e-6


@dataclass
class Ascent:
    """The state of the passes. All figures without the network's constant."""

    flat: Flat
    core: Engine
    prices: Floats
    chosen: Chosen
    best_prices: Floats
    along: Floats
    bound: float = -np.inf
    best: float = -np.inf
    step: float = 0.3
    waited: int = 0

    def own(self, prices: Floats) -> Floats:
        """Costs with prices, by option."""
        return priced(self.flat, prices)

    def sweep(self, prices: Floats) -> None:
        """One pass each way at the prices; ``bound`` and ``chosen`` are of the way back."""
        own = self.own(prices)
        self.core.passing(True, own, self.chosen)
        self.bound = self.core.passing(False, own, self.chosen) - float(prices @ self.flat.room)

    def climb(self, deadline: float, sweeps: int, target: float) -> None:
        """Sweep and move the prices towards a bound of ``target``, by steps that shrink while nothing is gained."""
        for number in range(sweeps):
            self.sweep(self.prices)
            gained = not self.bound <= self.best + 1e-5 * abs(self.best)
            self.waited = 0 if gained else self.waited + 1
            if self.bound > self.best:
                self.best, self.best_prices = self.bound, self.prices.copy()
            if time.perf_counter() > deadline or self.best >= target or self.step < LEAST_STEP:
                return
            if self.waited > PATIENCE:  # back to the best prices, with smaller steps
                self.step, self.waited = self.step * COOLER, 0
                self.prices, self.along = self.best_prices.copy(), np.zeros_like(self.along)
            if number >= 3 and len(self.prices):
                self._move(target)

    def _move(self, target: float) -> None:
        """A subgradient step (Polyak's length) along a direction that keeps most of the one before."""
        room = np.maximum(self.flat.room, 1e-3 * max(float(self.flat.room.max()), 1e-300))
        over = np.clip((used_by(self.flat, self.chosen) - self.flat.room) / room, -1.0, 1.0)
        self.along = STEADY * self.along + over
        way = np.where((self.along > 0) | (self.prices > 0), self.along, 0.0)
        far = float(way @ way)
        if far:
            height = self.step * max(target - self.bound, 1e-2 * abs(target), 1e-300)
            self.prices = np.maximum(0.0, self.prices + height * way / far / room)


def ascent(net: Network, most: float = BIG, prices: Floats | None = None) -> Ascent:
    """Begin with prices of 0, or given ones.

    What costs more than ``most`` above the least of its table, or is forbidden, costs that: the bound stays below the
    truth, and the smaller ``most`` is the less is lost to rounding.
    """
    flat = flatten(net, most)
    none = np.zeros(len(flat.room))
    first = none if prices is None else prices
    return Ascent(flat, engine(flat), first, np.zeros(len(flat.nodes), dtype=np.int32), first, none.copy())


def priced(flat: Flat, prices: Floats) -> Floats:
    """Costs with what the rows used cost at these prices."""
    if not len(flat.spans):
        return flat.cost.copy()
    total = np.concatenate(([0.0], np.cumsum(prices)))
    by_run = total[flat.spans[:, 2]] - total[flat.spans[:, 1]]
    counts = np.diff(flat.start)[flat.spans[:, 0]]
    return flat.cost + np.bincount(flat.option, weights=np.repeat(by_run, counts) * flat.use, minlength=len(flat.cost))


def used_by(flat: Flat, chosen: NDArray[np.int32]) -> Floats:
    """What choices use of each row."""
    change = np.zeros(len(flat.room) + 1)
    if len(flat.spans):
        counts = np.diff(flat.start)[flat.spans[:, 0]]
        first = np.concatenate(([0], np.cumsum(counts)[:-1]))
        use = flat.use[first + chosen[flat.spans[:, 0]]]
        np.add.at(change, flat.spans[:, 1], use)
        np.add.at(change, flat.spans[:, 2], -use)
    return np.cumsum(change)[:-1]


def fix(net: Network, state: Ascent, most: float) -> set[int]:
    """Forbid what alone would make a plan cost more than ``most`` (exact: no plan of at most that is lost).

    Returns the nodes touched. A pass proves a bound from minima; taking one option, or one pair of options, leaves of
    each minimum what the option is above it.
    """
    flat = state.flat
    touched = set()
    for rising in (True, False):
        own = state.own(state.best_prices)
        bound = state.core.passing(rising, own, state.chosen) - float(state.best_prices @ flat.room) + net.constant
        spare = most - bound + 1e-9 * abs(most)
        residues = _residues(flat, own, state.core.messages(), rising)
        for n, (costs, tables) in residues.items():
            i = flat.nodes[n]
            if np.any((costs > spare) & np.isfinite(net.cost[i])):
                net.cost[i] = np.where(costs > spare, np.inf, net.cost[i])
                touched.add(i)
            for m, table in tables.items():
                j = flat.nodes[m]
                out = table > spare
                if np.any(out & np.isfinite(net.near[i][j])):
                    net.near[i][j] = np.where(out, np.inf, net.near[i][j])
                    net.near[j][i] = net.near[i][j].T
                    touched |= {i, j}
    return touched


def _residues(flat: Flat, own: Floats, messages: Floats, rising: bool) -> dict[int, tuple[Floats, dict[int, Floats]]]:
    """By node what each option, and each pair of options with a node passed later, is above the pass's bound."""
    lengths = np.diff(flat.start)
    total = own.copy()
    into: list[list[tuple[int, Floats, Floats]]] = [[] for _ in flat.nodes]  # later node, message from it, table
    k = 0
    for e, (a, b) in enumerate(flat.ends.tolist()):
        to_a, to_b = messages[k : k + lengths[a]], messages[k + lengths[a] : k + lengths[a] + lengths[b]]
        k += lengths[a] + lengths[b]
        total[flat.columns(a)] += to_a
        total[flat.columns(b)] += to_b
        table = flat.tables[flat.offset[e] : flat.offset[e + 1]].reshape(lengths[a], lengths[b])
        if rising:
            into[a].append((b, to_a, table))
        else:
            into[b].append((a, to_b, table.T))
    degree = np.bincount(flat.ends.ravel(), minlength=len(flat.nodes)) if len(flat.ends) else np.zeros(len(flat.nodes))
    found = {}
    for n, later in enumerate(into):
        above = total[flat.columns(n)] - total[flat.columns(n)].min()
        share = 1.0 / max(len(later), int(degree[n]) - len(later), 1)
        costs = (1.0 - share * len(later)) * above
        parts = []
        for m, back, table in later:
            left = (share * above - back)[:, None] + table
            left -= left.min(axis=0)
            parts.append((m, left, left.min(axis=1)))
            costs = costs + parts[-1][2]
        found[n] = costs, {m: (costs - least)[:, None] + left for m, left, least in parts}
    return found
