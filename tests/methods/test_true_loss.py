"""evopress, guided switches, diverse plans, trust region, depth DP and the additivity report on a non-additive loss."""

import itertools
import random
from collections.abc import Mapping

import pytest

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.generate import Shape, budgets_of, realistic
from adaflex.solver.others.true_loss import (
    additivity,
    best_measured,
    depth_dp,
    evopress,
    guided_switches,
    trust_region,
)
from adaflex.solver.table import Budget, Choice, Cost, CostTable, Encoding, Site

TABLE = realistic(Shape(blocks=3, cuts=2, skips=False))
BUDGET = budgets_of(TABLE, 0.3)


def interacting(seed: int, strength: float = 0.6):  # type: ignore[no-untyped-def]
    """Summed loss plus random interactions of neighbouring sites."""
    by_id = {choice.id: choice for choice in TABLE.choices}
    rng = random.Random(seed)
    signs = {site.id: rng.uniform(-1, 1) for site in TABLE.sites}

    def loss(chosen: Mapping[str, str]) -> float:
        own = [by_id[chosen[site.id]].cost.loss for site in TABLE.sites]
        extra = sum(signs[s.id] * strength * (a * b) ** 0.5 for s, a, b in zip(TABLE.sites, own, own[1:], strict=False))
        return sum(own) + extra

    return loss


@pytest.mark.parametrize("seed", range(3))
def test_refiners_never_lose_and_hold_the_budgets(seed: int) -> None:
    true_loss = interacting(seed)
    plan = allocate(TABLE, BUDGET)
    start = true_loss(dict(plan.choices))
    refined = [
        guided_switches(TABLE, BUDGET, plan, true_loss),
        best_measured(TABLE, BUDGET, plan, true_loss, count=3),
        trust_region(TABLE, BUDGET, plan, true_loss),
        evopress(TABLE, BUDGET, dict(plan.choices), true_loss, generations=5, seed=seed),
    ]
    for made in refined:
        assert made.loss <= start and not faults(TABLE, BUDGET, made.choices)
        assert made.loss == pytest.approx(true_loss(made.choices))
        assert list(made.history) == sorted(made.history, reverse=True)
    assert min(made.loss for made in refined) < start


def test_evolution_reaches_the_optimum_of_a_convex_toy() -> None:
    sites = tuple(Site(f"s{i}", "linear", 800, 3200) for i in range(6))
    choices = tuple(
        Choice(f"{s.id}:{b}", (s.id,), Cost(100 * b, (1,), (i + 1) * 4.0**-b), Encoding(f"w{b}", b))
        for i, s in enumerate(sites)
        for b in (2, 3, 4, 5)
    )
    table, budget = CostTable(sites, choices), Budget(memory_bytes=6 * 350)
    plan = allocate(table, budget)
    start = {s.id: f"{s.id}:3" for s in sites}
    made = evopress(table, budget, start, lambda c: totals(table, c).loss, generations=60, offspring=24)
    assert plan.value is not None and made.loss <= plan.value * 1.02


def test_additivity_report() -> None:
    rng = random.Random(0)
    plans = [
        {s.id: rng.choice([c.id for c in TABLE.choices if c.sites == (s.id,)]) for s in TABLE.sites} for _ in range(60)
    ]
    exact = additivity(TABLE, plans, lambda c: totals(TABLE, c).loss)
    assert exact.pearson == pytest.approx(1.0) and exact.ratio == pytest.approx(1.0) and exact.plans == 60
    shaken = additivity(TABLE, plans, interacting(1))
    assert 0.5 < shaken.pearson < 1.0 and 0.5 < shaken.spearman < 1.0


def test_depth_dp_is_near_exhaustive_search() -> None:
    rng = random.Random(4)
    own = [rng.random() for _ in range(9)]
    pair = {(i, j): rng.uniform(0, 0.1) for i in range(9) for j in range(i)}

    def loss(out: frozenset[int]) -> float:
        return sum(own[i] for i in out) + sum(v for (i, j), v in pair.items() if i in out and j in out)

    sets, evaluations = depth_dp(9, 4, loss)
    assert evaluations <= 9 * 4 + 1
    for number, made in enumerate(sets):
        best = min(loss(frozenset(c)) for c in itertools.combinations(range(9), number))
        ranked = loss(frozenset(sorted(range(9), key=lambda i: own[i])[:number]))
        assert len(made) == number and loss(made) <= 1.1 * best + 1e-12 and loss(made) <= ranked + 1e-12
