"""Several address spaces: each buffer goes to the first space it prefers in which it still fits.

In: ``Buffer``s with preferences, ``Space``s with capacities. Out: a ``Packing`` with the space of every buffer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from adaflex.errors import TableError
from adaflex.solver.pack.files import Space
from adaflex.solver.pack.packing import Packing, PackStatus
from adaflex.solver.pack.search import pack
from adaflex.solver.table import Buffer


def pack_spaces(
    buffers: Sequence[Buffer], spaces: Sequence[Space], *, alignment: int = 1, time_limit_s: float = 10.0
) -> Packing:
    """Place every buffer in one of its spaces (all of them, in the order given, where it names none).

    Buffers that gain least from a better space (fewest bytes times steps) leave it first when it is too full. Status
    ``fits``, ``infeasible`` (a buffer is larger than every space it may use, or a pinned one does not fit) or
    ``unknown``. One space gives what ``pack`` gives.
    """
    begin = time.perf_counter()
    order = [space.name for space in spaces]
    wishes = {b.id: [n for n in (b.spaces or order) if n in order] for b in buffers}
    for b in buffers:
        unknown = [name for name in b.spaces if name not in order]
        if unknown:
            raise TableError(f"buffer {b.id!r} prefers unknown space {unknown[0]!r}; there are {', '.join(order)}")
        if not any(s.capacity_bytes >= b.size_bytes for s in spaces if s.name in wishes[b.id]):
            text = f"buffer {b.id!r} of {b.size_bytes} bytes is larger than every space it may use"
            return Packing(
                "infeasible", (), 0, b.size_bytes, None, (b.id,), text, 0, time.perf_counter() - begin, "size"
            )
    place = {b.id: 0 for b in buffers}
    offsets: dict[str, int] = {}
    nodes = 0
    for space in sorted(spaces, key=lambda s: order.index(s.name)):
        for _ in range(len(buffers) + 1):
            here = [b for b in buffers if wishes[b.id][place[b.id] :][:1] == [space.name]]
            left = max(0.2, (time_limit_s - (time.perf_counter() - begin)) / 2)
            made = pack(here, capacity=space.capacity_bytes, alignment=alignment, time_limit_s=min(left, 1.0))
            nodes += made.nodes
            if made.status == "fits":
                offsets.update(made.offsets)
                break
            movable = [b for b in here if place[b.id] + 1 < len(wishes[b.id]) and b.offset is None]
            blamed = [b for b in movable if b.id in made.blame] or movable
            if not blamed:
                seconds = time.perf_counter() - begin
                status: PackStatus = "infeasible" if made.status == "infeasible" and len(spaces) == 1 else "unknown"
                return Packing(
                    status,
                    (),
                    0,
                    made.bound,
                    space.capacity_bytes,
                    made.blame,
                    f"{space.name}: {made.reason}",
                    nodes,
                    seconds,
                )
            out = min(blamed, key=lambda b: (b.size_bytes * (b.end - b.first), b.id))
            place[out.id] += 1
    where = tuple((b.id, wishes[b.id][place[b.id]]) for b in buffers)
    height = max((offsets[b.id] + b.size_bytes for b in buffers), default=0)
    found = tuple((b.id, offsets[b.id]) for b in buffers)
    return Packing("fits", found, height, 0, None, (), "", nodes, time.perf_counter() - begin, "spaces", where)
