"""What this machine is: the instruction set kernels are built for, threads, and the fingerprint that times belong to.

In: /proc/cpuinfo, settings. Out: names and numbers; an ``OptionError`` where a forced instruction set is not there.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

from adaflex.errors import OptionError
from adaflex.native import compiler
from adaflex.settings import settings

NEEDS: dict[str, set[str]] = {
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"},
    "avx2": {"avx2", "fma", "f16c", "bmi2"},
    "portable": set(),
}


@functools.cache
def cpu() -> tuple[str, frozenset[str]]:
    """The processor's name and feature flags; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown", frozenset()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    table = {key.strip(): value.strip() for key, value in fields.items()}
    return table.get("model name", "unknown"), frozenset(table.get("flags", "").split())


def isa() -> str:
    """The instruction set kernels are built for: the best here, or a lower one that the settings force."""
    flags = cpu()[1]
    forced = settings().isa
    if forced is None:
        return next(name for name, needs in NEEDS.items() if needs <= flags)
    if forced not in NEEDS:
        raise OptionError(f"ADAFLEX_ISA='{forced}' is unknown; choose one of {', '.join(NEEDS)}")
    missing = sorted(NEEDS[forced] - flags)
    if missing:
        raise OptionError(f"ADAFLEX_ISA='{forced}' needs {', '.join(missing)}, which this processor lacks; unset it")
    return forced


def thread_count(threads: int | None = None) -> int:
    """The threads to use: torch's number where none is given."""
    return threads or torch.get_num_threads()


def fingerprint(threads: int | None = None) -> tuple[tuple[str, str], ...]:
    """What measured times belong to."""
    built = compiler()
    return (
        ("cpu", cpu()[0]),
        ("isa", isa()),
        ("threads", str(thread_count(threads))),
        ("cores", str(os.cpu_count() or 0)),
        ("compiler", built.version if built is not None else "none"),
        ("torch", torch.__version__),
    )
