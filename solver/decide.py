"""Solves one wish: candidates without a solver, the program, exact checking, lowering, ties.

In: a ``CostTable``, a ``Wish``, limits. Out: an ``Outcome``: the best verified choices, a bound of the user's own
problem, prices. Never raises for an impossible wish.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from adaflex.solver.check import Fault, faults, totals
from adaflex.solver.lagrange import bound_and_repair
from adaflex.solver.lumps import solve_by_lumps
from adaflex.solver.model import INFINITE, Program, Row, build, exact_stalls, places
from adaflex.solver.objective import Wish, scale_of, value_of
from adaflex.solver.pairwise.choose import Patience
from adaflex.solver.pairwise.joint import search
from adaflex.solver.prices import bounds_of
from adaflex.solver.rings import solve_by_ring
from adaflex.solver.sift import DIRECT, Run, solve_sifted
from adaflex.solver.solve import Answer, Duals, Live, solver_name
from adaflex.solver.table import CostTable
from adaflex.solver.uniform import uniform_choices

ROUNDS = 5
SMALL = 6000  # columns up to which the optimum itself is sought, beyond it a gap of 0.01 %
MOST_COLUMNS = 100_000
MOST_PAIRED = 10_000
LOADING = 4.0  # loading a program and one step of solving take up to about this many times as long as building it


@dataclass(frozen=True)
class Limits:
    """How long and how far to search."""

    time_s: float = 60.0
    gap: float | None = None  # relative; None: 0 for small tables, 1e-4 for large ones
    nodes: int | None = None  # set for a plan that does not depend on the machine's speed
    ties: tuple[str, ...] = ("latency", "bits")  # objectives sought in turn among plans of equal value
    solver: bool = True


@dataclass
class Outcome:
    """What is known about a wish. ``bound`` and ``value`` are in the objective's unit."""

    status: str = "unknown"
    choices: dict[str, str] | None = None
    value: float | None = None
    bound: float | None = None
    limit: str = ""
    duals: Duals | None = None
    prices: tuple[tuple[str, float], ...] = ()  # of the relaxation, where there are no duals
    program: Program | None = None
    notes: list[str] = field(default_factory=list)

    def offer(self, choices: Mapping[str, str] | None, value: float | None) -> bool:
        """Keep ``choices`` if they are better than what is known; whether they were."""
        if choices is None or value is None or (self.value is not None and value >= self.value):
            return False
        self.choices, self.value = dict(choices), value
        return True


def chosen_of(table: CostTable, columns: Sequence[int]) -> dict[str, str]:
    """Choices by site from the columns taken."""
    return {site: table.choices[i].id for i in columns for site in table.choices[i].sites}


def columns_of(table: CostTable, choices: Mapping[str, str]) -> list[int]:
    """The columns taken, in table order."""
    ids = set(choices.values())
    return [i for i, choice in enumerate(table.choices) if choice.id in ids]


def columns_in(answer: Answer, count: int) -> list[int] | None:
    """The choices an answer takes; None where its values are not 0 or 1."""
    assert answer.values is not None
    values = answer.values[:count]
    if np.max(np.abs(values - np.round(values)), initial=0.0) > 1e-5:
        return None
    return [int(i) for i in np.nonzero(values > 0.5)[0]]


def verified(table: CostTable, wish: Wish, choices: Mapping[str, str]) -> float | None:
    """The value of ``choices``, or None where they break a rule."""
    if faults(table, wish.budget, choices):
        return None
    return value_of(totals(table, choices), wish.objective, wish.budget)


def decide(
    table: CostTable,
    wish: Wish,
    limits: Limits,
    excluded: Collection[str] = (),
    known: Mapping[str, str] | None = None,
) -> Outcome:
    """The best verified choices for ``wish`` with a bound; ``excluded`` choices are not taken.

    ``known`` choices (of a nearby wish) are a candidate and a start.
    """
    if not table.sites:
        return _nothing_to_decide(table, wish)
    begin = time.perf_counter()
    deadline = begin + limits.time_s
    out = Outcome()
    soon = begin + 0.3 * limits.time_s if limits.nodes is None else INFINITE
    uniform = uniform_choices(table, wish.budget, wish.objective, excluded, deadline=soon)
    if uniform:
        out.offer(uniform, verified(table, wish, uniform))
    if known and not any(choice in excluded for choice in known.values()):
        out.offer(known, verified(table, wish, known))
    most = MOST_PAIRED if table.pairs else MOST_COLUMNS
    rounds = 150 if len(table.choices) > DIRECT else 30
    priced = bound_and_repair(table, wish, excluded, time_s=min(2.0, 0.2 * limits.time_s), rounds=rounds)
    out.offer(priced.choices, priced.value)
    out.prices = priced.prices
    out.bound = priced.bound - 1e-9 * abs(priced.bound) if np.isfinite(priced.bound) else None
    if limits.solver and solver_name() and len(table.choices) <= most:
        _by_program(table, wish, limits, excluded, (out, deadline))
    elif not table.pairs or not _by_network(table, wish, limits, excluded, (out, deadline)):
        limit = "size" if limits.solver and solver_name() else "no solver"
        _without_program(wish, limit, out, impossible=priced.bound == INFINITE, rounding_error=rounding(table, wish))
    return out


