"""Solves a large program on few of its columns and proves that the others do not matter.

In: a live program and the duals of its LP. Out: an ``Answer`` for the whole program. A plan that takes a column of
reduced cost d costs at least the LP's value + d: once a plan is known, columns beyond it are out, exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from adaflex.solver.model import INFINITE
from adaflex.solver.solve import Answer, Duals, Live

DIRECT = 400  # columns up to which the program is solved as it stands
KEPT = 4  # columns per site kept at first


@dataclass(frozen=True)
class Run:
    """Limits of one run: a deadline on ``time.perf_counter``, a relative gap, a node limit."""

    deadline: float
    gap: float = 0.0
    nodes: int | None = None

    @property
    def left(self) -> float:
        """Seconds left."""
        return max(0.0, self.deadline - time.perf_counter())


def solve_sifted(live: Live, duals: Duals | None, run: Run, start: Sequence[int] | None = None) -> Answer:
    """Solve ``live`` to ``run.gap``; ``duals`` are of this very program (rows may have been lowered since)."""
    program = live.program
    free = np.nonzero(live.high > live.low)[0]
    if duals is None or len(free) <= DIRECT:
        return live.solve(time_limit=run.left, gap=run.gap, start=start, nodes=run.nodes)
    begin = time.perf_counter()
    reduced = duals.reduced[: program.choices]
    covers = sum(row.name.startswith("cover ") for row in program.rows)
    ranked = np.sort(np.maximum(reduced[free], 0.0))
    reach = float(ranked[min(len(free) - 1, KEPT * covers)])
    answer = Answer("unknown", None, None, duals.value)
    best: Answer | None = None
    while True:
        out = np.setdiff1d(free[reduced[free] > reach], np.array(start or [], dtype=np.int64))
        ceiling = live.high[out]
        final = len(out) == 0
        live.set_many(out, np.zeros(len(out)), np.zeros(len(out)))
        share = run.left if final or best is not None else 0.5 * run.left
        answer = live.solve(time_limit=share, gap=0.5 * run.gap, start=start, nodes=run.nodes)
        live.set_many(out, np.zeros(len(out)), ceiling)
        known = best.value if best is not None and best.value is not None else INFINITE
        if answer.value is not None and answer.values is not None and answer.value < known:
            best = answer
            start = [int(i) for i in np.nonzero(answer.values[: program.choices] > 0.5)[0]]
        whole = _global(answer, best, duals.value + (INFINITE if final else reach))
        if final or _done(whole, run) or run.left < 0.1:
            return replace(whole, seconds=time.perf_counter() - begin)
        known = best.value if best is not None and best.value is not None else INFINITE
        wider = known - duals.value
        reach = wider * (1 + 1e-9) + 1e-300 if wider > reach and math.isfinite(wider) else max(reach * 8.0, 1e-300)
        if wider <= reach and whole.status == "feasible" and whole.limit == "time":
            return replace(whole, seconds=time.perf_counter() - begin)


def _global(answer: Answer, best: Answer | None, outside: float) -> Answer:
    """What an answer on some columns says of the whole program: plans with others are worth at least ``outside``."""
    inside = INFINITE if answer.status == "infeasible" else answer.bound if answer.bound is not None else -INFINITE
    bound = min(inside, outside)
    if best is None or best.value is None:
        if answer.status == "infeasible" and outside == INFINITE:
            return answer
        return Answer("unknown", None, None, bound, answer.limit, answer.nodes)
    bound = min(bound, best.value)
    proven = best.value - bound <= 1e-9 * max(abs(best.value), 1e-300)
    limit = "" if proven else answer.limit or "gap"
    return replace(best, status="optimal" if proven else "feasible", bound=bound, limit=limit, nodes=answer.nodes)


def _done(answer: Answer, run: Run) -> bool:
    if answer.value is None or answer.bound is None:
        return False
    return answer.value - answer.bound <= max(run.gap * abs(answer.value), 0.0) + 1e-9 * abs(answer.value)
