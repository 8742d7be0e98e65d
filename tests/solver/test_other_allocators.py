"""Greedy, uniform, single axes and two steps, the other allocators: rules hold, the joint plan is never worse."""

import pytest

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.generate import Shape, budgets_of, realistic
from adaflex.solver.others.orders import single_axis, two_step
from adaflex.solver.others.single_budget import greedy, uniform
from adaflex.solver.table import Budget
from tests.methods.tables import layers, middle

TABLE = realistic(Shape(blocks=4, cuts=3))
STREAMED = realistic(Shape(blocks=2, cuts=1, tiers=True, link=4.0, casts=False))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("method", [greedy, uniform])
def test_they_hold_the_budget_and_are_bounded_by_the_optimum(seed: int, method: object) -> None:
    made = layers(seed, sites=20, widths=(2, 3, 4, 6, 8))
    budget = middle(made)
    chosen = method(made, budget)  # type: ignore[operator]
    assert chosen is not None and not faults(made, budget, chosen)
    best = allocate(made, budget).value
    assert best is not None and totals(made, chosen).loss >= best * (1 - 1e-9)
    assert method(made, Budget(memory_bytes=10)) is None  # type: ignore[operator]


@pytest.mark.parametrize("axis", ["precision", "sparsity", "skip", "placement"])
def test_single_axis_is_bounded_by_joint(axis: str) -> None:
    for table, budget in ((TABLE, budgets_of(TABLE, 0.4)), (STREAMED, budgets_of(STREAMED, 0.7, 1.4))):
        chosen = single_axis(axis)(table, budget)  # type: ignore[arg-type]
        plan = allocate(table, budget, time_limit_s=3, gap=0.02)
        assert plan.value is not None
        if chosen is not None:
            assert not faults(table, budget, chosen)
            assert totals(table, chosen).loss >= (plan.bound or 0.0) * (1 - 1e-9)
            taken = {c.axis for c in table.choices if c.id in set(chosen.values())}
            assert taken <= {axis, "keep"}


def test_two_step_is_bounded_by_joint() -> None:
    budget = budgets_of(STREAMED, 0.3, 0.9)
    chosen, plan = two_step(STREAMED, budget), allocate(STREAMED, budget, time_limit_s=3, gap=0.02)
    assert chosen is not None and not faults(STREAMED, budget, chosen)
    assert plan.bound is not None and totals(STREAMED, chosen).loss >= plan.bound * (1 - 1e-9)
    assert two_step(STREAMED, Budget()) is None
