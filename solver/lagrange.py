"""A bound and good choices without any solver: prices on the budgets, the cheapest cover at those prices, repair.

In: a ``CostTable``, a ``Wish``. Out: a lower bound of the wish's value and verified choices (or None). Comes first
always; it is the answer where there is no solver or the table is too large for one.

Lagrangian relaxation of the additive budgets by subgradient steps; the bound equals the LP's at best. Ring, stalls,
casts, links and pair terms are left out of the bound (never above the truth) and met by exact checking afterwards.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adaflex.solver.check import faults, totals
from adaflex.solver.objective import Wish, scale_of, value_of
from adaflex.solver.table import CostTable

Floats = NDArray[np.float64]
Cover = tuple[int, ...]


@dataclass(frozen=True)
class Bounded:
    """What the relaxation found, in the objective's own unit."""

    bound: float
    choices: dict[str, str] | None
    value: float | None
    prices: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Relaxed:
    """The table as columns with one cost and a few additive resources, covers by component."""

    cost: Floats  # per column
    use: Floats  # resources x columns
    limit: Floats
    names: tuple[str, ...]
    free: NDArray[np.bool_]
    site_of: NDArray[np.int64]  # of single-site columns, -1 for others
    sites: tuple[str, ...]
    several: tuple[tuple[int, Cover], ...]  # (column, sites) of the others
    constant: float


