"""HiGHS is waited for, but not for ever."""

import subprocess
import sys

ENDLESS = """
import logging, sys
from adaflex.solver import solve
from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults
from adaflex.solver.decide import Limits
from adaflex.solver.generate import small_budget, small_table

logging.basicConfig(level=logging.WARNING)
solve.TINY, solve.PATIENCE_S = 0, 0.2  # or its presolve would not be asked
seed = 1326
table = small_table(seed)
budget = small_budget(table, seed)
plan = allocate(table, budget, limits=Limits(ties=(), time_s=2.0))
assert not faults(table, plan.budget, plan.choices)
print(plan.status, plan.value)
"""


def test_a_presolve_without_an_end_is_left() -> None:
    """In a process of its own: what is left goes on until that process ends."""
    done = subprocess.run([sys.executable, "-c", ENDLESS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["optimal", "236.0"]
    assert "did not come back" in done.stderr
