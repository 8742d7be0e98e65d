"""What is minimised: the default rule, and the value of totals under an objective.

In: a ``CostTable`` and a ``Budget``. Out: a ``Wish`` (objective and complete budget), exact values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from adaflex.errors import OptionError
from adaflex.solver.plan import Totals
from adaflex.solver.table import Budget, CostTable

OBJECTIVES = ("loss", "latency", "memory", "bits")
UNITS = {"loss": "", "latency": " ns", "memory": " bytes", "bits": " thousandths of a bit"}


@dataclass(frozen=True)
class Wish:
    """An objective and the budgets it is sought under."""

    objective: str
    budget: Budget
    implied_loss: bool  # the loss budget was not asked for: where it cannot hold it is dropped, and said


def resolve(table: CostTable, budget: Budget) -> Wish:
    """The default rule: without a loss budget none worse than casting to bf16; the fastest plan within all budgets,
    or the one of least loss where latency is a budget; on a table that does not know that loss, least loss.
    """
    timed = any(limit is not None for limit in budget.latency_ns)
    implied = budget.implied_loss
    if budget.loss is None and table.default_loss > 0 and budget.objective != "loss":
        budget, implied = replace(budget, loss=table.default_loss, implied_loss=True), True
    objective = budget.objective
    if not objective:
        objective = "loss" if timed or budget.loss is None else "latency"
    if objective not in OBJECTIVES:
        raise OptionError(f"objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}")
    weights = budget.phase_weights
    if weights and (len(weights) != len(table.phases) or min(weights) < 0 or not any(weights)):
        raise OptionError(
            f"phase_weights is {weights}; give one weight of at least 0 for each of {', '.join(table.phases)}"
        )
    return Wish(objective, budget, implied)


def without_loss(wish: Wish) -> Wish:
    """The same wish with the implied loss budget dropped: least loss is sought instead."""
    return Wish("loss", replace(wish.budget, loss=None, implied_loss=False), False)


def value_of(made: Totals, objective: str, budget: Budget) -> float:
    """The value of ``made`` under ``objective``: loss, nanoseconds (weighted over phases), bytes, milli-bits."""
    if objective == "loss":
        return made.loss
    if objective == "latency":
        weights = budget.phase_weights or (1,) * len(made.time_ns)
        return float(sum(weight * time for weight, time in zip(weights, made.time_ns, strict=True)))
    return float(made.peak_bytes if objective == "memory" else made.bits_milli)


def scale_of(table: CostTable, objective: str) -> float:
    """What one unit of the program's objective is worth in the objective's own unit."""
    if objective == "latency":
        return table.time_scale[0] / table.time_scale[1]
    if objective == "bits":
        return 8000.0 / max(1, sum(site.weight_count for site in table.sites))
    return 1.0
