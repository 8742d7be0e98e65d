"""Improves a known plan by solving again for a few blocks at a time, everything else held.

In: a live program, the choices taken, blocks of columns. Out: better values, or the same. For programs on which the
solver alone finds plans slowly (streaming, pair terms).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adaflex.solver.sift import Run
from adaflex.solver.solve import Answer, Live

PATIENCE = 1.2  # rounds over all blocks without improvement before stopping


def polish(live: Live, answer: Answer, groups: Sequence[Sequence[int]], run: Run, *, width: int = 10) -> Answer:
    """Re-solve windows of ``width`` consecutive groups of columns until nothing improves or time ends.

    ``groups`` lists the choices of each block in order (cyclic). Deterministic but for the time limit.
    """
    if answer.values is None or answer.value is None or len(groups) < 2:
        return answer
    program = live.program
    rng = random.Random(0)
    width = min(width, len(groups) - 1)
    every = np.arange(program.choices)
    waited = 0
    while waited * width < PATIENCE * len(groups) * 2 and run.left > 0.2:
        assert answer.values is not None and answer.value is not None
        now = np.round(answer.values[: program.choices])
        first = rng.randrange(len(groups))
        freed = {c for k in range(width) for c in groups[(first + k) % len(groups)]}
        if rng.random() < 0.5:  # two places at once: what one gains the other may pay
            second = rng.randrange(len(groups))
            freed = {c for k in range(width // 2) for c in groups[(first + k) % len(groups)]}
            freed |= {c for k in range(width // 2) for c in groups[(second + k) % len(groups)]}
        held = np.setdiff1d(every, np.fromiter(freed, dtype=np.int64))
        live.set_many(held, now[held], now[held])
        start = [int(i) for i in np.nonzero(now > 0.5)[0]]
        found = live.solve(time_limit=min(3.0, run.left), gap=3e-4, start=start, nodes=run.nodes)
        live.set_many(held, np.zeros(len(held)), program.upper[held])
        if found.value is not None and found.value < answer.value * (1 - 1e-7):
            answer = replace(answer, status="feasible", values=found.values, value=found.value)
            waited = 0
        else:
            waited += 1
    return answer
