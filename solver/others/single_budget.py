"""Allocators that see one budget (bytes or loss), as published, on the same cost tables.

In: a ``CostTable`` and a ``Budget``. Out: choices by site or None; what they ignore (other budgets, cuts, links) is
for the exact checker to say. Each names its paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adaflex.solver.decide import Limits, decide
from adaflex.solver.lagrange import Covers, bound_and_repair, improve, relaxed
from adaflex.solver.objective import Wish, scale_of
from adaflex.solver.table import Budget, Choice, Cost, CostTable
from adaflex.solver.uniform import uniform_choices

Chosen = dict[str, str] | None
Allocator = Callable[[CostTable, Budget], Chosen]
LOSS_STEPS = 10_000
SIZE_STEPS = 1 << 16


def options(table: CostTable) -> list[list[Choice]]:
    """Per site, its choices in the first tier that cover only it: what a single-budget method can choose from."""
    first = table.tiers[0].name
    at_cuts = {name for cut in table.cuts for name in cut.choices}
    by_site: dict[str, list[Choice]] = {site.id: [] for site in table.sites}
    for choice in table.choices:
        if len(choice.sites) == 1 and choice.tier == first:
            by_site[choice.sites[0]].append(choice)
    return [small_workspace(row) if any(c.id in at_cuts for c in row) else row for row in by_site.values()]


def small_workspace(row: list[Choice]) -> list[Choice]:
    """Of choices equal in size and loss the one of least workspace: help for methods that see no workspace."""
    best: dict[tuple[int, float], Choice] = {}
    for choice in row:
        key = choice.cost.size_bytes, choice.cost.loss
        if key not in best or choice.cost.workspace_bytes < best[key].cost.workspace_bytes:
            best[key] = choice
    return list(best.values())


def room(table: CostTable, budget: Budget) -> int | None:
    """Bytes for weights under the memory budget: without the fixed part and the highest cut."""
    if budget.memory_bytes is None:
        return None
    work = {choice.id: choice.cost.workspace_bytes for row in options(table) for choice in row}
    highest = [cut.base_bytes + max((work.get(name, 0) for name in cut.choices), default=0) for cut in table.cuts]
    base = max(highest, default=0)
    return budget.memory_bytes - table.fixed.size_bytes - base


def _named(table: CostTable, picked: list[Choice]) -> dict[str, str]:
    return {site.id: choice.id for site, choice in zip(table.sites, picked, strict=True)}


def _dp(costs: list[list[int]], values: list[list[float]], limit: int) -> list[int] | None:
    """Least total value with total cost at most ``limit``: a multiple-choice knapsack, one table row per site."""
    best: NDArray[np.float64] = np.full(limit + 1, np.inf)
    best[0] = 0.0
    back: list[NDArray[np.int16]] = []
    for site_costs, site_values in zip(costs, values, strict=True):
        new = np.full(limit + 1, np.inf)
        taken = np.full(limit + 1, -1, dtype=np.int16)
        for number, (cost, value) in enumerate(zip(site_costs, site_values, strict=True)):
            if cost > limit:
                continue
            moved = best[: limit + 1 - cost] + value
            better = moved < new[cost:]
            new[cost:][better] = moved[better]
            taken[cost:][better] = number
        best = new
        back.append(taken)
    at = int(np.argmin(best))
    if not math.isfinite(best[at]):
        return None
    picks = []
    for taken, site_costs in zip(reversed(back), reversed(costs), strict=True):
        number = int(taken[at])
        picks.append(number)
        at -= site_costs[number]
    return picks[::-1]


def rd_prune_dp(table: CostTable, budget: Budget) -> Chosen:
    """Least summed loss within the bytes, by dynamic programming over sites and bytes (rate-distortion pruning, DP).

    Bytes are counted in a unit that divides all sizes, or in 65,536 steps of the budget, rounded up: never exceeded.
    """
    found, limit = options(table), room(table, budget)
    if limit is None or limit < 0 or not all(found):
        return None
    step = max(1, math.gcd(*(c.cost.size_bytes for row in found for c in row)), limit // SIZE_STEPS)
    costs = [[-(-c.cost.size_bytes // step) for c in row] for row in found]
    picks = _dp(costs, [[c.cost.loss for c in row] for row in found], limit // step)
    return _named(table, [row[k] for row, k in zip(found, picks, strict=True)]) if picks else None


def lgreco_dp(table: CostTable, budget: Budget) -> Chosen:
    """Least bytes within a loss, by dynamic programming over sites and loss in 10,000 steps rounded up (L-GreCo).

    Without a loss budget the loss is bisected until the bytes fit.
    """
    found = options(table)
    if not all(found):
        return None
    if budget.loss is not None:
        return _least_bytes(table, found, budget.loss)
    limit = room(table, budget)
    if limit is None:
        return None
    low, high, best = 0.0, sum(max(c.cost.loss for c in row) for row in found), None
    for _ in range(30):
        middle = (low + high) / 2
        made = _least_bytes(table, found, middle)
        size = _size(table, made) if made else None
        if made is not None and size is not None and size <= limit:
            best, high = made, middle
        else:
            low = middle
    return best


def _size(table: CostTable, chosen: dict[str, str]) -> int:
    ids = set(chosen.values())
    return sum(c.cost.size_bytes for c in table.choices if c.id in ids)


def _least_bytes(table: CostTable, found: list[list[Choice]], most: float) -> Chosen:
    if most <= 0:
        picked = [min(row, key=lambda c: (c.cost.loss, c.cost.size_bytes)) for row in found]
        return _named(table, picked) if sum(c.cost.loss for c in picked) <= most else None
    step = most / LOSS_STEPS
    costs = [[max(0, math.ceil(c.cost.loss / step - 1e-12)) for c in row] for row in found]
    picks = _dp(costs, [[float(c.cost.size_bytes) for c in row] for row in found], LOSS_STEPS)
    return _named(table, [row[k] for row, k in zip(found, picks, strict=True)]) if picks else None


def closed_form_bits(sensitivity: NDArray[np.float64], counts: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """Bits per component minimising sum c * 4**-R at a mean: R + 0.5 log2(c/n / weighted geometric mean), at least 0.

    Components whose bits would be negative are held at 0 and the rest solved again (reverse water-filling; BAQ).
    """
    per = np.maximum(sensitivity / counts, 1e-300)
    active = np.ones(len(per), dtype=bool)
    bits = np.zeros(len(per))
    while np.any(active):
        total = mean * counts.sum() / counts[active].sum()
        centre = float(np.average(np.log2(per[active]), weights=counts[active]))
        bits[active] = total + 0.5 * (np.log2(per[active]) - centre)
        if not np.any(bits[active] < 0):
            break
        active &= bits >= 0
        bits[~active] = 0.0
    return bits


def baq(table: CostTable, budget: Budget) -> Chosen:
    """Closed-form bits from sensitivities, rounded down to choices, the rest of the bytes given away greedily (BAQ)."""
    found, limit = options(table), room(table, budget)
    if limit is None or limit <= 0 or not all(found):
        return None
    counts = np.array([site.weight_count for site in table.sites], dtype=float)
    stored = [[8.0 * c.cost.size_bytes / n for c in row] for row, n in zip(found, counts, strict=True)]
    sensitivity = np.zeros(len(found))
    for number, (row, bits) in enumerate(zip(found, stored, strict=True)):
        scored = [c.cost.loss * 4.0**b for c, b in zip(row, bits, strict=True) if c.cost.loss > 0]
        sensitivity[number] = float(np.median(scored)) if scored else 1e-300
    wanted = closed_form_bits(sensitivity, counts, 8.0 * limit / counts.sum())
    picked = []
    for row, bits, want in zip(found, stored, wanted, strict=True):
        below = [k for k, b in enumerate(bits) if b <= want + 1e-9] or [int(np.argmin(bits))]
        picked.append(min(below, key=lambda k: (row[k].cost.loss, bits[k])))
    return _fill(table, found, picked, limit)


def _fill(table: CostTable, found: list[list[Choice]], picked: list[int], limit: int) -> Chosen:
    """Project to the exact bytes: cheapest steps down while too large, best steps up while they fit."""
    used = sum(row[k].cost.size_bytes for row, k in zip(found, picked, strict=True))
    for _ in range(20 * len(found) + 20):
        best: tuple[float, int, int] | None = None
        for number, (row, k) in enumerate(zip(found, picked, strict=True)):
            for other, choice in enumerate(row):
                size = choice.cost.size_bytes - row[k].cost.size_bytes
                loss = choice.cost.loss - row[k].cost.loss
                useful = size < 0 if used > limit else (loss < 0 and used + size <= limit)
                score = (loss / -size if used > limit else loss / max(size, 1)) if useful else 0.0
                if useful and (best is None or score < best[0]):
                    best = score, number, other
        if best is None:
            break
        _, number, other = best
        used += found[number][other].cost.size_bytes - found[number][picked[number]].cost.size_bytes
        picked[number] = other
    return _named(table, [row[k] for row, k in zip(found, picked, strict=True)]) if used <= limit else None


def adaquant_ip(table: CostTable, budget: Budget) -> Chosen:
    """The integer program as published: one precision per layer, least summed loss (floored at 1e-6) within the bytes.

    It sees sizes only: no workspace, times, links or other budgets.
    """
    limit = room(table, budget)
    if limit is None:
        return None
    plain = []
    for row in options(table):
        for c in row:
            loss = max(c.cost.loss, 1e-6) if c.cost.loss else 0.0
            plain.append(replace(c, cost=Cost(c.cost.size_bytes, c.cost.time_ns, loss), requires=(), activation=""))
    bare = CostTable(table.sites, tuple(plain), phases=table.phases)
    return decide(bare, Wish("loss", Budget(memory_bytes=limit), False), Limits(time_s=20, gap=1e-4, ties=())).choices


def greedy(table: CostTable, budget: Budget) -> Chosen:
    """From the least loss downwards: the swap of least loss per relief, budgets weighed by the relaxation's prices."""
    wish = Wish("loss", budget, False)
    task = relaxed(table, wish, ())
    priced = dict(bound_and_repair(table, wish).prices)
    prices = np.array([priced.get(name, 0.0) for name in task.names]) / scale_of(table, "loss")
    least = np.maximum(prices, 1e-3 * prices.max(initial=0.0))
    _, columns = Covers(task).cheapest(task.cost + 1e-9 * least @ task.use)
    made = improve(task, columns, np.zeros(len(prices)), math.inf, least if np.any(least > 0) else None)
    return {s: table.choices[c].id for c in made for s in table.choices[c].sites} if made is not None else None


def uniform(table: CostTable, budget: Budget) -> Chosen:
    """One encoding for all sites of an op."""
    return uniform_choices(table, budget, "loss")
