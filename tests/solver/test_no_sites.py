"""A model without sites has one plan, the empty one: optimal within the budgets, infeasible beyond them."""

from adaflex.solver.allocate import allocate, best_uniform
from adaflex.solver.table import Budget, CostTable, Cut, Fixed

TABLE = CostTable((), (), fixed=Fixed(1000, (50,)), cuts=(Cut("arena", 24),), default_loss=1e-5)


def test_the_empty_plan_is_optimal() -> None:
    for plan in (allocate(TABLE, Budget()), best_uniform(TABLE, Budget())):
        assert plan.choices == () and plan.totals is not None
        assert plan.totals.peak_bytes == 1024 and plan.totals.loss == 0
    assert allocate(TABLE, Budget()).status == "optimal" and allocate(TABLE, Budget(memory_bytes=1024)).gap == 0


def test_an_impossible_budget_is_refused_with_its_reason() -> None:
    plan = allocate(TABLE, Budget(memory_bytes=1023))
    assert plan.status == "infeasible" and plan.reasons
    assert best_uniform(TABLE, Budget(memory_bytes=1023)).status == "infeasible"
