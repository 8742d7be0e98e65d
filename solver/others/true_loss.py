"""Allocators and refiners against a measured loss: any callable from choices to a number.

In: a ``CostTable``, a ``Budget``, a plan, ``true_loss(choices) -> float``. Out: better choices within the budgets, and
how well the table's sums matched.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adaflex.solver.allocate import allocate, k_best
from adaflex.solver.check import faults, totals
from adaflex.solver.plan import Plan
from adaflex.solver.table import Budget, Choice, CostTable

TrueLoss = Callable[[Mapping[str, str]], float]


@dataclass(frozen=True)
class Refined:
    """What refining reached, and what it cost."""

    choices: dict[str, str]
    loss: float
    evaluations: int
    history: tuple[float, ...]  # best loss after each round: never rises


def evopress(
    table: CostTable,
    budget: Budget,
    start: Mapping[str, str],
    true_loss: TrueLoss,
    *,
    generations: int = 25,
    offspring: int = 16,
    seed: int = 0,
) -> Refined:
    """Level switches on the measured loss: one site cheaper, another dearer, within the budgets (EvoPress).

    One parent, ``offspring`` children per generation, the parent stays unless a child is better.
    """
    rng = random.Random(seed)
    best, loss = dict(start), true_loss(start)
    history, count = [loss], 1
    levels = _levels(table)
    for _ in range(generations):
        for _ in range(offspring):
            child = dict(best)
            for _ in range(min(rng.randint(1, 3), rng.randint(1, 3))):
                for step in (-1, 1):
                    _shift(child, levels, rng, step)
            if child == best or faults(table, budget, child):
                continue
            value = true_loss(child)
            count += 1
            if value < loss:
                best, loss = child, value
        history.append(loss)
    return Refined(best, loss, count, tuple(history))


def _levels(table: CostTable) -> dict[str, list[str]]:
    """Choices of each site by size: only those that cover it alone, in one tier."""
    first = table.tiers[0].name
    found: dict[str, list[tuple[int, str]]] = {site.id: [] for site in table.sites}
    for choice in table.choices:
        if len(choice.sites) == 1 and choice.tier == first:
            found[choice.sites[0]].append((choice.cost.size_bytes, choice.id))
    return {site: [name for _, name in sorted(row)] for site, row in found.items()}


def _shift(chosen: dict[str, str], levels: dict[str, list[str]], rng: random.Random, step: int) -> None:
    site = rng.choice(sorted(levels))
    row = levels[site]
    if chosen[site] in row:
        at = row.index(chosen[site]) + step
        if 0 <= at < len(row):
            chosen[site] = row[at]


def guided_switches(
    table: CostTable, budget: Budget, plan: Plan, true_loss: TrueLoss, *, evaluations: int = 64
) -> Refined:
    """Change one or two sites at a time, in order of what the table says it costs, keeping what measures lower.

    Random swaps find nothing on such tables; a dearer choice for one site paid for by a cheaper one for another, tried
    in order of the table's own difference, does.
    """
    best, loss = dict(plan.choices), true_loss(dict(plan.choices))
    count, history = 1, [loss]
    while count < evaluations:
        better = False
        for child in _nearby(table, best, 4 * evaluations):
            if count >= evaluations:
                break
            if faults(table, budget, child):
                continue
            value = true_loss(child)
            count += 1
            if value < loss:
                best, loss, better = child, value, True
                history.append(loss)
                break
        if not better:
            break
    return Refined(best, loss, count, tuple(history))


def _nearby(table: CostTable, chosen: Mapping[str, str], most: int) -> Iterator[dict[str, str]]:
    """Plans that differ in one or two sites and need no more bytes, those of least table loss first."""
    by_id = {choice.id: choice for choice in table.choices}
    best: dict[tuple[str, float], tuple[Choice, float, int, int]] = {}  # one kernel per site and loss: the fastest
    for choice in table.choices:
        now = by_id[chosen[choice.sites[0]]]
        if len(choice.sites) == 1 and now.sites == choice.sites and choice.cost.loss != now.cost.loss:
            time = sum(choice.cost.time_ns) - sum(now.cost.time_ns)
            size = choice.cost.size_bytes - now.cost.size_bytes
            known = best.get((choice.sites[0], choice.cost.loss))
            if choice.tier == now.tier and (known is None or time < known[3]):
                best[choice.sites[0], choice.cost.loss] = choice, choice.cost.loss - now.cost.loss, size, time
    moves = list(best.values())
    losses, sizes = np.array([m[1] for m in moves]), np.array([m[2] for m in moves])
    fits = sizes[:, None] + sizes <= 0
    score = np.where(np.triu(fits), losses[:, None] + losses, np.inf)
    order = np.argsort(score, axis=None, kind="stable")[:most]
    for flat in order:
        a, b = divmod(int(flat), len(moves))
        if np.isfinite(score[a, b]) and (a == b or moves[a][0].sites != moves[b][0].sites):
            yield dict(chosen) | {moves[k][0].sites[0]: moves[k][0].id for k in (a, b)}


def best_measured(
    table: CostTable, budget: Budget, plan: Plan, true_loss: TrueLoss, *, count: int = 8, time_limit_s: float = 60.0
) -> Refined:
    """The plan, and diverse good plans beside it, by their measured loss."""
    plans = [plan, *k_best(table, budget, plan, count, 0.05, time_limit_s=time_limit_s)]
    losses = [true_loss(dict(each.choices)) for each in plans]
    at = min(range(len(plans)), key=lambda k: (losses[k], k))
    history = tuple(min(losses[: k + 1]) for k in range(len(losses)))
    return Refined(dict(plans[at].choices), losses[at], len(plans), history)


def trust_region(
    table: CostTable, budget: Budget, plan: Plan, true_loss: TrueLoss, *, rounds: int = 3, share: float = 0.1
) -> Refined:
    """Measure the loss anew around the best plan, site by site, and solve again close to it (two or three rounds).

    Each site's runner-up is measured with all others as in the plan; the table's losses of taken and runner-up are
    replaced by these differences, and at most ``share`` of the sites may change.
    """
    best, loss = dict(plan.choices), true_loss(dict(plan.choices))
    count, history = 1, [loss]
    for _ in range(rounds):
        measured: dict[str, float] = {}
        for runner in plan.runners_up:
            child = dict(best) | {runner.site: runner.choice}
            if child[runner.site] != best[runner.site] and not any(
                f.kind != "budget" for f in faults(table, Budget(), child)
            ):
                measured[runner.choice] = true_loss(child) - loss
                count += 1
        near = _around(table, best, measured)
        again = allocate(near, replace(budget, objective="loss"), time_limit_s=20.0)
        child = dict(again.choices)
        changed = sum(child.get(site) != choice for site, choice in best.items())
        if not child or not changed or changed > max(1, share * len(best)):
            break
        value = true_loss(child)
        count += 1
        if value >= loss or faults(table, budget, child):
            break
        best, loss = child, value
        history.append(loss)
    return Refined(best, loss, count, tuple(history))


def _around(table: CostTable, best: Mapping[str, str], measured: Mapping[str, float]) -> CostTable:
    """The table with losses relative to ``best``; only choices taken or measured remain."""
    taken = set(best.values())
    kept = [
        replace(c, cost=replace(c.cost, loss=0.0 if c.id in taken else measured[c.id]))
        for c in table.choices
        if c.id in taken or c.id in measured
    ]
    ids = {choice.id for choice in kept}
    cuts = tuple(
        replace(
            c, choices=tuple(n for n in c.choices if n in ids), released=tuple(r for r in c.released if r[0] in ids)
        )
        for c in table.cuts
    )
    links = tuple(replace(link, attribute=tuple(a for a in link.attribute if a[0] in ids)) for link in table.links)
    spacings = tuple(replace(s, choices=tuple(n for n in s.choices if n in ids)) for s in table.spacings)
    kept = [c for c in kept if all(name in ids for name in c.requires)]
    return replace(table, choices=tuple(kept), pairs=(), cuts=cuts, links=links, spacings=spacings)


def depth_dp(
    count: int, removed: int, true_loss_of: Callable[[frozenset[int]], float]
) -> tuple[list[frozenset[int]], int]:
    """Best sets of removed blocks for every number up to ``removed``, by dynamic programming on a measured loss.

    (AmoebaLLM's depth shrinking.) At most count x removed evaluations. Returns the sets and the evaluations.
    """
    empty: frozenset[int] = frozenset()
    best: list[tuple[float, frozenset[int]] | None] = [(true_loss_of(empty), empty)] + [None] * removed
    evaluations = 1
    for block in range(count):
        for number in range(min(removed, block + 1), 0, -1):
            before = best[number - 1]
            if before is None or block in before[1]:
                continue
            trial = before[1] | {block}
            value = true_loss_of(trial)
            evaluations += 1
            known = best[number]
            if known is None or value < known[0]:
                best[number] = value, trial
    return [entry[1] for entry in best if entry is not None], evaluations


@dataclass(frozen=True)
class Additivity:
    """How well the table's sums matched measured losses over some plans."""

    pearson: float
    spearman: float
    ratio: float  # median of measured / summed
    plans: int


def additivity(table: CostTable, plans: Sequence[Mapping[str, str]], true_loss: TrueLoss) -> Additivity:
    """Correlation of summed and measured loss; below 0.9 the sum should not decide alone."""
    summed = np.array([totals(table, chosen).loss for chosen in plans])
    measured = np.array([true_loss(chosen) for chosen in plans])

    def correlation(
        a: np.ndarray[tuple[int], np.dtype[np.float64]], b: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> float:
        flat = len(a) < 2 or float(np.std(a)) == 0.0 or float(np.std(b)) == 0.0
        return float("nan") if flat else float(np.corrcoef(a, b)[0, 1])

    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (summed, measured)]
    ratio = float(np.median(measured / np.maximum(summed, 1e-300))) if len(plans) else float("nan")
    return Additivity(correlation(summed, measured), correlation(ranks[0], ranks[1]), ratio, len(plans))
