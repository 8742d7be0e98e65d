"""One budget swept from one table: the curve of what each amount of it is worth.

In: a ``CostTable``, a ``Budget``, which quantity, its values. Out: one verified ``Plan`` per value, monotone.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Literal

from adaflex.errors import OptionError
from adaflex.solver.allocate import plan_of
from adaflex.solver.check import totals
from adaflex.solver.decide import Limits, Outcome, decide, verified
from adaflex.solver.objective import Wish, resolve, without_loss
from adaflex.solver.plan import Plan
from adaflex.solver.sense import require_budget, require_sense
from adaflex.solver.table import Budget, CostTable

Objective = Literal["", "loss", "latency", "memory", "bits"]


def with_budget(table: CostTable, budget: Budget, over: str, value: float) -> Budget:
    """``budget`` with one quantity set: memory, loss, bits, latency (first phase), latency:PHASE or tier:NAME."""
    kind, _, name = over.partition(":")
    if kind == "memory":
        return replace(budget, memory_bytes=int(value))
    if kind == "loss":
        return replace(budget, loss=float(value))
    if kind == "bits":
        return replace(budget, bits_milli=int(value))
    if kind == "latency" and (not name or name in table.phases):
        at = table.phases.index(name) if name else 0
        old = budget.latency_ns or (None,) * len(table.phases)
        return replace(budget, latency_ns=tuple(int(value) if p == at else limit for p, limit in enumerate(old)))
    if kind == "tier" and name in {tier.name for tier in table.tiers}:
        kept = tuple((n, v) for n, v in budget.tier_bytes if n != name)
        return replace(budget, tier_bytes=(*kept, (name, int(value))))
    raise OptionError(f"cannot sweep {over!r}; it must be memory, loss, bits, latency[:PHASE] or tier:NAME")


def without(table: CostTable, budget: Budget, over: str) -> Budget:
    """``budget`` with one quantity left free."""
    kind, _, name = over.partition(":")
    if kind == "latency" and budget.latency_ns:
        at = table.phases.index(name) if name else 0
        return replace(
            budget, latency_ns=tuple(None if p == at else limit for p, limit in enumerate(budget.latency_ns))
        )
    if kind == "tier":
        return replace(budget, tier_bytes=tuple((n, v) for n, v in budget.tier_bytes if n != name))
    fields: dict[str, Any] = {"memory": {"memory_bytes": None}, "loss": {"loss": None}, "bits": {"bits_milli": None}}
    return replace(budget, **fields.get(kind, {}))


def extremes(table: CostTable, over: str, budget: Budget | None = None) -> tuple[float, float]:
    """A range worth sweeping within the other budgets: the least achievable of the quantity, and what the plan that is
    best without a limit on it uses. Other budgets that nothing meets are left out."""
    kind = over.partition(":")[0]
    limits = Limits(time_s=20.0, gap=1e-3, ties=())
    least = kind if kind in ("memory", "latency", "bits", "loss") else "memory"
    rest = without(table, budget or Budget(), over)
    wish = resolve(table, rest)
    goal = wish.objective if least not in ("loss", wish.objective) else "memory" if least == "loss" else "loss"
    for within in (wish.budget if least != "loss" else rest, rest, Budget()):
        low = decide(table, Wish(least, within, False), limits)
        if low.value is not None:
            high = decide(table, Wish(goal, within, False), limits)
            break
    if low.value is None or high.choices is None:
        raise OptionError("the table's own rules leave no plan; check covers, links and requirements")
    made = totals(table, high.choices)
    most = {"memory": made.peak_bytes, "loss": made.loss, "bits": made.bits_milli}.get(least, sum(made.time_ns))
    return low.value, max(low.value, float(most))


def pareto(
    table: CostTable,
    budget: Budget,
    over: str,
    values: Sequence[float] | int = 10,
    *,
    objective: Objective = "",
    time_limit_s: float = 60.0,
    executor: Executor | None = None,
) -> list[Plan]:
    """Solve for each value of ``over``, tightest first; every plan is also a candidate for the looser budgets.

    ``values`` is a list, or a number of points between the extremes. With an ``executor`` the points are solved in
    parallel (processes: the solver keeps one scheduler per process). A looser budget never has a worse plan.
    """
    require_sense(table)
    if isinstance(values, int):
        with_budget(table, budget, over, 0)  # refuses what cannot be swept
        low, high = extremes(table, over, replace(budget, objective=objective or budget.objective))
        power = 4 if over == "loss" else 1  # losses span orders of magnitude
        values = [low + (high - low) * (k / max(1, values - 1)) ** power for k in range(values)]
    budgets = [with_budget(table, budget, over, value) for value in sorted(values)]
    for each in budgets:
        require_budget(table, each)
    share = time_limit_s / max(1, len(budgets))
    tasks = [(table, replace(each, objective=objective or each.objective), share) for each in budgets]
    known: dict[str, str] | None = None
    if executor is not None:
        return _monotone(table, list(executor.map(_one, tasks)))
    plans = []
    for task in tasks:
        plan = _one(task, known)
        known = dict(plan.choices) or known
        plans.append(plan)
    return _monotone(table, plans)


def _one(task: tuple[CostTable, Budget, float], known: dict[str, str] | None = None) -> Plan:
    table, budget, seconds = task
    begin = time.perf_counter()
    wish = resolve(table, budget)
    limits = Limits(time_s=seconds, gap=1e-4, ties=())
    out = decide(table, wish, limits, known=known)
    if out.status == "infeasible" and wish.implied_loss:
        wish = without_loss(wish)
        out = decide(table, wish, limits, known=known)
    return plan_of(table, wish, out, out.notes, time.perf_counter() - begin)


def _monotone(table: CostTable, plans: Iterable[Plan]) -> list[Plan]:
    """Hand each plan on to the looser budgets where it is better than theirs (gaps allow that)."""
    found: list[Plan] = []
    best: dict[str, str] = {}
    for plan in plans:
        wish = Wish(plan.objective, plan.budget, False)
        value = verified(table, wish, best) if best else None
        if value is not None and (plan.value is None or value < plan.value):
            out = Outcome("feasible", best, value, plan.bound)
            plan = replace(plan_of(table, wish, out, plan.reasons, plan.seconds), prices=plan.prices)
        best = dict(plan.choices) or best
        found.append(plan)
    return found


def pareto_csv(plans: Sequence[Plan]) -> str:
    """One line per point: what was allowed, what the plan is worth and uses."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["status", "objective", "value", "bound", "gap", "peak_bytes", "time_ns", "loss", "bits_milli", "seconds"]
    )
    for plan in plans:
        made = plan.totals
        figures = [made.peak_bytes, sum(made.time_ns), made.loss, made.bits_milli] if made else [""] * 4
        writer.writerow(
            [plan.status, plan.objective, plan.value, plan.bound, plan.gap, *figures, round(plan.seconds, 3)]
        )
    return text.getvalue()
