"""The one file that knows the solvers: PuLP writes the program, HiGHS solves it, CBC gives a second opinion.

In: a ``Program``, an objective, limits. Out: an ``Answer`` whose status says what is known and what is not. One
thread and a fixed seed; every option and every returned status is checked; a start that is rejected is said.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adaflex.errors import SolverError
from adaflex.solver.model import INFINITE, Program, Row, power_of_two

log = logging.getLogger("adaflex.solver")

State = Literal["optimal", "feasible", "infeasible", "unknown"]
WIDEST = 1.0e4  # a limit or objective is scaled to about this
TINY = 100  # columns; up to here branching alone answers at once
PATIENCE_S = 5.0  # or half the time limit: how long after it HiGHS is waited for


@dataclass(frozen=True)
class Answer:
    """What a solver run established. ``values`` and all figures are in the program's natural units."""

    status: State
    values: NDArray[np.float64] | None
    value: float | None
    bound: float | None
    limit: str = ""  # "", "time", "nodes", "gap"
    nodes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Duals:
    """Prices of an LP: per row, in objective units per natural unit of its limit, and reduced costs per column."""

    value: float
    rows: NDArray[np.float64]
    reduced: NDArray[np.float64]
    values: NDArray[np.float64]


def _new_highs() -> Any:
    import pulp  # noqa: F401  (PuLP first: its newer versions share HiGHS's library with highspy)
    from highspy import Highs

    maker: Any = Highs
    return maker()


@functools.cache
def solver_name() -> str:
    """The solvers and their versions, as recorded in a plan; empty where there is none."""
    try:
        import pulp

        version = _new_highs().version()
    except ImportError as fault:
        log.warning("no solver: %s; plans come from the search without one", fault)
        return ""
    return f"HiGHS {version} through PuLP {pulp.__version__}"


def row_scale(row: Row, program: Program) -> float:
    """A power of two to divide a row by: its largest entry, or its limit where smaller, becomes about 1000."""
    open_ = program.upper[row.columns] > 0.0
    size = float(np.max(np.abs(row.values * program.units[row.columns])[open_], initial=0.0))
    limit = max((abs(side) for side in (row.low, row.high) if math.isfinite(side)), default=0.0)
    if not size or (not row.budget and 1e-3 <= size <= 1e3):
        return 1.0
    size = max(min(size, limit), size / WIDEST) if limit else size
    return float(2.0 ** math.floor(math.log2(size / 1000.0)))


