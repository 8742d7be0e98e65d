"""Why a wish is impossible, and the nearest possible ones.

In: a ``CostTable``, an impossible ``Wish``. Out: sentences: a minimal set of budgets that conflict, and what the
budgets would have to be: least overshoot in sum, least in the worst, each budget alone.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adaflex.solver.check import totals
from adaflex.solver.decide import chosen_of, columns_in
from adaflex.solver.model import INFINITE, Program, Row, build
from adaflex.solver.objective import Wish
from adaflex.solver.plan import Totals
from adaflex.solver.solve import Live, solver_name
from adaflex.solver.table import Budget, CostTable


@dataclass(frozen=True)
class Nearest:
    """Feasible budgets near the ones asked: overshoot per budget, relative (0.1: 10 % more)."""

    variant: str  # "sum", "worst" or the name of the one budget that is relaxed
    overshoot: tuple[tuple[str, float], ...]
    totals: Totals | None


def budget_names(program: Program) -> list[str]:
    """Names of the budgets that have a row."""
    return list(dict.fromkeys(row.budget for row in program.rows if row.budget))


def with_rows(program: Program, names: Collection[str]) -> Program:
    """The program with only these budgets."""
    return replace(program, rows=tuple(row for row in program.rows if not row.budget or row.budget in names))


def feasible(program: Program, time_s: float) -> bool | None:
    """Whether anything fits; None where time ended first."""
    answer = Live(program, "bits").solve(time_limit=time_s, gap=1e6)
    return None if answer.status == "unknown" else answer.status != "infeasible"


def minimal_conflict(program: Program, time_s: float) -> list[str]:
    """Budgets that conflict with each other and would not with one fewer (deletion filter: one solve per budget)."""
    kept = budget_names(program)
    share = time_s / max(1, len(kept))
    for name in list(kept):
        trial = [other for other in kept if other != name]
        if feasible(with_rows(program, trial), share) is False:
            kept = trial
    return kept


def elastic(program: Program, names: Sequence[str], shared: bool) -> Program:
    """The program in which budgets in ``names`` may be exceeded, by a relative amount that is the objective."""
    width = len(program.units)
    count = 1 if shared else len(names)
    rows = []
    for row in program.rows:
        if row.budget in names:
            column = width if shared else width + names.index(row.budget)
            more = max(abs(row.high), 1e-12)
            columns, values = np.append(row.columns, column), np.append(row.values, -more)
            row = Row(row.name, columns.astype(np.int64), values, row.low, row.high, row.budget)
        rows.append(row)
    cost = np.concatenate([np.zeros(width), np.ones(count)])
    upper = np.concatenate([program.upper, np.full(count, INFINITE)])
    units = np.concatenate([program.units, np.ones(count)])
    return Program(program.choices, upper, units, tuple(rows), {"overshoot": (cost, 0.0)}, program.ring)


def nearest(table: CostTable, wish: Wish, excluded: Collection[str], time_s: float) -> list[Nearest]:
    """The nearest feasible budgets in three variants; a budget that cannot mend it alone is left out."""
    held = [i for i, choice in enumerate(table.choices) if choice.id in excluded]
    program = reopened(build(table, wish.budget, held), held)
    names = budget_names(program)
    share = time_s / (2 + len(names))
    found = []
    variants: list[tuple[str, Sequence[str], bool]] = [("sum", names, False), ("worst", names, True)]
    variants += [(name, [name], False) for name in names] if len(names) > 1 else []
    for variant, relaxed, shared in variants:
        part = elastic(program, relaxed, shared)
        answer = Live(part, "overshoot").solve(time_limit=share, gap=1e-3)
        columns = columns_in(answer, program.choices) if answer.values is not None else None
        if columns is None:
            continue
        made = totals(table, chosen_of(table, columns))
        over = overshoots(table, wish.budget, made)
        found.append(Nearest(variant, tuple((name, value) for name, value in over if value > 0), made))
    return found


def reopened(program: Program, held: Sequence[int]) -> Program:
    """The program with choices that a budget alone ruled out: they count again where that budget is relaxed."""
    upper = program.upper.copy()
    upper[: program.choices] = 1.0
    upper[list(held)] = 0.0
    return replace(program, upper=upper)


def overshoots(table: CostTable, budget: Budget, made: Totals) -> list[tuple[str, float]]:
    """By how much, relatively, each budget is exceeded."""
    pairs: list[tuple[str, float, float | None]] = [("memory", made.peak_bytes, budget.memory_bytes)]
    limits = budget.latency_ns or (None,) * len(table.phases)
    pairs += [(f"latency of {p}", t, most) for p, t, most in zip(table.phases, made.time_ns, limits, strict=True)]
    pairs += [("loss", made.loss, budget.loss), ("bits", made.bits_milli, budget.bits_milli)]
    held = dict(made.tier_bytes) | {table.tiers[0].name: made.peak_bytes}
    pairs += [(f"tier {name}", held[name], most) for name, most in budget.tier_bytes]
    return [(name, value / max(most, 1e-12) - 1.0) for name, value, most in pairs if most is not None]


def sentences(table: CostTable, wish: Wish, excluded: Collection[str], time_s: float) -> list[str]:
    """What to tell the user about an impossible wish."""
    if not solver_name():
        return []
    begin = time.perf_counter()
    held = [i for i, choice in enumerate(table.choices) if choice.id in excluded]
    program = reopened(build(table, wish.budget, held), held)
    said = []
    if excluded and feasible(build(table, wish.budget), 0.2 * time_s):
        said.append("without the pins and forbidden choices the budgets can be met")
    names = minimal_conflict(program, 0.3 * time_s)
    if not names:
        said.append("the table's own rules (covers, links, requirements, spacing) and pins conflict without any budget")
        return said
    said.append(f"conflicting: {', '.join(names)}" if len(names) > 1 else f"{names[0]} cannot be met even alone")
    for near in nearest(table, wish, excluded, max(0.5, 0.9 * time_s - (time.perf_counter() - begin))):
        amounts = (
            ", ".join(f"{name} +{value:.1%}" for name, value in near.overshoot)
            or "a change below the solver's tolerance"
        )
        label = {"sum": "least in sum", "worst": "least in the worst"}.get(near.variant, f"{near.variant} alone")
        said.append(f"nearest ({label}): {amounts}")
    return said
