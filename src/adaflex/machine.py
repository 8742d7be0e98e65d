"""What this machine is: the instruction set kernels are built for, threads, and the fingerprint that times belong to.

In: /proc/cpuinfo, settings. Out: a ``Machine``; an ``OptionError`` where a forced instruction set is not there.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

from adaflex.errors import OptionError
from adaflex.native import compiler
from adaflex.passes.menu import Machine
from adaflex.settings import settings

NEEDS = {
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


def machine(threads: int | None = None, device: str = "cpu") -> Machine:
    """This machine with ``threads`` threads (torch's number where None)."""
    name, flags = cpu()
    forced = settings().isa
    if forced is not None:
        if forced not in NEEDS:
            raise OptionError(f"ADAFLEX_ISA='{forced}' is unknown; choose one of {', '.join(NEEDS)}")
        missing = sorted(NEEDS[forced] - flags)
        if missing:
            raise OptionError(
                f"ADAFLEX_ISA='{forced}' needs {', '.join(missing)}, which this processor lacks; unset it"
            )
    isa = forced or next(isa for isa, needs in NEEDS.items() if needs <= flags)
    return Machine(isa, threads or torch.get_num_threads(), device, name, tuple(sorted(NEEDS["avx512"] & flags)))


def fingerprint(here: Machine) -> tuple[tuple[str, str], ...]:
    """What measured times belong to."""
    built = compiler()
    return (
        ("cpu", here.name),
        ("isa", here.isa),
        ("threads", str(here.threads)),
        ("cores", str(os.cpu_count() or 0)),
        ("compiler", built.version if built is not None else "none"),
        ("torch", torch.__version__),
    )
