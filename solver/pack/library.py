"""The packing core in C++, built on first use; None where there is no compiler.

In: nothing, or columns of integers. Out: the library; rows of a CSV and sections of runs, which problem.py and files.py
make without it otherwise.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adaflex import native
from adaflex.native import pointer

Ints = NDArray[np.int64]
SOURCES = (
    "core.cpp",
    "greedy.cpp",
    "at_once.cpp",
    "search.cpp",
    "eject.cpp",
    "outward.cpp",
    "read.cpp",
)  # compiled as one


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built core, or None (said once) where it cannot be built."""
    files = [Path(__file__).with_name(name) for name in SOURCES]
    lib = native.load_core(files, name="pack", otherwise="packing runs in Python")
    if lib is None:
        return None
    lib.adaflex_pack_new.restype = ctypes.c_void_p
    lib.adaflex_pack_greedy.restype = ctypes.c_int64
    lib.adaflex_pack_read.restype = ctypes.c_int64
    lib.adaflex_pack_sections.restype = ctypes.c_int64
    number, place = ctypes.c_int64, ctypes.c_void_p
    lib.adaflex_pack_at_once.restype = number
    lib.adaflex_pack_at_once.argtypes = [number, place, number, number, place, place]
    return lib


def read_rows(text: bytes, columns: int, which: Sequence[int]) -> tuple[Ints, ...] | None:
    """(where ids begin and end, first step, end, size) of a plain CSV's rows; None where it is not plain.

    ``which`` are the columns of id, first step, end and size, then 1 for each column that must be empty.
    """
    lib = library()
    if lib is None:
        return None
    most = text.count(b"\n") + 1
    found = [np.empty(most, dtype=np.int64) for _ in range(5)]
    columns_ = np.array(which, dtype=np.int32)
    rows = lib.adaflex_pack_read(
        text, ctypes.c_int64(len(text)), columns, pointer(columns_), ctypes.c_int64(most), *map(pointer, found)
    )
    return None if rows < 0 else tuple(column[:rows] for column in found)


def number_sections(first: Ints, end: Ints, least: int, steps: int) -> tuple[Ints, Ints, Ints] | None:
    """(steps at which sections begin, first section, last section of each run); None without the core."""
    lib = library()
    if lib is None:
        return None
    low, high, times = np.empty_like(first), np.empty_like(end), np.empty(2 * len(first), dtype=np.int64)
    words = ctypes.c_int64(steps // 64 + 1)
    first, end = np.ascontiguousarray(first), np.ascontiguousarray(end)
    count = lib.adaflex_pack_sections(
        ctypes.c_int64(len(first)), pointer(first), pointer(end), ctypes.c_int64(least), words,
        pointer(low), pointer(high), pointer(times),
    )  # fmt: skip
    return times[:count], low, high
