"""Messages and search over a network's arrays: in C++, or the same in Python where there is no compiler.

In: ``Flat`` arrays. Out: ``Engine`` with ``passing`` (one pass of messages and the bound it proves) and ``search``.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Protocol

import numpy as np

from adaflex import native
from adaflex.native import pointer
from adaflex.solver.pairwise.network import Flat, Floats
from adaflex.solver.pairwise.twin import Twin
from adaflex.solver.pairwise.walk import Chosen, Walk


class Engine(Protocol):
    """What both forms of the core can do."""

    def passing(self, rising: bool, own: Floats, chosen: Chosen) -> float:
        """One pass over the nodes; returns the bound it proves for costs ``own`` and leaves choices in ``chosen``."""

    def worse(self) -> Floats:
        """By option how much worse than its node's best it was when the last pass came by."""

    def messages(self) -> Floats:
        """The messages, edge by edge: to the first end by its option, then to the second."""

    def search(self, priced: Floats, chosen: Chosen, walk: Walk) -> float:
        """Repair ``chosen`` and walk; returns the least cost met within the room (``NOTHING``: none)."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built core, or None (said once) where it cannot be built."""
    source = Path(__file__).with_name("core.cpp")
    lib = native.load_core([source], name="pairs", otherwise="pair terms are searched in Python")
    if lib is None:
        return None
    lib.adaflex_pairs_new.restype = ctypes.c_void_p
    lib.adaflex_pairs_pass.restype = ctypes.c_double
    lib.adaflex_pairs_search.restype = ctypes.c_double
    return lib


def engine(flat: Flat) -> Engine:
    """The fastest form of the core there is here."""
    lib = library()
    return Twin(flat) if lib is None else Core(flat, lib)


class Core:
    """A network held by the C++ core."""

    def __init__(self, flat: Flat, lib: ctypes.CDLL) -> None:
        self.lib, self.flat = lib, flat
        counts = np.diff(flat.start).astype(np.int32)
        self.width = int(np.sum(counts[flat.ends])) if len(flat.ends) else 0
        made = lib.adaflex_pairs_new(
            len(flat.nodes), pointer(counts), pointer(flat.cost), len(flat.ends), pointer(flat.ends),
            pointer(flat.tables), len(flat.spans), pointer(flat.spans), pointer(flat.use),
            len(flat.room), pointer(flat.room),
        )  # fmt: skip
        self.handle = ctypes.c_void_p(made)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.lib.adaflex_pairs_free(self.handle)

    def passing(self, rising: bool, own: Floats, chosen: Chosen) -> float:
        """See ``Engine``."""
        return float(self.lib.adaflex_pairs_pass(self.handle, int(rising), pointer(own), pointer(chosen)))

    def worse(self) -> Floats:
        """See ``Engine``."""
        found = np.empty(int(self.flat.start[-1]))
        self.lib.adaflex_pairs_worse(self.handle, pointer(found))
        return found

    def messages(self) -> Floats:
        """See ``Engine``."""
        found = np.empty(self.width)
        self.lib.adaflex_pairs_messages(self.handle, pointer(found))
        return found

    def search(self, priced: Floats, chosen: Chosen, walk: Walk) -> float:
        """See ``Engine``."""
        return float(
            self.lib.adaflex_pairs_search(
                self.handle, pointer(priced), pointer(chosen), ctypes.c_uint64(walk.seed), walk.steps,
                ctypes.c_int64(walk.moves), walk.most, ctypes.c_double(walk.hot), ctypes.c_double(walk.cold),
                ctypes.c_double(walk.share), ctypes.c_double(walk.seconds),
            )
        )  # fmt: skip
