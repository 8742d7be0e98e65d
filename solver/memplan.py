"""The memory planner's public entry: ``adaflex.memplan.pack(...)`` and what belongs to it.

In: ``Buffer``s or a ``MemoryProblem``. Out: a ``Packing``; ``validate`` checks anybody's offsets.
"""

from __future__ import annotations

from adaflex.solver.pack.files import MemoryProblem, Operator, Space, Store, buffers_from_csv, read_problem
from adaflex.solver.pack.packing import Packing
from adaflex.solver.pack.search import pack
from adaflex.solver.pack.spaces import pack_spaces
from adaflex.solver.pack.validate import PackFault, validate
from adaflex.solver.table import Buffer

__all__ = [
    "Buffer",
    "MemoryProblem",
    "Operator",
    "PackFault",
    "Packing",
    "Space",
    "Store",
    "buffers_from_csv",
    "pack",
    "pack_problem",
    "pack_spaces",
    "read_problem",
    "validate",
]


def pack_problem(
    problem: MemoryProblem, *, capacity: int | None = None, alignment: int = 1, time_limit_s: float = 10.0
) -> Packing:
    """Pack a problem as read from a file; ``capacity`` and ``alignment`` add to what the file says."""
    alignment = max(alignment, problem.alignment)
    if problem.spaces:
        return pack_spaces(problem.buffers, problem.spaces, alignment=alignment, time_limit_s=time_limit_s)
    most = capacity if capacity is not None else problem.capacity_bytes
    return pack(
        problem.buffers, capacity=most, alignment=alignment, separate=problem.separate, time_limit_s=time_limit_s
    )