def relaxed(table: CostTable, wish: Wish, excluded: Collection[str]) -> Relaxed:
    """Additive resources of the budgets, and the objective."""
    budget, first = wish.budget, table.tiers[0].name
    size = np.array([c.cost.size_bytes for c in table.choices], dtype=float)
    home = np.array([c.tier == first for c in table.choices])
    times = np.array([c.cost.time_ns for c in table.choices], dtype=float).reshape(
        len(table.choices), len(table.phases)
    )
    rows: list[tuple[str, Floats, float]] = []
    caps = [budget.memory_bytes, table.tiers[0].capacity_bytes, dict(budget.tier_bytes).get(first)]
    most = min((cap for cap in caps if cap is not None), default=None)
    cuts = _cut_rows(table, size * home)
    if most is not None:
        rows += [("memory", use, most - table.fixed.size_bytes - base) for use, base in cuts]
    for tier in table.tiers[1:]:
        limits = [cap for cap in (tier.capacity_bytes, dict(budget.tier_bytes).get(tier.name)) if cap is not None]
        if limits:
            rows.append(
                (f"tier {tier.name}", size * np.array([c.tier == tier.name for c in table.choices]), min(limits))
            )
    for phase, limit in enumerate(budget.latency_ns):
        if limit is not None:
            fixed = table.fixed.time_ns[phase] if phase < len(table.fixed.time_ns) else 0
            raw = limit * table.time_scale[1] // table.time_scale[0] - fixed
            rows.append((f"latency of {table.phases[phase]}", times[:, phase], float(raw)))
    loss = np.array([c.cost.loss for c in table.choices])
    if budget.loss is not None:
        rows.append(("loss", loss, budget.loss - sum(min(0.0, pair.loss) for pair in table.pairs)))
    if budget.bits_milli is not None:
        rows.append(("bits", size, float(budget.bits_milli * sum(s.weight_count for s in table.sites) // 8000)))
    weights = np.array(budget.phase_weights or (1,) * len(table.phases), dtype=float)
    fixed_time = float(sum(w * t for w, t in zip(weights, table.fixed.time_ns, strict=False)))
    cost, constant = {
        "loss": (loss, sum(min(0.0, pair.loss) for pair in table.pairs)),
        "latency": (times @ weights, fixed_time),
        "memory": (cuts[0][0], float(table.fixed.size_bytes + cuts[0][1])),
        "bits": (size, 0.0),
    }[wish.objective]
    index = {site.id: number for number, site in enumerate(table.sites)}
    single = [index[c.sites[0]] if len(c.sites) == 1 else -1 for c in table.choices]
    several = tuple((i, tuple(index[s] for s in c.sites)) for i, c in enumerate(table.choices) if len(c.sites) > 1)
    return Relaxed(
        cost,
        np.array([row for _, row, _ in rows]).reshape(len(rows), len(cost)),
        np.array([limit for _, _, limit in rows]),
        tuple(name for name, _, _ in rows),
        np.array([c.id not in excluded for c in table.choices]),
        np.array(single),
        tuple(site.id for site in table.sites),
        several,
        constant,
    )


def _cut_rows(table: CostTable, resident: Floats) -> list[tuple[Floats, float]]:
    index = {choice.id: number for number, choice in enumerate(table.choices)}
    found = []
    for cut in table.cuts:
        use = resident.copy()
        for name in set(cut.choices):
            use[index[name]] += table.choices[index[name]].cost.workspace_bytes
        for name, amount in cut.released:
            use[index[name]] -= amount
        found.append((use, float(cut.base_bytes)))
    return found or [(resident, 0.0)]


class Covers:
    """The cheapest exact cover at given column prices: site by site, and by component where columns cover several."""

    def __init__(self, task: Relaxed) -> None:
        self.task = task
        usable = np.nonzero(task.free & (task.site_of >= 0))[0]
        self.order = usable[np.argsort(task.site_of[usable], kind="stable")]
        owner = task.site_of[self.order]
        self.starts = (
            np.nonzero(np.concatenate(([True], owner[1:] != owner[:-1])))[0] if len(owner) else np.zeros(0, int)
        )
        self.owners = owner[self.starts] if len(owner) else owner
        self.by_set: dict[Cover, list[int]] = defaultdict(list)
        for column, cover in task.several:
            if task.free[column]:
                self.by_set[tuple(sorted(cover))].append(column)
        self.cover_of = dict(task.several)
        self.components = self._components()

    def _components(self) -> list[list[Cover]]:
        groups: list[tuple[set[int], list[Cover]]] = []
        for cover in sorted(self.by_set):
            touching = [group for group in groups if group[0] & set(cover)]
            merged: tuple[set[int], list[Cover]] = (set(cover), [cover])
            for group in touching:
                merged = (merged[0] | group[0], merged[1] + group[1])
                groups.remove(group)
            groups.append(merged)
        return [covers for _, covers in groups]

    def cheapest(self, price: Floats) -> tuple[float, list[int]]:
        """(value, columns) of the cheapest cover; infinite where some site cannot be covered."""
        least = np.full(len(self.task.sites), np.inf)
        best = np.full(len(self.task.sites), -1, dtype=np.int64)
        if len(self.order):
            values = price[self.order]
            lows = np.minimum.reduceat(values, self.starts)
            least[self.owners] = lows
            at_low = np.nonzero(values == np.repeat(lows, np.diff([*self.starts, len(values)])))[0][::-1]
            best[self.task.site_of[self.order[at_low]]] = self.order[at_low]
        taken: dict[int, int] = {}
        for covers in self.components:
            _, chosen = self._packing(covers, 0, frozenset(), price, least)
            for column in chosen:
                for site in self.cover_of[column]:
                    taken[site] = column
        columns = {taken.get(site, int(best[site])) for site in range(len(self.task.sites))}
        if -1 in columns:
            return float("inf"), []
        return float(sum(price[c] for c in columns)), sorted(columns)

    def _packing(
        self, covers: list[Cover], at: int, used: frozenset[int], price: Floats, least: Floats
    ) -> tuple[float, list[int]]:
        """The most that columns over several sites save against single ones: (saving, columns)."""
        if at == len(covers):
            return 0.0, []
        best = self._packing(covers, at + 1, used, price, least)
        cover = covers[at]
        if not used & set(cover):
            column = min(self.by_set[cover], key=lambda c: (price[c], c))
            saving = float(np.sum(least[list(cover)]) - price[column])
            if saving > 0 or not np.isfinite(saving):
                more, rest = self._packing(covers, at + 1, used | set(cover), price, least)
                if saving + more > best[0]:
                    best = saving + more, [column, *rest]
        return best


def bound_and_repair(
    table: CostTable, wish: Wish, excluded: Collection[str] = (), *, time_s: float = 2.0, rounds: int = 150
) -> Bounded:
    """Subgradient ascent on the prices of the budgets, then repair and fill of the best covers met."""
    deadline = time.perf_counter() + time_s
    task = relaxed(table, wish, excluded)
    covers = Covers(task)
    scale = np.maximum(np.abs(task.limit), 1e-9)
    prices = np.zeros(len(task.limit))
    best_bound, best_prices, step = -np.inf, prices, 1.0
    pool: list[list[int]] = []
    for number in range(rounds):
        value, columns = covers.cheapest(task.cost + prices @ task.use if len(prices) else task.cost)
        if not columns:
            return Bounded(float("inf"), None, None, ())
        bound = value - float(prices @ task.limit)
        if bound > best_bound + 1e-12 * abs(bound):
            best_bound, best_prices = bound, prices.copy()
        elif number % 10 == 9:
            step *= 0.6
        over = (task.use[:, columns].sum(axis=1) - task.limit) / scale
        pool.append(columns)
        if not len(prices) or not np.any((over > 0) | (prices > 0)) or time.perf_counter() > deadline:
            break
        spread = float(np.std(task.cost)) * len(task.sites) ** 0.5 + 1e-30
        moved = np.maximum(0.0, prices * scale + step * spread * over / (np.linalg.norm(over) + 1e-30))
        prices = moved / scale
    choices, value_found = _repaired(table, wish, task, (pool[-12:], best_prices), deadline)
    unit = scale_of(table, wish.objective)
    named: dict[str, float] = defaultdict(float)
    for name, price in zip(task.names, best_prices, strict=True):
        named[name] += float(price) * unit
    return Bounded((best_bound + task.constant) * unit, choices, value_found, tuple(named.items()))


def _repaired(
    table: CostTable, wish: Wish, task: Relaxed, state: tuple[list[list[int]], Floats], deadline: float
) -> tuple[dict[str, str] | None, float | None]:
    """The best verified choices from repairing covers; limits shrink by what the exact check finds too much."""
    pool, prices = state
    best: tuple[dict[str, str] | None, float | None] = (None, None)
    limit = task.limit.copy()
    for columns in reversed(pool):
        for _ in range(4):
            made = improve(replace(task, limit=limit), columns, prices, deadline)
            if made is None:
                break
            choices = {site: table.choices[c].id for c in made for site in table.choices[c].sites}
            broken = faults(table, wish.budget, choices)
            if not broken:
                value = value_of(totals(table, choices), wish.objective, wish.budget)
                if best[1] is None or value < best[1]:
                    best = choices, value
                break
            if any(fault.kind != "budget" for fault in broken):
                break
            for fault in broken:
                at = [
                    k for k, name in enumerate(task.names) if name == fault.where or fault.where.startswith("capacity")
                ]
                limit[at] -= fault.amount
        if time.perf_counter() > deadline:
            break
    return best


def improve(
    task: Relaxed, columns: list[int], prices: Floats, deadline: float, weights: Floats | None = None
) -> list[int] | None:
    """Swap single-site columns until no limit is exceeded, then while the cost falls; None where that fails.

    ``weights`` say what relief of each limit counts for (None: relative to the limit).
    """
    now = np.full(len(task.sites), -1, dtype=np.int64)
    for column in columns:
        if task.site_of[column] >= 0:
            now[task.site_of[column]] = column
    kept = [column for column in columns if task.site_of[column] < 0]
    movable = np.nonzero(task.free & (task.site_of >= 0))[0]
    movable = movable[now[task.site_of[movable]] >= 0]
    used = task.use[:, columns].sum(axis=1)
    scale = np.maximum(np.abs(task.limit), 1e-9)
    worth = 1.0 / scale if weights is None else weights
    for _ in range(4 * len(task.sites) + 20):
        before = now[task.site_of[movable]]
        change = task.use[:, movable] - task.use[:, before]
        cost = task.cost[movable] - task.cost[before]
        over = np.maximum(0.0, used - task.limit)
        if np.any(over > 0):
            after = np.maximum(0.0, used[:, None] + change - task.limit[:, None])
            gain = ((over[:, None] - after) * worth[:, None]).sum(axis=0)
            priced = cost + prices @ np.maximum(change, -used[:, None])
            score, enough = np.full(len(gain), np.inf), gain > 1e-15 * worth.max()
            np.divide(np.maximum(priced, 0.0) + 1e-15, gain, out=score, where=enough)
        else:
            fits = np.all(used[:, None] + change <= task.limit[:, None], axis=0)
            score = np.where(fits & (cost < -1e-15), cost, np.inf)
        pick = int(np.argmin(score)) if len(score) else -1
        if pick < 0 or not np.isfinite(score[pick]) or time.perf_counter() > deadline:
            break
        used = used + change[:, pick]
        now[task.site_of[movable[pick]]] = movable[pick]
    if np.any(used > task.limit + 1e-9 * scale):
        return None
    return sorted({int(c) for c in now if c >= 0} | set(kept))
