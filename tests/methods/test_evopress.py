"""evopress, and other refiners on a measured loss that is no sum: never worse, within the budgets, near the optimum."""

import itertools
import random
from collections.abc import Mapping

import pytest

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.generate import Shape, budgets_of, realistic
from adaflex.solver.others.true_loss import (
    best_measured,
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


def test_switches_between_two_levels_of_10_layers_come_within_2_percent_of_exhaustive_search() -> None:
    rng = random.Random(3)
    sites = tuple(Site(f"s{i}", "linear", 800, 3200) for i in range(10))
    own = [rng.lognormvariate(0.0, 1.0) for _ in sites]
    pair = {p: rng.gauss(0.0, 0.05) for p in itertools.combinations(range(10), 2)}
    choices = tuple(
        Choice(f"{s.id}:{b}", (s.id,), Cost(100 * b, (1,), 0.0), Encoding(f"w{b}", b)) for s in sites for b in (2, 4)
    )
    table, budget = CostTable(sites, choices), Budget(memory_bytes=5 * 200 + 5 * 400)

    def true_loss(chosen: Mapping[str, str]) -> float:
        low = [i for i, s in enumerate(sites) if chosen[s.id].endswith(":2")]
        return 1.0 + sum(own[i] for i in low) + sum(v for (a, b), v in pair.items() if a in low and b in low)

    def plan_of(low: tuple[int, ...]) -> dict[str, str]:
        return {s.id: f"{s.id}:{2 if i in low else 4}" for i, s in enumerate(sites)}

    least = min(true_loss(plan_of(low)) for low in itertools.combinations(range(10), 5))
    made = evopress(table, budget, plan_of((0, 1, 2, 3, 4)), true_loss, generations=40)
    assert not faults(table, budget, made.choices) and made.loss <= 1.02 * least
    assert totals(table, made.choices).peak_bytes <= 3000
