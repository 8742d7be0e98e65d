"""Among plans that are equally good the smaller one is taken."""

import pytest

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.decide import Limits
from adaflex.solver.generate import every_cover, small_budget, small_table
from adaflex.solver.objective import resolve, value_of
from adaflex.solver.table import Budget, Choice, Cost, CostTable, Encoding, Site


def tiny(slow_ns: int) -> CostTable:
    """Two sites, each with a large choice of 1000 ns and a small one that takes ``slow_ns``."""
    sites = (Site("a", "linear", 64, 256), Site("b", "linear", 64, 256))
    choices = [
        Choice(f"{site.id}|{name}", (site.id,), Cost(size, (time,), 0.0), Encoding(name, bits), label=name)
        for site in sites
        for name, bits, size, time in (("fp32", 32, 256, 1000), ("bf16", 16, 128, slow_ns))
    ]
    return CostTable(sites, tuple(choices))


@pytest.mark.parametrize(("slow_ns", "smaller"), [(1000, 2), (1001, 0)])
def test_the_smaller_of_equal_plans(slow_ns: int, smaller: int) -> None:
    plan = allocate(tiny(slow_ns), Budget(objective="latency"))
    assert sum("bf16" in choice for _, choice in plan.choices) == smaller and plan.status == "optimal"


def test_against_brute_force() -> None:
    met = 0
    for seed in range(200):
        table = small_table(seed)
        budget = small_budget(table, seed)
        wish = resolve(table, budget)
        if wish.objective != "latency" or table.ring_depth > 2:
            continue
        plan = allocate(table, budget, limits=Limits(ties=("bits",)))
        if plan.value is None or plan.bound is None:
            continue
        met += 1
        made = [totals(table, c) for c in every_cover(table) if not faults(table, wish.budget, c)]
        best = min(value_of(each, "latency", wish.budget) for each in made)
        least = min(
            value_of(each, "bits", wish.budget) for each in made if value_of(each, "latency", wish.budget) == best
        )
        assert not faults(table, plan.budget, plan.choices) and plan.value <= best + len(table.phases)
        assert plan.totals is not None
        assert value_of(plan.totals, "bits", wish.budget) <= least * (1 + 1e-9) or plan.value > best, seed
    assert met >= 20
