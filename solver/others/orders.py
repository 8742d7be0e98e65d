"""Allocators by rule, by one axis, or one step after the other: what is done where nothing is decided jointly.

In: a ``CostTable`` and a ``Budget``. Out: choices by site or None, verified within the budgets by the exact checker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from adaflex.solver.check import faults, totals
from adaflex.solver.decide import Limits, decide
from adaflex.solver.objective import Wish
from adaflex.solver.others.single_budget import Chosen, options
from adaflex.solver.table import Budget, Choice, CostTable
from adaflex.solver.uniform import kind_of

Axis = Literal["precision", "sparsity", "skip", "placement"]
SECONDS = 4.0  # of each restricted program
HAND_OVERS = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)


def best_of(table: CostTable, budget: Budget, candidates: Iterator[dict[str, str]]) -> Chosen:
    """The candidate of least loss that breaks no rule."""
    best: tuple[float, dict[str, str]] | None = None
    for chosen in candidates:
        if not faults(table, budget, chosen):
            loss = totals(table, chosen).loss
            if best is None or loss < best[0]:
                best = loss, chosen
    return best[1] if best else None


def two_level(table: CostTable, budget: Budget) -> Chosen:
    """Ordered two-level: sites sorted by sensitivity, the first ones get the higher encoding, the rest the lower (LIM).

    Tried for every pair of encodings; the number of high ones is the largest within the budgets, by bisection.
    """
    found = options(table)
    kinds: dict[str, list[Choice | None]] = {}
    for number, row in enumerate(found):
        for choice in row:
            kinds.setdefault(kind_of(choice), [None] * len(found))[number] = choice
    whole = {kind: [c for c in row if c is not None] for kind, row in kinds.items() if all(row)}
    ranked = sorted(whole, key=lambda kind: (sum(c.cost.loss for c in whole[kind]), kind))
    return best_of(table, budget, _two_levels(table, budget, [whole[kind] for kind in ranked]))


def _two_levels(table: CostTable, budget: Budget, levels: list[list[Choice]]) -> Iterator[dict[str, str]]:
    for i, high in enumerate(levels):
        for low in levels[i + 1 :]:
            order = sorted(range(len(low)), key=lambda k: high[k].cost.loss - low[k].cost.loss)

            def mixed(
                count: int, high: list[Choice] = high, low: list[Choice] = low, order: list[int] = order
            ) -> dict[str, str]:
                top = set(order[:count])
                return {s.id: (high if k in top else low)[k].id for k, s in enumerate(table.sites)}

            least, most = 0, len(order)
            while least < most:
                middle = (least + most + 1) // 2
                if faults(table, budget, mixed(middle)):
                    most = middle - 1
                else:
                    least = middle
            yield mixed(least)


def even_skips(count: int, kept: int) -> list[int]:
    """Indices skipped when ``kept`` of ``count`` blocks stay, first and last among them, evenly spaced."""
    if kept >= count:
        return []
    stay = {round(k * (count - 1) / max(1, kept - 1)) for k in range(kept)}
    return [k for k in range(count) if k not in stay]


def published_skips(count: int, kept: int) -> list[int]:
    """The published rule: multiples of an integer interval; for mild speed-ups the skips come in one run."""
    interval = max(1, count // max(1, kept - 1))
    stay = [0, *[k for k in range(1, count - 1) if k % interval == 0][: max(0, kept - 2)], count - 1]
    return [k for k in range(count) if k not in stay]


def unified_layer_skip(table: CostTable, budget: Budget) -> Chosen:
    """Skips evenly spread over the depth, everything else unchanged (unified layer skipping, even spacing)."""
    base = _least_loss(table)
    skips = _block_skips(table)

    def plans() -> Iterator[dict[str, str]]:
        for kept in range(len(skips), 0, -1):
            chosen = dict(base)
            for number in even_skips(len(skips), kept):
                chosen.update(dict.fromkeys(skips[number].sites, skips[number].id))
            yield chosen

    return best_of(table, budget, plans()) if base else None


def _least_loss(table: CostTable) -> dict[str, str]:
    rows = options(table)
    if not all(rows):
        return {}
    picked = [min(row, key=lambda c: (c.cost.loss, c.axis != "keep", sum(c.cost.time_ns), c.id)) for row in rows]
    return {site.id: choice.id for site, choice in zip(table.sites, picked, strict=True)}


def _block_skips(table: CostTable) -> list[Choice]:
    """Skips of disjoint sites in order of depth."""
    order = {site.id: number for number, site in enumerate(table.sites)}
    found, used = [], set[str]()
    for choice in sorted((c for c in table.choices if c.axis == "skip"), key=lambda c: (-len(c.sites), c.id)):
        if not used & set(choice.sites):
            found.append(choice)
            used |= set(choice.sites)
    return sorted(found, key=lambda c: order[c.sites[0]])


def layer_knapsack(table: CostTable, budget: Budget) -> Chosen:
    """Which blocks to leave out, as a 0-1 knapsack on their added losses; nothing else is changed (LAPTOP-Diff)."""
    kept = [c for c in table.choices if c.axis == "skip" or c.id in set(_least_loss(table).values())]
    return _restricted(table, budget, kept)


def single_axis(axis: Axis) -> SingleAxis:
    """An allocator that may use one axis only; what it does not touch stays unchanged."""
    return SingleAxis(axis)


class SingleAxis:
    """Decides one axis optimally: the best that method of this kind could do."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis

    def __call__(self, table: CostTable, budget: Budget) -> Chosen:
        """Choices by site, or None where this axis alone cannot meet the budgets."""
        base, first = set(_least_loss(table).values()), table.tiers[0].name
        lossless = {kind_of(c).rpartition("@")[0].partition(":")[0] for c in table.choices if c.id in base}

        def allowed(c: Choice) -> bool:
            if c.id in base:
                return True
            if self.axis == "placement":
                return c.tier != first and kind_of(c).rpartition("@")[0].partition(":")[0] in lossless
            return c.tier == first and c.axis == self.axis

        return _restricted(table, budget, [c for c in table.choices if allowed(c)])


def _restricted(table: CostTable, budget: Budget, kept: list[Choice]) -> Chosen:
    ids = {choice.id for choice in kept}
    out = {choice.id for choice in table.choices if choice.id not in ids}
    return decide(table, Wish("loss", budget, False), Limits(time_s=SECONDS, gap=2e-3, ties=()), out).choices


def two_step(table: CostTable, budget: Budget) -> Chosen:
    """First the encodings in memory under a larger memory budget, then where each lives; the hand-over is swept."""

    def plans() -> Iterator[dict[str, str]]:
        first = table.tiers[0].name
        for factor in HAND_OVERS:
            if budget.memory_bytes is None:
                return
            wide = replace(budget, memory_bytes=int(budget.memory_bytes * factor), latency_ns=(), tier_bytes=())
            home = [c for c in table.choices if c.tier == first]
            chosen = _restricted(table, wide, home)
            if chosen is None:
                continue
            ids = set(chosen.values())
            same = {(c.sites, c.encoding) for c in table.choices if c.id in ids}
            moved = _restricted(
                table, budget, [c for c in table.choices if c.id in ids or (c.sites, c.encoding) in same]
            )
            if moved is not None:
                yield moved

    return best_of(table, budget, plans())
