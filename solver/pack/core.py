"""The packing core in C++, behind numpy arrays; None where there is no compiler.

In: a ``Problem``. Out: a ``Core`` with ``greedy`` and ``search``; twin.py has the same two functions in Python.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adaflex.native import pointer
from adaflex.solver.pack.problem import Problem

RULES = {
    "sections": 1, "monotone": 2, "unplaced_floor": 4, "dominance": 8, "split": 16, "hatless": 32, "twins": 64,
    "niche": 128, "weights": 256, "nogoods": 512, "sums": 1024, "reversal": 2048,
}  # fmt: skip
ALL_RULES = sum(RULES.values())
NICHE = RULES["niche"]  # instead of the canonical search: plain items only
FOUND, NONE, LIMIT = 1, 0, 2


class Core:
    """A problem held by the core. Sizes, alignments and pins are divided by their greatest common divisor."""

    def __init__(self, task: Problem, lib: ctypes.CDLL) -> None:
        self.lib = lib
        self.count = task.count
        self.unit = common_unit(task)
        size, pin = task.size // self.unit, np.where(task.pin > 0, task.pin // self.unit, task.pin)
        align = np.maximum(1, task.alignment // self.unit)
        starts, low, high = (a.astype(np.int32) for a in (task.run_start, task.run_low, task.run_high))
        pairs = np.array(task.apart, dtype=np.int32).reshape(-1)
        arrays = [pointer(a) for a in (size, align, pin, starts, low, high)]
        made = lib.adaflex_pack_new(task.count, task.sections, *arrays, len(task.apart), pointer(pairs))
        self.handle = ctypes.c_void_p(made)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.lib.adaflex_pack_free(self.handle)

    def sweep(self) -> list[int]:
        """Places in bytes by one sweep over time: a valid packing of a million items in a moment."""
        places = np.empty(self.count, dtype=np.int64)
        self.lib.adaflex_pack_sweep(self.handle, pointer(places))
        return (places * self.unit).tolist()

    def greedy(
        self, order: Sequence[int] | NDArray[np.int64], tight: bool, seconds: float = 1e9, below: int = 1 << 61
    ) -> list[int] | None:
        """Places in bytes, items taken in ``order``; None where pins overlap, time ends or ``below`` is reached."""
        places = np.empty(self.count, dtype=np.int64)
        ranked = np.asarray(order, dtype=np.int32)
        height = self.lib.adaflex_pack_greedy(
            self.handle, pointer(ranked), int(tight), ctypes.c_double(seconds),
            ctypes.c_int64(-(-below // self.unit)), pointer(places),
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
            pointer(at), ctypes.byref(used),
        )  # fmt: skip
        return (at * self.unit).tolist() if result == FOUND else None, int(used.value)

    def outward(
        self, places: Sequence[int] | None, goals: tuple[int, int], limits: tuple[int, float], seed: int
    ) -> tuple[list[int] | None, int]:
        """(lower places if any, moves used) from the fullest step outward, for free items of one run each.

        ``goals`` are the height that is enough and that of ``places``; ``limits`` are moves and seconds.
        """
        enough, height = goals
        top, used = ctypes.c_int64(-1 if places is None else -(-height // self.unit)), ctypes.c_int64(0)
        before = top.value
        at = np.zeros(self.count, dtype=np.int64)
        known = self.lib.adaflex_pack_outward(
            self.handle, ctypes.c_int64(enough // self.unit), ctypes.c_int64(limits[0]), ctypes.c_double(limits[1]),
            ctypes.c_uint64(seed), ctypes.byref(top), pointer(at), ctypes.byref(used),
        )  # fmt: skip
        better = known and (before < 0 or top.value < before)
        return (at * self.unit).tolist() if better else None, int(used.value)

    def search(
        self, rank: Sequence[int], capacity: int, nodes: int, seconds: float = 1e9, rules: int = ALL_RULES
    ) -> tuple[int, list[int], int]:
        """(FOUND, NONE or LIMIT; places in bytes; nodes used) for a packing within ``capacity`` bytes."""
        places = np.empty(self.count, dtype=np.int64)
        ranked = np.asarray(rank, dtype=np.int32)
        used = ctypes.c_int64(0)
        whole = ctypes.c_int64(min(capacity // self.unit, 1 << 61))
        result = self.lib.adaflex_pack_search(
            self.handle, pointer(ranked), whole, ctypes.c_int64(nodes), ctypes.c_double(seconds), rules,
            pointer(places), ctypes.byref(used),
        )  # fmt: skip
        return int(result), (places * self.unit).tolist() if result == FOUND else [], int(used.value)


def common_unit(task: Problem) -> int:
    """The largest unit in which all sizes and pins are whole, and alignments too where they do not agree with it."""
    unit = int(np.gcd(np.gcd.reduce(task.size), np.gcd.reduce(task.pin[task.pin > 0]))) or 1
    aligned = bool(np.all((task.alignment % unit == 0) | (unit % task.alignment == 0)))
    return unit if aligned else int(np.gcd(unit, np.gcd.reduce(task.alignment)))
