"""Why a plan is what it is: prices of budgets, runner-up of each site, reasons of an impossible wish.

In: a ``CostTable``, a ``Wish``, an ``Outcome``. Out: the fields of a ``Plan`` that explain it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection

from adaflex.solver.decide import Limits, Outcome, columns_of, decide
from adaflex.solver.model import places
from adaflex.solver.objective import UNITS, Wish, scale_of
from adaflex.solver.plan import RunnerUp
from adaflex.solver.table import Budget, CostTable


def prices_of(table: CostTable, wish: Wish, out: Outcome) -> tuple[tuple[str, float], ...]:
    """Per budget: how much of the objective one more unit of it saves (LP duals; good for changes below 0.3 %)."""
    if out.duals is None or out.program is None:
        return ()
    summed: dict[str, float] = defaultdict(float)
    scale = scale_of(table, wish.objective)
    numerator, denominator = table.time_scale
    for row, dual in zip(out.program.rows, out.duals.rows, strict=False):
        if row.budget:
            unit = denominator / numerator if row.budget.startswith("latency") else 1.0
            unit *= sum(site.weight_count for site in table.sites) / 8000.0 if row.budget == "bits" else 1.0
            summed[row.budget] += max(0.0, -float(dual)) * scale * unit
    return tuple(summed.items())


def runners_up_of(table: CostTable, wish: Wish, out: Outcome) -> tuple[RunnerUp, ...]:
    """For each site the next best choice and a lower estimate of what it would cost (LP reduced costs)."""
    if out.duals is None or out.choices is None or out.value is None or out.program is None:
        return ()
    reduced = out.duals.reduced * scale_of(table, wish.objective)
    taken = set(columns_of(table, out.choices))
    noise = abs(out.value - (out.bound if out.bound is not None else 0.0)) + 1e-12 * abs(out.value)
    found = []
    where = places(table)
    for site in table.sites:
        others = [i for i in where.by_site[site.id] if i not in taken and out.program.upper[i] > 0]
        own = next(i for i in where.by_site[site.id] if i in taken)
        if others:
            best = min(others, key=lambda i: (reduced[i], i))
            price = max(0.0, float(reduced[best] - min(reduced[own], 0.0)))
            found.append(RunnerUp(site.id, table.choices[best].id, price, price <= noise))
    return tuple(found)


def asked(budget: Budget, table: CostTable) -> dict[str, Budget]:
    """Each budget the user gave, alone: name -> a budget that has only this one."""
    found = {}
    if budget.memory_bytes is not None:
        found["memory"] = Budget(memory_bytes=budget.memory_bytes)
    for phase, limit in enumerate(budget.latency_ns):
        if limit is not None:
            only = tuple(limit if p == phase else None for p in range(len(table.phases)))
            found[f"latency of {table.phases[phase]}"] = Budget(latency_ns=only)
    if budget.loss is not None:
        found["loss"] = Budget(loss=budget.loss)
    if budget.bits_milli is not None:
        found["bits"] = Budget(bits_milli=budget.bits_milli)
    for name, limit in budget.tier_bytes:
        found[f"tier {name}"] = Budget(tier_bytes=((name, limit),))
    return found


def reasons_of(table: CostTable, wish: Wish, out: Outcome, excluded: Collection[str], time_s: float) -> list[str]:
    """Notes of the search; for an impossible wish, the least achievable value of each budget that fails alone."""
    if out.status != "infeasible":
        return list(out.notes)
    said = []
    each = asked(wish.budget, table)
    for name, only in each.items():
        kind = name.split(" ")[0]
        if kind not in ("memory", "latency", "loss", "bits"):
            continue
        free = Budget(
            phase_weights=only.phase_weights
            if kind != "latency"
            else tuple(int(v is not None) for v in only.latency_ns)
        )
        least = decide(table, Wish(kind, free, False), Limits(time_s=max(0.5, time_s / (2 * len(each)))), excluded)
        limit = (
            only.memory_bytes or only.bits_milli or only.loss or next((v for v in only.latency_ns if v is not None), 0)
        )
        if least.bound is not None and least.value is not None and least.bound > limit:
            said.append(f"{name} is at least {least.value:.6g}{UNITS[kind]} on this table and may be {limit:.6g}")
    if not said:
        said.append(
            "the budgets " + ", ".join(each) + " hold alone but not together"
            if each
            else "the table's own rules conflict"
        )
    return said + out.notes


def per_unit(price: float, unit: float) -> float:
    """What ``unit`` more of a budget saves, by its price; nan where that is not known."""
    return price * unit if math.isfinite(price) else math.nan
