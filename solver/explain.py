"""Why a plan is what it is: prices of budgets, runner-up of each site, reasons of an impossible wish.

In: a ``CostTable``, a ``Wish``, an ``Outcome``. Out: the fields of a ``Plan`` that explain it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from adaflex.solver.conflict import sentences
from adaflex.solver.decide import Limits, Outcome, columns_of, decide
from adaflex.solver.model import build, places
from adaflex.solver.objective import UNITS, Wish, scale_of
from adaflex.solver.plan import Plan, RunnerUp
from adaflex.solver.solve import Live, solver_name
from adaflex.solver.table import Budget, Choice, CostTable


def prices_of(table: CostTable, wish: Wish, out: Outcome) -> tuple[tuple[str, float], ...]:
    """Per budget: how much of the objective one more unit of it saves (LP duals; good for changes below 0.3 %)."""
    if out.duals is None or out.program is None:
        return out.prices
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
    """Notes of the search; for an impossible wish also the least achievable value of each budget that fails alone,
    a minimal set of conflicting budgets and the nearest feasible ones.
    """
    if out.status != "infeasible":
        return list(out.notes)
    said = []
    each = asked(wish.budget, table)
    for name, only in each.items():
        kind = name.split(" ")[0]
        if kind not in ("memory", "latency", "loss", "bits"):
            continue
        timed = tuple(int(limit is not None) for limit in only.latency_ns)
        limits = Limits(time_s=max(0.5, time_s / (4 * len(each))), ties=())
        least = decide(table, Wish(kind, Budget(phase_weights=timed), False), limits, excluded)
        given = (only.memory_bytes, only.bits_milli, only.loss, *only.latency_ns)
        most = next((limit for limit in given if limit is not None), 0)
        if least.bound is not None and least.value is not None and least.bound > most:
            said.append(f"{name} is at least {least.value:.6g}{UNITS[kind]} on this table and may be {most:.6g}")
    return said + sentences(table, wish, excluded, max(1.0, 0.5 * time_s)) + out.notes


def exact_runner_up(table: CostTable, plan: Plan, site: str, *, time_limit_s: float = 30.0) -> RunnerUp | None:
    """The next best choice for ``site`` by solving again with its choice ruled out; None where there is no other."""
    wish = Wish(plan.objective, plan.budget, False)
    out = decide(table, wish, Limits(time_s=time_limit_s, ties=()), (plan.choice_of(site),))
    if out.choices is None or out.value is None or plan.value is None:
        return None
    price = out.value - plan.value
    return RunnerUp(site, out.choices[site], price, price <= abs(plan.value) * 1e-12)


@dataclass(frozen=True)
class Column:
    """One choice of a site, and why the plan did not take it."""

    choice: str
    why: str
    price: float  # lower estimate of what taking it would cost, in the objective's unit
    size_bytes: int
    time_ns: tuple[int, ...]
    loss: float


def columns_for(table: CostTable, plan: Plan, site: str, pins: Collection[str] = ()) -> list[Column]:
    """Every choice of ``site`` with the reason why it was taken or not, cheapest first."""
    wish = Wish(plan.objective, plan.budget, False)
    held = [i for i, choice in enumerate(table.choices) if choice.id in pins]
    program = build(table, wish.budget, held)
    duals = Live(program, plan.objective).relax() if solver_name() else None
    chosen = plan.choice_of(site)
    mine = list(places(table).by_site[site])
    own = next(i for i in mine if table.choices[i].id == chosen)
    found = []
    for i in mine:
        choice, price = table.choices[i], 0.0
        if duals is not None:
            price = max(0.0, float(duals.reduced[i] - min(duals.reduced[own], 0.0)) * scale_of(table, plan.objective))
        if choice.id == chosen:
            why, price = "taken", 0.0
        elif choice.id in pins:
            why = "ruled out by a pin"
        elif program.upper[i] == 0.0:
            why = "alone exceeds a budget"
        elif any(_dominates(table.choices[k], choice) for k in mine if k != i):
            why = "dominated: another choice is nowhere worse"
        else:
            why = f"costs {price:.4g} more at these prices" if price else "a tie at these prices"
        cost = choice.cost
        found.append(Column(choice.id, why, price, cost.size_bytes, cost.time_ns, cost.loss))
    return sorted(found, key=lambda column: (column.why != "taken", column.price, column.choice))


def _dominates(better: Choice, worse: Choice) -> bool:
    """Whether ``better`` can replace ``worse`` at no cost in anything the program sees but cuts and links."""
    if (better.tier, better.activation, better.sites) != (worse.tier, worse.activation, worse.sites) or better.requires:
        return False
    a, b = better.cost, worse.cost
    pairs = [(a.size_bytes, b.size_bytes), (a.loss, b.loss), (a.workspace_bytes, b.workspace_bytes)]
    pairs += [(a.stage_bytes, b.stage_bytes), *zip(a.time_ns, b.time_ns, strict=True)]
    pairs += list(zip(a.stream_ns or (0,) * len(a.time_ns), b.stream_ns or (0,) * len(b.time_ns), strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)