class Live:
    """A program loaded into HiGHS: solved, changed and solved again without building it anew."""

    def __init__(self, program: Program, objective: str, *, reference: float | None = None) -> None:
        self.program = program
        self.objective = objective
        self.rows = list(program.rows)
        self.scales = [row_scale(row, program) for row in self.rows]
        self.highs: Any = _new_highs()
        self.low, self.high = np.zeros(program.choices), program.upper[: program.choices].copy()  # of the choices, now
        self._option("output_flag", False)
        self._option("threads", 1)
        self._option("random_seed", 0)
        self.cost_scale = 1.0
        self.tiny = len(program.units) <= TINY
        self._load()
        self.set_objective(objective, reference)

    def _option(self, name: str, value: Any) -> None:
        self._check(self.highs.setOptionValue(name, value), f"option {name}={value}")

    def _check(self, status: Any, what: str) -> None:
        from highspy import HighsStatus

        if status == HighsStatus.kError:
            raise SolverError(f"HiGHS refused {what}; report this with the table that caused it")

    def _load(self) -> None:
        arrays = pulp_arrays(to_pulp(self.program, self.objective, self.scales))
        count = len(self.program.units)
        none = np.zeros(0)
        upper = self.program.upper / self.program.units
        empty = np.zeros(0, dtype=np.int32)
        self._check(
            self.highs.addCols(count, np.zeros(count), np.zeros(count), upper, 0, empty, empty, none), "columns"
        )
        whole = np.arange(self.program.choices, dtype=np.int32)
        self._check(
            self.highs.changeColsIntegrality(len(whole), whole, np.ones(len(whole), dtype=np.uint8)), "integers"
        )
        low, high, starts, columns, values = arrays
        status = self.highs.addRows(len(low), low, high, len(columns), starts, columns, values)
        self._check(status, "rows")

    def set_objective(self, objective: str, reference: float | None = None) -> None:
        """Minimise another objective; ``reference`` is a value some plan has, for scaling."""
        costs, _ = self.program.objectives[objective]
        self.objective = objective
        scaled = costs * self.program.units
        size = float(np.max(np.abs(scaled)[self.program.upper > 0.0], initial=0.0))
        target = min(max(abs(reference), size / WIDEST), size * WIDEST) if reference else size * 10.0
        self.cost_scale = float(2.0 ** math.floor(math.log2(target / WIDEST))) if target else 1.0
        every = np.arange(len(costs), dtype=np.int32)
        self._check(self.highs.changeColsCost(len(costs), every, scaled / self.cost_scale), "costs")

    def add_row(self, row: Row) -> int:
        """Add a row; returns its number."""
        scale = row_scale(row, self.program)
        values = row.values * self.program.units[row.columns] / scale
        status = self.highs.addRow(row.low / scale, row.high / scale, len(values), row.columns.astype(np.int32), values)
        self._check(status, f"row {row.name}")
        self.rows.append(row)
        self.scales.append(scale)
        return len(self.rows) - 1

    def set_limits(self, number: int, low: float, high: float) -> None:
        """Change the two sides of a row, in natural units."""
        scale = self.scales[number]
        self._check(self.highs.changeRowBounds(number, low / scale, high / scale), "limits")

    def set_bounds(self, column: int, low: float, high: float) -> None:
        """Change the bounds of a column, in natural units."""
        unit = float(self.program.units[column])
        if column < self.program.choices:
            self.low[column], self.high[column] = low, high
        self._check(self.highs.changeColBounds(column, low / unit, high / unit), "bounds")

    def set_many(self, columns: NDArray[np.int64], low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        """Change the bounds of many choices at once (their unit is 1)."""
        self.low[columns], self.high[columns] = low, high
        status = self.highs.changeColsBounds(len(columns), columns.astype(np.int32), low, high)
        self._check(status, "bounds")

    def solve(
        self,
        *,
        time_limit: float,
        gap: float = 0.0,
        start: Sequence[int] | None = None,
        nodes: int | None = None,
        cutoff: float | None = None,
    ) -> Answer:
        """Solve to relative ``gap``; ``start`` is the list of choices taken by a known plan."""
        begin = time.perf_counter()
        self._option("solve_relaxation", False)
        self._option("time_limit", max(0.05, time_limit))  # of this run
        self._option("mip_rel_gap", gap)
        self._option("mip_abs_gap", 1e-7)
        self._option("mip_max_nodes", nodes if nodes is not None else 2**31 - 1)
        self._option("objective_bound", INFINITE if cutoff is None else cutoff / self.cost_scale)
        if self.tiny:
            self._option("presolve", "off")
        self._run(time_limit, start)
        return self._answer(time.perf_counter() - begin)

    def _start(self, taken: Sequence[int]) -> None:
        values = np.zeros(self.program.choices)
        values[list(taken)] = 1.0
        status = self.highs.setSolution(len(values), np.arange(len(values), dtype=np.int32), values)
        self._check(status, "the start")

    def _run(self, limit_s: float, start: Sequence[int] | None = None) -> None:
        """Run from the plan ``start``; once more without presolve where HiGHS does not come back from it."""
        for again in (False, True):
            if again:
                self._renew(limit_s)
            if start is not None:
                self._start(start)
            if self._comes_back(limit_s):
                return
        raise SolverError(f"HiGHS did not come back within {limit_s:g} s; report this with the table that caused it")

    def _comes_back(self, limit_s: float) -> bool:
        """Run; False where HiGHS has not come back well after its time limit.

        Its presolve does not look at the clock, and there are programs, of 19 columns even, over which that of 1.15.1
        goes on for ever (ERGO-Code/HiGHS#1501, #2226). It runs in a thread of its own, so that it can be left.
        """
        from highspy import Highs, HighsStatus

        found: list[Any] = []

        def run(highs: Any) -> None:
            status = highs.run()
            if status == HighsStatus.kError:  # another thread count was used here: its scheduler is in the way
                Highs.resetGlobalScheduler(True)
                status = highs.run()
            found.append(status)

        thread = threading.Thread(target=run, args=(self.highs,), daemon=True, name="HiGHS")
        thread.start()
        thread.join(limit_s + max(PATIENCE_S, 0.5 * limit_s))
        if not thread.is_alive():
            self._check(found[0] if found else HighsStatus.kError, "to run")
        return bool(found)

    def _renew(self, limit_s: float) -> None:
        """Leave a run that does not end and load the same program again, to be solved without presolve."""
        log.warning("HiGHS did not come back from its presolve; it is left, and the program solved without presolve")
        left, self.highs = self.highs, _new_highs()
        self._check(self.highs.passOptions(left.getOptions()), "its options")
        self._option("presolve", "off")
        self._option("time_limit", max(0.05, limit_s))
        self._check(self.highs.passModel(left.getLp()), "its program")

    def _answer(self, seconds: float) -> Answer:
        from highspy import HighsModelStatus as Model

        info, model = self.highs.getInfo(), self.highs.getModelStatus()
        constant = self.program.objectives[self.objective][1]
        limit = {Model.kTimeLimit: "time", Model.kSolutionLimit: "nodes", Model.kInterrupt: "time"}.get(model, "")
        if model in (Model.kInfeasible, Model.kUnboundedOrInfeasible):  # nothing here is unbounded below
            return Answer("infeasible", None, None, None, "", int(info.mip_node_count), seconds)
        bound = float(info.mip_dual_bound) * self.cost_scale + constant
        bound = bound if math.isfinite(bound) else -INFINITE
        if model not in (Model.kOptimal, Model.kTimeLimit, Model.kSolutionLimit, Model.kInterrupt, Model.kModelEmpty):
            log.warning("HiGHS ended with %s", self.highs.modelStatusToString(model))
            return Answer("unknown", None, None, bound, "error", int(info.mip_node_count), seconds)
        if int(info.primal_solution_status) != 2:  # no feasible point: values would read 0.0
            return Answer("unknown", None, None, bound, limit, int(info.mip_node_count), seconds)
        values = np.array(self.highs.getSolution().col_value) * self.program.units
        value = float(info.objective_function_value) * self.cost_scale + constant
        proven = model in (Model.kOptimal, Model.kModelEmpty) and float(info.mip_gap) <= 1e-9
        if model == Model.kOptimal and not proven:
            limit = "gap"  # "Optimal" here only means that the gap asked for was reached
        return Answer(
            "optimal" if proven else "feasible", values, value, bound, limit, int(info.mip_node_count), seconds
        )

    def relax(self, *, time_limit: float = 60.0) -> Duals | None:
        """Solve the LP relaxation; None where it is infeasible or did not finish."""
        from highspy import HighsModelStatus as Model

        self._option("solve_relaxation", True)
        used = float(self.highs.getRunTime())  # where a basis is reused the limit is of all runs so far
        self._option("time_limit", used + max(0.05, time_limit))
        self._run(time_limit)
        if self.highs.getModelStatus() != Model.kOptimal:
            return None
        solution = self.highs.getSolution()
        scales = np.array(self.scales)
        units = self.program.units
        return Duals(
            float(self.highs.getInfo().objective_function_value) * self.cost_scale
            + self.program.objectives[self.objective][1],
            np.array(solution.row_dual) * self.cost_scale / scales,
            np.array(solution.col_dual) * self.cost_scale / units,
            np.array(solution.col_value) * units,
        )

    def lp_infeasible(self) -> bool:
        """Whether the last ``relax`` proved that nothing fits."""
        from highspy import HighsModelStatus as Model

        return bool(self.highs.getModelStatus() in (Model.kInfeasible, Model.kUnboundedOrInfeasible))


def to_pulp(program: Program, objective: str, scales: Sequence[float] | None = None) -> Any:
    """The program as a PuLP problem: scaled rows, columns c0, c1, ...; for HiGHS, CBC and .lp files."""
    import pulp

    scales = scales or [row_scale(row, program) for row in program.rows]
    expression: Any = getattr(pulp.LpAffineExpression, "from_list", pulp.LpAffineExpression)  # 4.x, 3.x
    problem = pulp.LpProblem("adaflex", pulp.LpMinimize)
    columns = []
    for index, (upper, unit) in enumerate(zip(program.upper, program.units, strict=True)):
        kind = "Integer" if index < program.choices else "Continuous"
        columns.append(problem.add_variable(f"c{index}", 0, None if math.isinf(upper) else upper / unit, kind))
    costs = program.objectives[objective][0] * program.units
    size = float(np.max(np.abs(costs)[program.upper > 0.0], initial=0.0))
    unit = 2.0 ** math.floor(math.log2(size / 1e6)) if size else 1.0  # scores of 1e-8 would drown in tolerances
    kept = np.nonzero(costs)[0].tolist()
    problem.setObjective(expression([(columns[i], float(costs[i] / unit)) for i in kept]))
    for number, (row, scale) in enumerate(zip(program.rows, scales, strict=True)):
        open_ = program.upper[row.columns] > 0.0  # columns held at 0 would only spoil the scale
        values = (row.values * program.units[row.columns] / scale)[open_].tolist()
        terms = expression([(columns[i], v) for i, v in zip(row.columns[open_].tolist(), values, strict=True)])
        if row.low == row.high:
            problem.addConstraint(terms == row.high / scale, f"r{number}")
        else:  # the program has no other two-sided rows
            problem.addConstraint(terms <= row.high / scale, f"r{number}")
    return problem


Arrays = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]


