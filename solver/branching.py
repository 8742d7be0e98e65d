"""What trees over the parts of a program have in common: which choices to branch on, and what they add up to.

In: programs, values of LPs, answers. Out: columns, and an ``Answer`` for all parts together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adaflex.solver.model import INFINITE, Program
from adaflex.solver.solve import Answer

WHOLE = 1e-5  # a choice this near to 0 or 1 is decided


def several(program: Program) -> NDArray[np.int64]:
    """The choices that stand in more than one cover row."""
    count = np.zeros(len(program.units), dtype=np.int64)
    for row in program.rows:
        if row.name.startswith("cover "):
            count[row.columns] += 1
    return np.nonzero((count > 1) & (program.upper > 0.0))[0]


def least_sure(values: NDArray[np.float64], columns: NDArray[np.int64]) -> int:
    """Which of the columns an LP is least sure of, given all its values; -1 where all are decided."""
    doubt = np.minimum(values[columns], 1.0 - values[columns])
    return int(columns[np.argmax(doubt)]) if float(doubt.max(initial=0.0)) > WHOLE else -1


def better(best: Answer | None, answer: Answer) -> Answer | None:
    """The one of two answers whose plan is worth less; the first where neither has one."""
    if answer.value is None:
        return best
    return answer if best is None or best.value is None or answer.value < best.value else best


def is_settled(best: Answer | None, bound: float, gap: float) -> bool:
    """Whether nothing worth at least ``bound`` is better than the best plan by more than the relative gap."""
    value = best.value if best is not None else None
    return value is not None and bound >= value - gap * abs(value)


def whole(best: Answer | None, bound: float, gap: float, seconds: float) -> Answer:
    """The best plan, with a bound on the plans of all parts."""
    if best is None or best.value is None:
        return Answer("unknown" if bound < INFINITE else "infeasible", None, None, bound, "time", 0, seconds)
    bound = min(bound, best.value)
    proven = best.value - bound <= 1e-9 * abs(best.value)
    limit = "" if proven else "gap" if best.value - bound <= gap * abs(best.value) else "time"
    return Answer("optimal" if proven else "feasible", best.values, best.value, bound, limit, best.nodes, seconds)