def _nothing_to_decide(table: CostTable, wish: Wish) -> Outcome:
    """A model without sites has one plan, the empty one: it is within the budgets, or nothing is."""
    value = verified(table, wish, {})
    return Outcome("infeasible") if value is None else Outcome("optimal", {}, value, value)


def _without_program(wish: Wish, limit: str, out: Outcome, *, impossible: bool, rounding_error: float) -> None:
    """Settle for the relaxation's bound and the best choices found without a solver; ``limit`` says why."""
    out.limit = limit
    if impossible:
        out.status = "infeasible"
    elif out.choices is not None:
        settle(out, Answer("feasible", None, None, None, out.limit), wish, rounding_error)


def _by_network(
    table: CostTable, wish: Wish, limits: Limits, excluded: Collection[str], state: tuple[Outcome, float]
) -> bool:
    """Search the table as a network of pairs; False where it does not fit one."""
    out, deadline = state
    patience = Patience(deadline, limits.nodes, limits.solver and bool(solver_name()))
    slack = rounding(table, wish)
    made = search(table, wish, excluded, lambda choices: verified(table, wish, choices), patience, slack)
    if made is None:
        return False
    found, choices = made
    if found.status == "infeasible":
        out.status = "infeasible"
        return True
    if choices is not None:
        out.offer(choices, verified(table, wish, choices))
    if np.isfinite(found.bound):
        out.bound = max(found.bound, -INFINITE if out.bound is None else out.bound)
    limit = "" if found.near else "time" if patience.left < 0.02 else "nodes"
    settle(out, Answer("unknown", None, None, None, limit), wish, slack)
    return True


def _by_program(
    table: CostTable, wish: Wish, limits: Limits, excluded: Collection[str], state: tuple[Outcome, float]
) -> None:
    out, deadline = state
    held = [i for i, c in enumerate(table.choices) if c.id in excluded]
    gap = limits.gap if limits.gap is not None else (0.0 if len(table.choices) <= SMALL else 1e-4)
    exact = exact_stalls(table)
    if not exact and _relaxed_first(table, wish, held, (limits, gap, deadline), out):
        return
    begin = time.perf_counter()
    program = build(table, wish.budget, held)
    if deadline - time.perf_counter() < LOADING * (time.perf_counter() - begin):  # no time to load and to solve it
        _without_program(wish, "time", out, impossible=False, rounding_error=rounding(table, wish))
        return
    out.program = program
    scale = scale_of(table, wish.objective)
    live = Live(program, wish.objective, reference=out.value / scale if out.value else None)
    out.duals = live.relax(time_limit=max(0.05, deadline - time.perf_counter()))
    if out.duals is None and live.lp_infeasible():
        out.status = "infeasible"
    else:
        if out.duals is not None and exact:
            out.bound = max(out.duals.value * scale, -INFINITE if out.bound is None else out.bound)
        answer = solve_checked(table, wish, live, (limits, gap, deadline), out)
        settle(out, answer, wish, rounding(table, wish))
    if not exact and out.status == "infeasible":  # the rows may overstate waits: no proof
        out.status, out.limit = ("feasible" if out.choices else "unknown"), "stalls"
    if out.status == "optimal" and out.choices is not None:
        break_ties(table, wish, live, (limits, deadline), out)


def _relaxed_first(
    table: CostTable, wish: Wish, held: Sequence[int], limits: tuple[Limits, float, float], out: Outcome
) -> bool:
    """Bound (and with luck a plan) from stalls that are never overstated; True where nothing can fit."""
    bounds, gap, deadline = limits
    live = Live(build(table, wish.budget, held, relaxed=True), wish.objective)
    left = max(0.1, deadline - time.perf_counter())
    answer = live.solve(time_limit=0.4 * left, gap=gap, nodes=bounds.nodes)
    if answer.status == "infeasible":
        out.status = "infeasible"
        return True
    if answer.bound is not None and answer.bound > -INFINITE:
        out.bound = answer.bound * scale_of(table, wish.objective)
    columns = columns_in(answer, live.program.choices) if answer.values is not None else None
    if columns is not None:
        choices = chosen_of(table, columns)
        out.offer(choices, verified(table, wish, choices))
    return False


def rounding(table: CostTable, wish: Wish) -> float:
    """By how much the value of a plan may lie above the program's only because each phase is rounded up."""
    if wish.objective == "latency" and table.time_scale[1] != 1:
        return float(sum(wish.budget.phase_weights or (1,) * len(table.phases)))
    return 0.0