def pulp_arrays(problem: Any) -> Arrays:
    """(low, high, starts, columns, values) of a PuLP problem's rows, for one bulk hand-over to HiGHS."""
    held = problem.constraints
    rows = list(held().values() if isinstance(held(), dict) else held()) if callable(held) else list(held.values())
    low: list[float] = []
    high: list[float] = []
    starts: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for row in rows:
        starts.append(len(columns))
        limit = -float(row.constant)
        low.append(-INFINITE if row.sense < 0 else limit)
        high.append(INFINITE if row.sense > 0 else limit)
        for variable, value in row.items():
            columns.append(int(variable.name[1:]))
            values.append(value)
    floats = (np.array(low), np.array(high), np.array(starts, dtype=np.int32))
    return (*floats, np.array(columns, dtype=np.int32), np.array(values, dtype=np.float64))


def second_opinion(program: Program, objective: str, *, time_limit: float, gap: float = 0.0) -> Answer:
    """The same program by CBC through PuLP: for tests and for anyone who doubts an answer."""
    import pulp

    begin = time.perf_counter()
    problem = to_pulp(program, objective)
    maker = getattr(pulp, "PULP_CBC_CMD", None) or pulp.COIN_CMD  # 3.x brings its own
    if not maker(msg=False).available():
        return Answer("unknown", None, None, None, "no solver", 0, time.perf_counter() - begin)
    problem.solve(maker(msg=False, timeLimit=time_limit, gapRel=gap, threads=1))
    seconds = time.perf_counter() - begin
    if problem.status == pulp.LpStatusInfeasible:
        return Answer("infeasible", None, None, None, "", 0, seconds)
    by_name = {v.name: v.varValue for v in problem.variables()}
    found = [by_name.get(f"c{i}") for i in range(program.choices)]
    if problem.status != pulp.LpStatusOptimal or any(value is None for value in found):
        return Answer("unknown", None, None, None, "time", 0, seconds)
    width = len(program.units)
    values = np.array([by_name.get(f"c{i}") or 0.0 for i in range(width)]) * program.units
    costs, constant = program.objectives[objective]
    state: State = "optimal" if seconds < time_limit and gap == 0.0 else "feasible"
    return Answer(state, values, float(costs @ values) + constant, None, "", 0, seconds)


def write_lp(program: Program, objective: str, path: Path) -> None:
    """Write the program in LP format, for reading and for other solvers."""
    to_pulp(program, objective).writeLP(str(path))


__all__ = ["Answer", "Duals", "Live", "power_of_two", "second_opinion", "solver_name", "to_pulp", "write_lp"]
