"""The packing core in C++, behind numpy arrays; None where there is no compiler.

In: a ``Problem``. Out: a ``Core`` with ``greedy`` and ``search``; twin.py has the same two functions in Python.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaflex import native
from adaflex.errors import BuildError
from adaflex.solver.pack.problem import Problem

log = logging.getLogger("adaflex.solver.pack")
RULES = {"sections": 1, "monotone": 2, "unplaced_floor": 4, "dominance": 8, "split": 16, "hatless": 32, "twins": 64}
ALL_RULES = sum(RULES.values())
NICHE = 128  # the niche search instead of the canonical one: plain items only
FOUND, NONE, LIMIT = 1, 0, 2


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built core, or None (said once) where it cannot be built."""
    try:
        source = "".join(Path(__file__).with_name(name).read_text() for name in ("core.cpp", "eject.cpp"))
        lib = native.load(native.build(source, name="pack"))
    except BuildError as fault:
        log.warning("packing runs in Python: %s", fault)
        return None
    lib.adaflex_pack_new.restype = ctypes.c_void_p
    lib.adaflex_pack_greedy.restype = ctypes.c_int64
    return lib


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class Core:
    """A problem held by the core. Sizes, alignments and pins are divided by their greatest common divisor."""

    def __init__(self, task: Problem, lib: ctypes.CDLL) -> None:
        self.lib = lib
        self.count = len(task.items)
        self.unit = common_unit(task)
        counts = [len(item.spans) for item in task.items]
        spans = [span for item in task.items for span in item.spans]
        size = np.array([item.size // self.unit for item in task.items], dtype=np.int64)
        align = np.array([max(1, item.alignment // self.unit) for item in task.items], dtype=np.int64)
        pin = np.array([item.pin // self.unit if item.pin > 0 else item.pin for item in task.items], dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        low = np.array([a for a, _ in spans], dtype=np.int32)
        high = np.array([b for _, b in spans], dtype=np.int32)
        pairs = np.array(task.apart, dtype=np.int32).reshape(-1)
        arrays = [_pointer(a) for a in (size, align, pin, starts, low, high)]
        made = lib.adaflex_pack_new(self.count, task.sections, *arrays, len(task.apart), _pointer(pairs))
        self.handle = ctypes.c_void_p(made)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.lib.adaflex_pack_free(self.handle)

    def greedy(self, order: Sequence[int], tight: bool, seconds: float = 1e9, below: int = 1 << 61) -> list[int] | None:
        """Places in bytes, items taken in ``order``; None where pins overlap, time ends or ``below`` is reached."""
        places = np.empty(self.count, dtype=np.int64)
        ranked = np.asarray(order, dtype=np.int32)
        height = self.lib.adaflex_pack_greedy(
            self.handle, _pointer(ranked), int(tight), ctypes.c_double(seconds),
            ctypes.c_int64(-(-below // self.unit)), _pointer(places),
        )  # fmt: skip
        return None if height < 0 else (places * self.unit).tolist()

    def reset(self) -> None:
        """Forget which sections failed before."""
        self.lib.adaflex_pack_reset(self.handle)

    def eject(self, places: Sequence[int], capacity: int, moves: int, seconds: float) -> tuple[list[int] | None, int]:
        """(places within ``capacity`` made from others, or None where a limit comes first; moves used)."""
        at = np.asarray(places, dtype=np.int64) // self.unit
        used = ctypes.c_int64(0)
        result = self.lib.adaflex_pack_eject(
            self.handle, ctypes.c_int64(capacity // self.unit), ctypes.c_int64(moves), ctypes.c_double(seconds),
            _pointer(at), ctypes.byref(used),
        )  # fmt: skip
        return (at * self.unit).tolist() if result == FOUND else None, int(used.value)

    def search(
        self, rank: Sequence[int], capacity: int, nodes: int, seconds: float = 1e9, rules: int = ALL_RULES
    ) -> tuple[int, list[int], int]:
        """(FOUND, NONE or LIMIT; places in bytes; nodes used) for a packing within ``capacity`` bytes."""
        places = np.empty(self.count, dtype=np.int64)
        ranked = np.asarray(rank, dtype=np.int32)
        used = ctypes.c_int64(0)
        whole = ctypes.c_int64(min(capacity // self.unit, 1 << 61))
        result = self.lib.adaflex_pack_search(
            self.handle, _pointer(ranked), whole, ctypes.c_int64(nodes), ctypes.c_double(seconds), rules,
            _pointer(places), ctypes.byref(used),
        )  # fmt: skip
        return int(result), (places * self.unit).tolist() if result == FOUND else [], int(used.value)


def common_unit(task: Problem) -> int:
    """The largest unit in which all sizes and pins are whole; 1 where alignments do not agree with it."""
    values = [item.size for item in task.items if item.size] + [item.pin for item in task.items if item.pin > 0]
    unit = int(np.gcd.reduce(np.array(values, dtype=np.int64))) if values else 1
    aligned = all(item.alignment % unit == 0 or unit % item.alignment == 0 for item in task.items)
    return unit if aligned else 1
