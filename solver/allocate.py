"""The public entry: from a cost table and a budget to a proven plan.

In: a ``CostTable`` and a ``Budget``. Out: a ``Plan``; an impossible budget gives one of status "infeasible" with
reasons. Everything in the plan is recomputed in exact integers by check.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from adaflex.solver.check import totals
from adaflex.solver.decide import (
    Limits,
    Outcome,
    chosen_of,
    columns_in,
    columns_of,
    decide,
    forbid,
    verified,
)
from adaflex.solver.explain import prices_of, reasons_of, runners_up_of
from adaflex.solver.model import build
from adaflex.solver.objective import Wish, resolve, scale_of, value_of, without_loss
from adaflex.solver.pins import Pins, excluded_by
from adaflex.solver.plan import Plan, Status
from adaflex.solver.sense import require_budget, require_sense
from adaflex.solver.solve import Live, solver_name
from adaflex.solver.table import Budget, CostTable
from adaflex.solver.table_json import digest
from adaflex.solver.uniform import uniform_choices

__all__ = ["allocate", "best_uniform", "k_best", "plan_of", "totals"]


def allocate(
    table: CostTable,
    budget: Budget,
    *,
    time_limit_s: float = 60.0,
    gap: float | None = None,
    pins: Pins | None = None,
    limits: Limits | None = None,
) -> Plan:
    """Decide every site of ``table`` together, under every budget at once.

    Returns a plan of status ``optimal`` (proven), ``feasible`` (with bound and gap; ``limit`` says what ended the
    search), ``infeasible`` (proven; ``reasons`` says which budgets conflict and the least achievable) or
    ``unknown``. ``gap`` is the relative gap at which to stop (None: 0 for small tables, 0.0001 for large ones).
    Raises ``TableError`` / ``OptionError`` for a table or budget that makes no sense.
    """
    begin = time.perf_counter()
    require_sense(table)
    require_budget(table, budget)
    key = digest(table)
    limits = limits or Limits(time_s=time_limit_s, gap=gap)
    limits = replace(limits, time_s=max(0.05, limits.time_s - (time.perf_counter() - begin)))
    excluded = excluded_by(table, pins)
    wish = resolve(table, budget)
    out = decide(table, wish, limits, excluded)
    said: list[str] = []
    if out.status == "infeasible" and wish.implied_loss:
        most = wish.budget.loss
        wish = without_loss(wish)
        left = max(1.0, limits.time_s - (time.perf_counter() - begin))
        out = decide(table, wish, replace(limits, time_s=left), excluded)
        said.append(
            f"no plan within the other budgets keeps the implied loss of {most:.6g}; it was dropped, least loss sought"
        )
    left = max(1.0, limits.time_s - (time.perf_counter() - begin))
    said += reasons_of(table, wish, out, excluded, left)
    return plan_of(table, wish, out, said, time.perf_counter() - begin, key=key)


def plan_of(
    table: CostTable, wish: Wish, out: Outcome, reasons: Sequence[str], seconds: float, *, key: str = ""
) -> Plan:
    """The plan that an outcome stands for, with totals recomputed exactly; ``key`` is the table's digest if known."""
    choices = tuple((site.id, out.choices[site.id]) for site in table.sites) if out.choices else ()
    known = out.value is not None and out.bound is not None
    apart = (out.value or 0.0) - (out.bound or 0.0)
    return Plan(
        status=cast(Status, out.status),
        choices=choices,
        totals=totals(table, choices) if choices or not table.sites else None,
        objective=wish.objective,
        value=out.value,
        bound=out.bound,
        gap=apart / max(abs(out.value or 0.0), 1e-300) if known and apart else (0.0 if known else None),
        limit=out.limit,
        budget=wish.budget,
        table_digest=key or digest(table),
        reasons=tuple(reasons),
        runners_up=runners_up_of(table, wish, out),
        prices=prices_of(table, wish, out),
        seconds=seconds,
        solver=solver_name(),
    )


def best_uniform(table: CostTable, budget: Budget) -> Plan:
    """The best plan with one encoding for all sites of an op; status "infeasible" where none is within the budgets."""
    begin = time.perf_counter()
    require_sense(table)
    require_budget(table, budget)
    wish = resolve(table, budget)
    choices = uniform_choices(table, wish.budget, wish.objective)
    if choices is None and wish.implied_loss:
        wish = without_loss(wish)
        choices = uniform_choices(table, wish.budget, wish.objective)
    out = Outcome(status="infeasible" if choices is None else "feasible")
    if choices is not None:
        out.offer(choices, value_of(totals(table, choices), wish.objective, wish.budget))
    said = ["no uniform plan is within all budgets"] if choices is None else []
    return plan_of(table, wish, out, said, time.perf_counter() - begin)


def k_best(
    table: CostTable,
    budget: Budget,
    plan: Plan,
    count: int,
    distance: float = 0.05,
    *,
    time_limit_s: float = 60.0,
    gap: float = 1e-3,
) -> list[Plan]:
    """Up to ``count`` further good plans, each differing from ``plan`` and from each other in many sites.

    ``distance`` below 1 is a share of all sites, from 1 on a number of sites. Plans come best first as found; each
    is verified, its bound is that of ``plan``. Fewer come back where no more exist or time ends.
    """
    begin = time.perf_counter()
    sites = len(table.sites)
    differ = max(1, -int(-distance * sites // 1)) if distance < 1 else int(distance)
    wish = resolve(table, plan.budget if plan.budget.implied_loss or plan.budget == budget else budget)
    wish = Wish(plan.objective, wish.budget, wish.implied_loss) if plan.objective else wish
    program = build(table, wish.budget)
    live = Live(program, wish.objective, reference=(plan.value or 0.0) / scale_of(table, wish.objective) or None)
    known: Mapping[str, str] = dict(plan.choices)
    found: list[Plan] = []
    while len(found) < count and time.perf_counter() - begin < time_limit_s:
        columns = columns_of(table, known)
        forbid(live, columns, differ, [len(table.choices[i].sites) for i in columns])
        answer = live.solve(time_limit=time_limit_s - (time.perf_counter() - begin), gap=gap)
        taken = columns_in(answer, program.choices) if answer.values is not None else None
        if taken is None:
            break
        known = chosen_of(table, taken)
        value = verified(table, wish, known)
        if value is not None:
            out = Outcome("feasible", dict(known), value, plan.bound)
            found.append(plan_of(table, wish, out, (), time.perf_counter() - begin))
    return found
