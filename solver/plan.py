"""The plan: the answer to a cost table and a budget, with its proof.

In: made by the solver. Out: read by codegen and reports. Holds no offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adaflex.solver.table import Budget

Status = Literal["optimal", "feasible", "infeasible", "unknown"]


@dataclass(frozen=True)
class Totals:
    """Exact totals of a set of choices, by the table's own figures."""

    size_bytes: int  # stored weights and other constants in the first tier
    peak_bytes: int  # planned memory: resident weights + ring + the highest cut
    time_ns: tuple[int, ...]  # per phase, stalls and casts included, scaled
    loss: float
    bits_milli: int
    ring_bytes: int = 0
    tier_bytes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class RunnerUp:
    """The next best choice for a site and what the objective would lose by it."""

    site: str
    choice: str
    price: float  # in units of the objective; below the proof's gap it is a tie
    tie: bool


@dataclass(frozen=True)
class Plan:
    """One choice for every site, what the table says it costs, and how far from optimal it can be."""

    status: Status
    choices: tuple[tuple[str, str], ...]  # (site id, choice id); a covering choice appears once per site
    totals: Totals | None
    objective: str  # "loss", "latency", "memory" or "bits"
    value: float | None
    bound: float | None  # of the user's own problem: first solve, nothing lowered
    gap: float | None  # relative
    limit: str  # which limit fired: "", "time", "nodes", "gap"
    budget: Budget
    table_digest: str
    reasons: tuple[str, ...] = ()  # why infeasible, what was dropped or lowered
    runners_up: tuple[RunnerUp, ...] = ()
    prices: tuple[tuple[str, float], ...] = ()  # per budget: objective units per unit of the budget
    seconds: float = 0.0
    solver: str = ""

    def choice_of(self, site: str) -> str:
        """The id of the choice that covers ``site``; KeyError where the plan has none."""
        return dict(self.choices)[site]
