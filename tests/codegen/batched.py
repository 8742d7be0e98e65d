"""Many programs in one compiled unit: each in a namespace of its own, its entry points told apart by a number."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path

from adaflex.codegen.cpp import ISA_FLAGS, common, include_folder, render
from adaflex.native import Common, build
from adaflex.runtime.kernels import LONG, NativeKernels
from adaflex.runtime.program import Program
from tests.codegen.conftest import NEEDS, cpu_features

ENTRIES = ("adaflex_segment", "adaflex_scratch", "adaflex_team_free", "adaflex_team")


def supported() -> str:
    """The best instruction set of this machine."""
    features = cpu_features()
    return next((isa for isa, needs in NEEDS.items() if needs <= features), "portable")


def join(units: Sequence[str]) -> str:
    """One unit out of several that ``codegen.cpp.render`` printed."""
    includes: dict[str, None] = {}
    bodies = []
    for number, unit in enumerate(units):
        lines = unit.splitlines()
        includes.update(dict.fromkeys(line for line in lines if line.startswith("#include")))
        body = "\n".join(line for line in lines if not line.startswith("#include"))
        for entry in ENTRIES:
            body = body.replace(f"{entry}(", f"{entry}_{number}(")
        bodies.append(f"namespace unit{number} {{\n{body}\n}}")
    return "\n".join([*includes, *bodies]) + "\n"


def build_together(programs: Sequence[Program], isa: str, name: str = "batch") -> Path:
    """The library of one unit that holds them all."""
    shared = [common(program) for program in programs]
    parts = {part for one in shared for part in one.parts}
    return build(
        join([render(program) for program in programs]),
        includes=[include_folder()],
        flags=ISA_FLAGS[isa],
        name=name,
        common=Common(shared[0].headers, tuple(sorted(parts))),
    )


class BatchedKernels(NativeKernels):
    """The kernels of one program of a joined unit."""

    def __init__(self, library: Path, threads: int, number: int) -> None:
        self.path, self.threads = library, threads
        self._library = ctypes.CDLL(str(library))
        segment, scratch, free, team = (getattr(self._library, f"{entry}_{number}") for entry in ENTRIES)
        segment.argtypes, segment.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_int
        scratch.argtypes, scratch.restype = (ctypes.c_void_p,), LONG
        team.argtypes, team.restype = (ctypes.c_int,), ctypes.c_void_p
        free.argtypes = (ctypes.c_void_p,)
        self._segment, self._scratch = segment, scratch
        self.team = team(threads)
        weakref.finalize(self, free, self.team)

    def scratch_bytes(self, symbols: Sequence[int]) -> int:
        values = (LONG * max(len(symbols), 1))(*symbols)
        return int(self._scratch(ctypes.addressof(values)))

    def call(self, segment: int, address: int) -> int:
        return int(self._segment(segment, address))
