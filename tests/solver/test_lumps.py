"""Deciding large choices first gives the same answers, and bounds where the relaxation has none worth the name."""

import math

import pytest

from adaflex.solver import decide, lumps
from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults
from adaflex.solver.decide import Limits
from adaflex.solver.generate import Shape, realistic, small_budget, small_table
from adaflex.solver.solve import Answer
from benchmarks.solver import binding
from tests.solver.test_brute_force import best


@pytest.mark.parametrize("share", [lumps.SHARE, 0.0])
def test_small_tables_against_brute_force(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time for the tree, the whole program is solved after it."""
    met = []

    def counted(*args: object) -> Answer:
        met.append(len(lumps.large_choices(*args[:3])))  # type: ignore[arg-type]
        return lumps.solve_by_lumps(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(decide, "DIRECT", 0)
    monkeypatch.setattr(decide, "solve_by_lumps", counted)
    monkeypatch.setattr(lumps, "SHARE", share)
    for seed in range(600):
        table = small_table(seed)
        if len(table.tiers) > 1 or not any(len(choice.sites) > 1 for choice in table.choices):
            continue
        budget = small_budget(table, seed)
        plan = allocate(table, budget, limits=Limits(ties=()))
        value = best(table, budget)
        if value is None:
            assert plan.status == "infeasible", seed
            continue
        whole = len(table.phases) if plan.objective == "latency" else 0
        assert plan.status == "optimal" and plan.value is not None, seed
        assert math.isclose(plan.value, value, rel_tol=1e-9, abs_tol=1e-12 + whole), seed
        assert not faults(table, plan.budget, plan.choices)
    assert sum(count > 0 for count in met) >= 10


def test_budgets_that_only_skips_can_meet() -> None:
    """The plain relaxation takes a twentieth of a skip: up to 19 % below what can be had, with 80 blocks."""
    skipped = 0
    for seed in range(3):
        table = realistic(Shape(blocks=40), seed)
        plan = allocate(table, binding(table, (0.85, 0.9)), gap=1e-3, time_limit_s=20.0)
        assert plan.gap is not None and plan.gap <= 1e-3 and plan.seconds < 10.0
        assert not faults(table, plan.budget, dict(plan.choices))
        skipped += len({chosen for _, chosen in plan.choices if chosen.startswith("skip.")})
    assert skipped >= 3


def test_without_the_time_for_it_the_bound_holds() -> None:
    """However early the tree is left, its open nodes and the whole program bound every plan."""
    table = realistic(Shape(blocks=24), 0)
    budget = binding(table, (0.9, 0.96))
    known = allocate(table, budget, gap=0.0, time_limit_s=20.0)
    assert known.value is not None
    for seconds in (0.2, 0.5, 1.0):
        plan = allocate(table, budget, gap=0.0, time_limit_s=seconds)
        assert plan.bound is not None and plan.bound <= known.value * (1 + 1e-9)
