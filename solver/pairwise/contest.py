"""A pair problem from file to verified answer.

In: a ``PairProblem``, limits. Out: ``Answered``: a strategy per node with its exact cost, a bound, why it ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from adaflex.solver.pairwise.build import network_of
from adaflex.solver.pairwise.choose import Patience, solve
from adaflex.solver.pairwise.problem import NEVER, PairProblem, value_of
from adaflex.solver.solve import solver_name

EXACT = 2**53  # whole numbers below are exact in float64


@dataclass(frozen=True)
class Answered:
    """One strategy per node, what it costs, and how far from optimal it can be."""

    status: str  # "optimal", "feasible", "infeasible", "unknown"
    choices: tuple[int, ...]
    cost: int | None
    bound: int | None
    most_bytes: int | None
    limit: str = ""
    seconds: float = 0.0
    open_nodes: int = 0  # left after reductions

    @property
    def gap(self) -> float | None:
        """(cost - bound) / cost."""
        if self.cost is None or self.bound is None:
            return None
        return (self.cost - self.bound) / max(self.cost, 1)


def answer(
    problem: PairProblem, *, time_limit_s: float = 60.0, rounds: int | None = None, solver: bool = True
) -> Answered:
    """The strategies of least cost within the memory limit: ``optimal`` where proven, else with a bound.

    ``rounds`` ends the search after so many turns: the same answer on every machine that gets there in time.
    """
    begin = time.perf_counter()

    def judge(chosen: Sequence[int]) -> float | None:
        cost, most = value_of(problem, chosen)
        return float(cost) if cost < NEVER and (problem.limit is None or most <= problem.limit) else None

    patience = Patience(begin + time_limit_s, rounds, solver and bool(solver_name()))
    found = solve(network_of(problem), judge, patience)
    seconds = time.perf_counter() - begin
    status = found.status
    bound = int(found.bound) if math.isfinite(found.bound) else None
    if found.choice is None:
        limit = "" if status == "infeasible" else "time"
        return Answered(status, (), None, bound, None, limit, seconds, found.open_nodes)
    cost, most = value_of(problem, found.choice)
    if status == "optimal" and cost < EXACT:
        return Answered("optimal", found.choice, cost, cost, most, "", seconds, found.open_nodes)
    limit = "time" if patience.left < 0.02 else "precision" if found.near else "rounds"
    return Answered("feasible", found.choice, cost, bound, most, limit, seconds, found.open_nodes)
