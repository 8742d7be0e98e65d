"""From a pair problem to a network: one row for each largest set of nodes that live at the same time.

In: a ``PairProblem``. Out: a ``Network`` with nothing reduced yet.
"""

from __future__ import annotations

import numpy as np

from adaflex.solver.pairwise.network import Floats, Network, Run
from adaflex.solver.pairwise.problem import NEVER, PairProblem


def network_of(problem: PairProblem) -> Network:
    """The problem as tables; forbidden is infinite."""
    at, room = _rows(problem)
    held: list[list[Run]] = []
    for node in problem.nodes:
        first, end = at.get(node.first, 0), at.get(node.end, 0)
        held.append([(first, end, np.array(node.usages, dtype=np.float64))] if first < end else [])
    made = Network([_table(n.costs) for n in problem.nodes], held, [{} for _ in held], room)
    for edge in problem.edges:
        shape = len(problem.nodes[edge.first].costs), len(problem.nodes[edge.second].costs)
        made.join(edge.first, edge.second, _table(edge.costs).reshape(shape))
    return made


def _table(values: tuple[int, ...]) -> Floats:
    made = np.array(values, dtype=np.float64)
    made[made >= NEVER] = np.inf
    return made


def _rows(problem: PairProblem) -> tuple[dict[int, int], Floats]:
    """(row at or after each time where a life begins or ends, room of each row)."""
    lives = [(n.first, n.end) for n in problem.nodes if n.first < n.end]
    if problem.limit is None or not lives:
        return {}, np.zeros(0)
    begins, ends = {a for a, _ in lives}, {b for _, b in lives}
    marks = sorted(begins | ends)
    at, count = {}, 0
    for mark, after in zip(marks, [*marks[1:], marks[-1]], strict=True):
        at[mark] = count
        count += mark in begins and after in ends  # what lives elsewhere also lives together at such a time
    return at, np.full(count, float(problem.limit))
