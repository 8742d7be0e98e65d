"""The staging ring as an outer decision: its size is cut into intervals, each solved as a program of its own.

In: a live program with a ring column. Out: an ``Answer`` for all ring sizes. With the ring nearly fixed its rows are
plain knapsacks and the solver does well; the bound is the least over all intervals, so nothing is left out.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Sequence

import numpy as np

from adaflex.solver.model import INFINITE
from adaflex.solver.neighbourhood import polish
from adaflex.solver.sift import Run, solve_sifted
from adaflex.solver.solve import Answer, Duals, Live

FACTORS = (0.0, 0.4, 0.7, 0.85, 0.93, 1.0, 1.08, 1.18, 1.35, 1.7, 2.5)  # of the LP's ring: first cut into intervals
NARROW = 0.02  # relative width below which an interval is not cut again


def solve_by_ring(
    live: Live, duals: Duals, run: Run, start: Sequence[int] | None, groups: Sequence[Sequence[int]] = ()
) -> Answer:
    """Branch on the ring's size: lowest bound first, the more promising intervals get the time."""
    begin = time.perf_counter()
    ring = live.program.ring
    middle = float(duals.values[ring])
    if middle <= 0.0:
        return solve_sifted(live, duals, run, start)
    edges = [factor * middle for factor in FACTORS] + [INFINITE]
    queue: list[tuple[float, float, float]] = []
    for low, high in itertools.pairwise(edges):
        relaxed = relax_between(live, ring, low, high)
        if relaxed is not None:
            heapq.heappush(queue, (relaxed.value, low, high))
    best = _first(live, (ring, middle), run, start, groups)
    settled = INFINITE  # least bound of intervals that are done
    while queue and run.left > 0.1:
        bound, low, high = queue[0]
        if best is not None and best.value is not None and bound >= best.value - run.gap * abs(best.value):
            break
        heapq.heappop(queue)
        part = relax_between(live, ring, low, high)
        if part is None:
            continue
        share = Run(time.perf_counter() + min(run.left, max(0.5, 0.3 * run.left)), 0.5 * run.gap, run.nodes)
        answer = solve_sifted(live, part, share, _start_within(live, _taken(live, best), low, high))
        if answer.value is not None and (best is None or best.value is None or answer.value < best.value):
            best = answer
        reached = max(bound, answer.bound if answer.bound is not None else -INFINITE)
        if answer.status == "infeasible":
            continue
        if answer.status == "optimal" or high - low <= NARROW * middle or high == INFINITE:
            settled = min(settled, reached)
            continue
        cut = (low + high) / 2 if low > 0 else high * 0.8
        for a, b in ((low, cut), (cut, high)):
            half = relax_between(live, ring, a, b)
            if half is not None:
                heapq.heappush(queue, (max(reached, half.value), a, b))
    live.set_bounds(ring, 0.0, INFINITE)
    return _whole(best, min([settled, *(bound for bound, _, _ in queue)]), run, time.perf_counter() - begin)


def _first(
    live: Live, of: tuple[int, float], run: Run, start: Sequence[int] | None, groups: Sequence[Sequence[int]]
) -> Answer | None:
    """A good plan: where the ring is a little larger than the LP's, integers fit easily; then block by block."""
    ring, middle = of
    best: Answer | None = None
    for factor in (1.12, 1.3, 1.6):
        part = relax_between(live, ring, factor * middle, factor * middle)
        if part is not None and best is None and run.left > 0.5:
            share = Run(time.perf_counter() + 0.3 * run.left, max(run.gap, 0.01), run.nodes)
            answer = solve_sifted(live, part, share)
            best = answer if answer.value is not None else None
    live.set_bounds(ring, 0.0, INFINITE)
    if best is None and start is not None:
        answer = live.solve(time_limit=1.0, gap=1e6, start=start)
        best = answer if answer.value is not None else None
    if best is None:
        return None
    return polish(live, best, groups, Run(time.perf_counter() + 0.6 * run.left, run.gap, run.nodes), width=6)


def _taken(live: Live, best: Answer | None) -> list[int] | None:
    if best is None or best.values is None:
        return None
    return [int(i) for i in np.nonzero(best.values[: live.program.choices] > 0.5)[0]]


def _whole(best: Answer | None, bound: float, run: Run, seconds: float) -> Answer:
    if best is None or best.value is None:
        state = "unknown" if bound < INFINITE else "infeasible"
        return Answer("unknown" if state == "unknown" else "infeasible", None, None, bound, "time", 0, seconds)
    bound = min(bound, best.value)
    proven = best.value - bound <= 1e-9 * abs(best.value)
    limit = "" if proven else "gap" if best.value - bound <= run.gap * abs(best.value) else "time"
    return Answer("optimal" if proven else "feasible", best.values, best.value, bound, limit, best.nodes, seconds)


def relax_between(live: Live, ring: int, low: float, high: float) -> Duals | None:
    """The LP with the ring between ``low`` and ``high`` bytes; None where nothing fits."""
    live.set_bounds(ring, low, high)
    return live.relax()


def _start_within(live: Live, start: Sequence[int] | None, low: float, high: float) -> Sequence[int] | None:
    """The known plan where its ring lies in the interval."""
    if start is None:
        return None
    taken = set(start)
    need = 0.0
    for row in live.program.rows:
        if row.name.startswith("ring "):
            need = max(need, sum(v for c, v in zip(row.columns, row.values, strict=True) if int(c) in taken))
    return start if low <= need <= high else None
