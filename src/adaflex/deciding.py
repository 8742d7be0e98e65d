"""Chooses among good plans by the loss they measure together, before anything is built.

In: a cost table, a budget, a function that measures a plan's loss on data held out. Out: ``Chosen``. The program adds
single losses up; where the sum promised too much its loss budget is lowered and it is solved again. Diverse plans near
the best, and the best uniform plan, are measured too, and the best of those that hold wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from adaflex.allowed import uniform_plan
from adaflex.errors import BudgetError, TimeLimitError
from adaflex.solver.allocate import allocate, k_best
from adaflex.solver.pins import Pins
from adaflex.solver.plan import Plan, Status
from adaflex.solver.table import Budget, CostTable

TrueLoss = Callable[[CostTable, Plan], float]

CORRECTIONS = 6  # of the loss budget
SAFETY = 0.985  # of what a corrected loss budget would have to be
DIVERSE = 3  # plans beside the best that are measured
SHARE_OF_TIME = 0.1  # of the solver's time, for diverse plans


@dataclass(frozen=True)
class Solver:
    """How tables are solved: what is pinned, and for how long."""

    pins: Pins | None
    seconds: float

    def best(self, table: CostTable, budget: Budget) -> Plan:
        """The plan of a table."""
        return allocate(table, budget, time_limit_s=self.seconds, pins=self.pins)

    def uniform(self, table: CostTable, budget: Budget) -> Plan:
        """The best uniform plan."""
        return uniform_plan(table, budget, self.pins)

    def diverse(self, table: CostTable, budget: Budget, plan: Plan) -> list[Plan]:
        """Good plans that differ from ``plan`` in a twentieth of the sites; none beside pins."""
        if self.pins is not None:
            return []
        return k_best(table, budget, plan, DIVERSE, time_limit_s=SHARE_OF_TIME * self.seconds)


@dataclass(frozen=True)
class Chosen:
    """A plan, and what it was chosen from."""

    plan: Plan  # its bound is that of the user's own problem
    first: Plan  # the first solve: nothing lowered
    uniform: Plan  # the best uniform plan by the table; without choices where none is within the budgets
    uniform_loss: float | None  # what it measured
    loss: float  # measured on data held out, at reference level
    measured: int  # plans whose loss was measured


def choose(table: CostTable, budget: Budget, solver: Solver, true_loss: TrueLoss) -> Chosen:
    """The best plan whose measured loss is within the budget; the one of least loss where none is.

    Raises ``BudgetError`` where no plan meets the budgets by the table's figures, ``TimeLimitError`` where none was
    found in time.
    """
    first = solver.best(table, budget)
    refuse(first)
    most = first.budget.loss
    pool = _corrected(table, budget, solver, true_loss, first)
    if most is not None or first.objective == "loss":
        pool += [(plan, true_loss(table, plan)) for plan in solver.diverse(table, budget, first)]
    level = solver.uniform(table, budget)
    level_loss = true_loss(table, level) if level.choices else None
    if level_loss is not None:
        pool.append((level, level_loss))
    plan, loss = min(pool, key=lambda entry: _rank(entry[0], entry[1], most, first.objective))
    return Chosen(with_bound_of(first, plan), first, level, level_loss, loss, len(pool))


def _rank(plan: Plan, loss: float, most: float | None, objective: str) -> tuple[bool, float, float]:
    """Least is best: what is within the loss budget first, then the objective as it was measured."""
    over = most is not None and loss > most
    assert plan.value is not None
    return over, loss if over or objective == "loss" else plan.value, loss


def _corrected(
    table: CostTable, budget: Budget, solver: Solver, true_loss: TrueLoss, first: Plan
) -> list[tuple[Plan, float]]:
    """The first plan, and those of lowered loss budgets until one measures what was asked."""
    plan, most, asked = first, first.budget.loss, first.budget.loss
    pool: list[tuple[Plan, float]] = []
    for _ in range(CORRECTIONS + 1):
        loss = true_loss(table, plan)
        pool.append((plan, loss))
        if most is None or asked is None or loss <= most:
            break
        asked = min(asked, plan.totals.loss if plan.totals else asked) * most / loss * SAFETY
        plan = solver.best(table, replace(budget, loss=asked, objective=first.objective))  # type: ignore[arg-type]
        if plan.value is None or any(plan.choices == other.choices for other, _ in pool):
            break
    return pool


def refuse(plan: Plan) -> None:
    """Errors for a plan that is none."""
    if plan.status == "infeasible":
        raise BudgetError("no plan meets the budgets: " + "; ".join(plan.reasons))
    if plan.status == "unknown":
        raise TimeLimitError("the time limit ended before any plan was found; raise time_limit")


def with_bound_of(first: Plan, plan: Plan) -> Plan:
    """The bound printed is that of the user's own problem: the first solve, nothing lowered."""
    if plan is first or first.bound is None or plan.value is None or plan.objective != first.objective:
        return plan
    gap = abs(plan.value - first.bound) / max(abs(plan.value), 1e-30)
    status: Status = "optimal" if gap <= 1e-9 else "feasible"
    return replace(plan, bound=first.bound, gap=gap, status=status)
