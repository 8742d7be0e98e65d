"""Runs the native steps of a program: through a built library, or through an evaluator where there is none.

In: a program's segments, slot addresses. Out: the segment's slots written.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from adaflex.errors import AdaflexError, OptionError
from adaflex.runtime.layout import Layout

LONG = ctypes.c_long


class Call(ctypes.Structure):
    """``af::Call`` of the kernel library's driver, field by field."""

    _fields_ = (
        ("symbols", ctypes.POINTER(LONG)),
        ("base", ctypes.POINTER(ctypes.c_void_p)),
        ("offset", ctypes.POINTER(LONG)),
        ("row_bytes", ctypes.POINTER(LONG)),
        ("group_rows", ctypes.POINTER(LONG)),
        ("window", ctypes.POINTER(ctypes.c_int)),
        ("slots", LONG),
        ("thread_arena", ctypes.c_void_p),
        ("thread_bytes", LONG),
        ("scratch_offset", LONG),
        ("team", ctypes.c_void_p),
        ("threads", LONG),
        ("mode", LONG),
        ("groups", LONG),
        ("item_groups", LONG),
        ("fault", ctypes.POINTER(ctypes.c_int)),
    )


class Kernels(Protocol):
    """What the executor asks of native code or of its stand-in."""

    def scratch_bytes(self, symbols: Sequence[int]) -> int:
        """Scratch that one thread needs for these sizes."""

    def prepare(self, layout: Layout) -> Prepared:
        """Everything that does not change between calls with this layout."""


class Prepared(Protocol):
    """A layout's calls, ready to run."""

    def run(self, segment: int, addresses: Sequence[int], thread_arena: int) -> None:
        """Run one segment on these slot addresses (0 for windowed slots)."""


class NativeKernels:
    """The generated library, with a team of threads of its own. Safe to fork only before the first run."""

    def __init__(self, library: Path, threads: int) -> None:
        self.path, self.threads = library, threads
        self._library = ctypes.CDLL(str(library))
        self._library.adaflex_segment.argtypes = (ctypes.c_int, ctypes.c_void_p)
        self._library.adaflex_segment.restype = ctypes.c_int
        self._library.adaflex_scratch.argtypes = (ctypes.c_void_p,)
        self._library.adaflex_scratch.restype = LONG
        self._library.adaflex_team.argtypes = (ctypes.c_int,)
        self._library.adaflex_team.restype = ctypes.c_void_p
        self._library.adaflex_team_free.argtypes = (ctypes.c_void_p,)
        self.team = self._library.adaflex_team(threads)
        weakref.finalize(self, self._library.adaflex_team_free, self.team)

    @property
    def entry(self) -> int:
        """The address of the function that runs a segment: ``int (int segment, const Call*)``."""
        return ctypes.cast(self._library.adaflex_segment, ctypes.c_void_p).value or 0

    def scratch_bytes(self, symbols: Sequence[int]) -> int:
        """Scratch that one thread needs for these sizes."""
        values = (LONG * max(len(symbols), 1))(*symbols)
        return int(self._library.adaflex_scratch(ctypes.addressof(values)))

    def prepare(self, layout: Layout) -> NativeCalls:
        """The call structures of a layout."""
        return NativeCalls(self, layout)

    def call(self, segment: int, address: int) -> int:
        """Run one segment; 0 where it went well."""
        return int(self._library.adaflex_segment(segment, address))


class NativeCalls:
    """One ``Call`` per segment, its arrays filled once; addresses are written before each run."""

    def __init__(self, kernels: NativeKernels, layout: Layout) -> None:
        self._kernels = kernels
        count = len(layout.row_bytes)
        self._symbols = (LONG * max(len(layout.symbols), 1))(*layout.symbols)
        self._base = (ctypes.c_void_p * count)()
        self._offset = (LONG * count)(*layout.offsets)
        self._row_bytes = (LONG * count)(*layout.row_bytes)
        self._fault = ctypes.c_int(0)
        self._arrays = []
        self._calls = []
        for windows, group_rows, mode in zip(layout.windows, layout.group_rows, layout.modes, strict=True):
            arrays = (LONG * count)(*group_rows), (ctypes.c_int * count)(*windows)
            self._arrays.append(arrays)
            self._calls.append(
                Call(
                    symbols=self._symbols,
                    base=self._base,
                    offset=self._offset,
                    row_bytes=self._row_bytes,
                    group_rows=arrays[0],
                    window=arrays[1],
                    slots=count,
                    thread_bytes=layout.thread_bytes,
                    scratch_offset=layout.scratch_offset,
                    team=kernels.team,
                    threads=mode.threads,
                    mode=mode.mode,
                    groups=mode.groups,
                    item_groups=mode.item_groups,
                    fault=ctypes.pointer(self._fault),
                )
            )

    def bind(self, segment: int, addresses: Sequence[int], thread_arena: int) -> int:
        """Where the segment's ``Call`` lies, once it holds these slot addresses."""
        self._base[:] = list(addresses)
        call = self._calls[segment]
        call.thread_arena = thread_arena
        return ctypes.addressof(call)

    def run(self, segment: int, addresses: Sequence[int], thread_arena: int) -> None:
        """Run one segment on these slot addresses."""
        status = self._kernels.call(segment, self.bind(segment, addresses, thread_arena))
        if status != 0:
            raise AdaflexError(f"native segment {segment} refused to run (status {status}); this is a bug, report it")
        if self._fault.value:
            self._fault.value = 0
            raise OptionError("an input holds an index outside of its embedding table; check the ids given")
