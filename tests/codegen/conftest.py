"""Builds a C++ harness of this folder for one instruction set."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

from adaflex.native import build, load

HERE = Path(__file__).resolve().parent
HEADERS = HERE.parents[1] / "codegen" / "cpp"
FLAGS = {
    "avx512": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512", "-DAF_AVX512"),
    "avx2": ("-march=x86-64-v3", "-DAF_AVX2"),
    "portable": ("-DAF_PORTABLE",),
}
NEEDS = {"avx512": {"avx512_bf16", "avx512_vnni", "avx512bw", "avx512vl"}, "avx2": {"avx2", "fma", "f16c"}}


def cpu_features() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


@pytest.fixture(scope="module", params=list(FLAGS))
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set in turn; skipped where this machine lacks it."""
    name: str = request.param
    missing = NEEDS.get(name, set()) - cpu_features()
    if missing:
        pytest.skip(f"this machine has no {', '.join(sorted(missing))}")
    return name


@pytest.fixture(scope="module")
def harness(isa: str) -> Callable[[str], ctypes.CDLL]:
    """harness("vec") is tests/codegen/vec_harness.cpp, built for the instruction set and loaded."""

    def make(name: str) -> ctypes.CDLL:
        source = (HERE / f"{name}_harness.cpp").read_text()
        return load(build(source, includes=(HEADERS,), flags=FLAGS[isa], name=f"{name}-{isa}"))

    return make
