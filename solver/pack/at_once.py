"""Few plain buffers in one call of the core, which costs them less than becoming a ``Problem``.

In: ``Buffer``s, a capacity or none. Out: ``Packed``: places that may do, and the bound; None: not plain, or no core.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from adaflex.solver.pack.library import library
from adaflex.solver.table import Buffer

MOST = 1500  # buffers
FIELDS = attrgetter("id", "size_bytes", "first", "end", "alignment", "gaps", "offset", "alias")


@dataclass(frozen=True)
class Packed:
    """Places of plain buffers; ``height`` is that of the places."""

    ids: tuple[str, ...]
    places: list[int]
    height: int
    bound: int


def pack_at_once(buffers: Sequence[Buffer], capacity: int | None, alignment: int) -> Packed | None:
    """The best of ten greedy orders; None for what needs more care: gaps, pins, aliases, mistakes, large numbers."""
    count = len(buffers)
    lib = library() if 0 < count <= MOST else None
    if lib is None:
        return None
    ids, size, first, end, alignments, gaps, pins, aliases = zip(*map(FIELDS, buffers), strict=True)
    if any(gaps) or any(aliases) or pins.count(None) < count or len(set(ids)) < count:
        return None
    steps = {alignment, *alignments} - {1}
    if len(steps) > 1 or (steps and 1 in alignments and alignment == 1):
        return None
    try:
        columns = array("q", size + first + end)
        places, bound = array("q", bytes(8 * count)), ctypes.c_int64(0)
        height = lib.adaflex_pack_at_once(
            count, columns.buffer_info()[0], max(steps, default=1), -1 if capacity is None else capacity,
            places.buffer_info()[0], ctypes.byref(bound),
        )  # fmt: skip
    except (OverflowError, TypeError, ctypes.ArgumentError):
        return None
    return None if height < 0 else Packed(ids, places.tolist(), height, bound.value)
