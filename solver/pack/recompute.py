"""Keep, fetch again or recompute: what to do with each buffer between two of its uses.

In: buffers with their uses in a fixed order of steps, a capacity, the price of bringing each back. Out: the uses
before which a buffer is brought back, of least total price, proven or with a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaflex.errors import TableError
from adaflex.solver.model import INFINITE, Program, Row
from adaflex.solver.solve import Live


@dataclass(frozen=True)
class Reused:
    """A buffer and the steps that use it, ascending; the first makes it (or brings it in, at no price)."""

    id: str
    size_bytes: int
    uses: tuple[int, ...]
    price: int  # of one recomputation or fetch: nanoseconds or bytes
    inputs: tuple[str, ...] = ()  # buffers that must be live when it is made again


@dataclass(frozen=True)
class Retention:
    """Which uses bring their buffer back, and what that costs."""

    again: tuple[tuple[str, int], ...]  # (buffer id, step)
    price: int
    bound: float
    peak: int
    status: str  # "optimal", "feasible" or "infeasible"


def retain(buffers: Sequence[Reused], capacity: int, *, time_limit_s: float = 10.0) -> Retention:
    """Least price of bringing buffers back so that live bytes never exceed ``capacity`` (one choice per gap).

    Between consecutive uses a buffer is kept, or dropped and brought back at the later use, for which its inputs must
    be live at that step. The same program serves recomputation, fetching from a slower memory, and both.
    """
    gaps = [(b, k) for b in range(len(buffers)) for k in range(1, len(buffers[b].uses))]
    index = {gap: number for number, gap in enumerate(gaps)}
    names = {buffer.id: number for number, buffer in enumerate(buffers)}
    steps = max((buffer.uses[-1] for buffer in buffers), default=-1) + 1
    rows: list[Row] = []
    for step in range(steps):
        fixed, terms = 0, []
        for b, buffer in enumerate(buffers):
            if step in buffer.uses:
                fixed += buffer.size_bytes
            for k in range(1, len(buffer.uses)):
                if buffer.uses[k - 1] < step < buffer.uses[k]:
                    fixed += buffer.size_bytes
                    terms.append((index[b, k], -float(buffer.size_bytes)))
        rows.append(_row(f"step {step}", terms, float(capacity - fixed), "memory"))
        if not terms and fixed > capacity:
            return Retention((), 0, 0.0, fixed, "infeasible")
    for (b, k), number in index.items():
        for name in buffers[b].inputs:
            if name not in names:
                raise TableError(f"buffer {buffers[b].id!r} is made from unknown buffer {name!r}")
            other, step = buffers[names[name]], buffers[b].uses[k]
            inner = [j for j in range(1, len(other.uses)) if other.uses[j - 1] < step < other.uses[j]]
            if inner:  # dropped there: not at hand
                rows.append(_row("inputs", [(number, 1.0), (index[names[name], inner[0]], 1.0)], 1.0, ""))
            elif step not in other.uses:
                rows.append(_row("inputs", [(number, 1.0)], 0.0, ""))
    cost = np.array([float(buffers[b].price) for b, _ in gaps])
    count = len(gaps)
    program = Program(
        count, np.ones(count), np.ones(count), tuple(r for r in rows if len(r.columns)), {"price": (cost, 0.0)}
    )
    if not count:
        return Retention((), 0, 0.0, _peak(buffers, set()), "optimal")
    answer = Live(program, "price").solve(time_limit=time_limit_s)
    if answer.values is None:
        return Retention((), 0, answer.bound or 0.0, 0, "infeasible" if answer.status == "infeasible" else "unknown")
    taken = {gaps[i] for i in np.nonzero(answer.values > 0.5)[0]}
    price = sum(buffers[b].price for b, _ in taken)
    peak = _peak(buffers, taken)
    again = tuple((buffers[b].id, buffers[b].uses[k]) for b, k in sorted(taken))
    return Retention(again, price, answer.bound or 0.0, peak, answer.status if peak <= capacity else "unknown")


def _row(name: str, terms: Sequence[tuple[int, float]], high: float, budget: str) -> Row:
    columns = np.array([column for column, _ in terms], dtype=np.int64)
    return Row(name, columns, np.array([value for _, value in terms]), -INFINITE, high, budget)


def _peak(buffers: Sequence[Reused], dropped: set[tuple[int, int]]) -> int:
    """Live bytes at the busiest step, counted step by step."""
    steps = max((buffer.uses[-1] for buffer in buffers), default=-1) + 1
    live = [0] * steps
    for b, buffer in enumerate(buffers):
        for step in buffer.uses:
            live[step] += buffer.size_bytes
        for k in range(1, len(buffer.uses)):
            if (b, k) not in dropped:
                for step in range(buffer.uses[k - 1] + 1, buffer.uses[k]):
                    live[step] += buffer.size_bytes
    return max(live, default=0)