def solve_checked(
    table: CostTable, wish: Wish, live: Live, limits: tuple[Limits, float, float], out: Outcome
) -> Answer:
    """Solve; where the exact check finds a fault, forbid that plan, lower the row and solve again."""
    bounds, gap, deadline = limits
    scale = scale_of(table, wish.objective)
    first: Answer | None = None
    for number in range(ROUNDS + 1):
        start = columns_of(table, out.choices) if out.choices else None
        run = Run(deadline, gap, bounds.nodes)
        if out.duals is None or live.program.choices <= DIRECT:
            answer = solve_sifted(live, out.duals, run, start)
        elif live.program.ring >= 0:
            chain = bounds_of(table, live.program, wish.objective, out.duals) if exact_stalls(table) else None
            answer = solve_by_ring(live, out.duals, run, start, blocks_of(table), chain)
        else:
            answer = solve_by_lumps(live, out.duals, run, start)
        if first is None:
            first = answer
            if (
                exact_stalls(table) and answer.bound is not None and answer.bound > -INFINITE
            ):  # of the user's own problem, nothing lowered
                out.bound = max(answer.bound * scale, out.bound if out.bound is not None else -INFINITE)
        columns = columns_in(answer, live.program.choices) if answer.values is not None else None
        if columns is None:
            break
        choices = chosen_of(table, columns)
        found = faults(table, wish.budget, choices)
        if not found:
            out.offer(choices, value_of(totals(table, choices), wish.objective, wish.budget))
            return answer if number == 0 or answer.status != "feasible" else replace(answer, status="feasible")
        out.notes.append(f"the solver's plan broke a rule by its tolerance ({found[0].text}); forbidden, solved again")
        forbid(live, columns)
        lower(live, found, number)
        if deadline - time.perf_counter() < 0.05:
            break
    return answer if first is answer or answer.status != "infeasible" else replace(answer, status="unknown")


def blocks_of(table: CostTable) -> list[list[int]]:
    """Columns of each block, in order of execution."""
    where = places(table)
    groups: list[list[int]] = [[] for _ in table.blocks]
    for column, choice in enumerate(table.choices):
        block = where.block(choice)
        if block is not None:
            groups[block].append(column)
    return groups


def forbid(live: Live, columns: Sequence[int], differ: int = 1, weights: Sequence[int] | None = None) -> None:
    """Add the row that excludes plans differing from ``columns`` in fewer than ``differ`` (weighted) choices."""
    sizes = np.array(weights if weights is not None else [1] * len(columns), dtype=np.float64)
    taken = np.array(columns, dtype=np.int64)
    live.add_row(Row("not this plan", taken, sizes, -INFINITE, float(sizes.sum()) - differ))


def lower(live: Live, found: Sequence[Fault], number: int) -> None:
    """Lower each broken budget's row by what it was exceeded by; in later rounds by the solver's tolerance too."""
    for fault in found:
        for index, row in enumerate(live.rows):
            if row.budget and row.budget == fault.where:
                less = fault.amount + (live.scales[index] * 1e-5 if number >= 2 else 0.0)
                live.rows[index] = replace(row, high=row.high - less)
                live.set_limits(index, row.low, row.high - less)


def settle(out: Outcome, answer: Answer, wish: Wish, rounding_error: float) -> None:
    """Status, bound and limit from the last answer and the best verified choices."""
    out.limit = answer.limit
    if out.value is None or out.choices is None:
        out.status = "infeasible" if answer.status == "infeasible" else "unknown"
        return
    bound = -INFINITE if out.bound is None else out.bound
    if wish.objective != "loss" and bound > -INFINITE:  # whole units: a bound may be rounded up
        bound = float(np.ceil(bound - max(1e-6, 1e-9 * abs(bound))))
    bound = min(bound, out.value)
    near = abs(out.value - bound) <= max(1e-9 * abs(out.value), rounding_error)
    if near:  # nothing better than what is known exists
        bound = out.value
    out.bound = bound if bound > -INFINITE else None
    out.status = "optimal" if bound == out.value else "feasible"


def break_ties(table: CostTable, wish: Wish, live: Live, limits: tuple[Limits, float], out: Outcome) -> None:
    """Among plans of equal value seek less of each further objective in turn, keeping what is proven."""
    bounds, deadline = limits
    held, fixed = wish.objective, out.value
    for objective in (name for name in bounds.ties if name != wish.objective):
        left = min(deadline - time.perf_counter(), 10.0)
        if left < 0.1 or fixed is None or out.choices is None or live.program.choices > SMALL:
            return
        costs, constant = live.program.objectives[held]
        kept = np.nonzero(costs)[0]
        most = fixed / scale_of(table, held) - constant
        live.add_row(Row(f"keep {held}", kept, costs[kept], -INFINITE, most + abs(most) * 1e-12, f"keep {held}"))
        now = value_of(totals(table, out.choices), objective, wish.budget)
        live.set_objective(objective, now / scale_of(table, objective))
        answer = live.solve(time_limit=left, start=columns_of(table, out.choices), nodes=bounds.nodes)
        columns = columns_in(answer, live.program.choices) if answer.values is not None else None
        if columns is not None:
            choices = chosen_of(table, columns)
            value = verified(table, wish, choices)
            new = value_of(totals(table, choices), objective, wish.budget)
            if value is not None and out.value is not None and value <= out.value and new < now:
                out.choices, out.value, now = choices, value, new
        held, fixed = objective, now
