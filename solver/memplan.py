"""The memory planner's public entry: ``adaflex.memplan.pack(...)`` and what belongs to it.

In: ``Buffer``s or a ``MemoryProblem``. Out: a ``Packing``; ``validate`` checks anybody's offsets.
"""

from __future__ import annotations

from dataclasses import replace

from adaflex.errors import TableError
from adaflex.solver.pack.files import MemoryProblem, Operator, Space, Store, buffers_from_csv, read_problem
from adaflex.solver.pack.inplace import pack_in_place
from adaflex.solver.pack.order import buffers_in_order, lowest_order
from adaflex.solver.pack.packing import Packing
from adaflex.solver.pack.search import pack
from adaflex.solver.pack.spaces import pack_spaces
from adaflex.solver.pack.streams import Streamed, flow_of, stream
from adaflex.solver.pack.tiers import Flow
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
    "pack_in_place",
    "pack_problem",
    "pack_spaces",
    "read_problem",
    "stream_problem",
    "validate",
]


def pack_problem(
    problem: MemoryProblem, *, capacity: int | None = None, alignment: int = 1, time_limit_s: float = 10.0
) -> Packing:
    """Pack a problem as read from a file; ``capacity`` and ``alignment`` add to what the file says.

    Where the problem lists operators, the order of least peak is sought first and lives follow from it.
    """
    alignment = max(alignment, problem.alignment)
    buffers, order = problem.buffers, tuple[str, ...]()
    if problem.operators and not problem.stores:
        found = lowest_order(problem.operators, {b.id: b.size_bytes for b in buffers})
        order = found.operators
        buffers = tuple(buffers_in_order(problem.operators, order, buffers))
    if problem.spaces and problem.in_place:
        raise TableError("in_place pairs are for one address space; leave out 'spaces' or 'in_place'")
    if problem.spaces:
        made = pack_spaces(buffers, problem.spaces, alignment=alignment, time_limit_s=time_limit_s)
    else:
        most = capacity if capacity is not None else problem.capacity_bytes
        if problem.in_place:
            made = pack_in_place(
                buffers, problem.in_place, capacity=most, alignment=alignment, separate=problem.separate,
                time_limit_s=time_limit_s,
            )  # fmt: skip
        else:
            made = pack(
                buffers, capacity=most, alignment=alignment, separate=problem.separate, time_limit_s=time_limit_s
            )
    return replace(made, order=order)


def stream_problem(problem: MemoryProblem, *, time_limit_s: float = 5.0) -> tuple[Flow, Streamed]:
    """Run a problem's operators in order over its memories: what stays where, what is copied when.

    Raises ``TableError`` where there is no working memory or a step does not fit in it.
    """
    flow = flow_of(problem)
    return flow, stream(flow, time_limit_s=time_limit_s)
