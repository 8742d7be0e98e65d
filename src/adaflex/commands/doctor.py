"""``adaflex doctor``: what this machine, compiler and torch can do, and the way out where something cannot.

In: this machine. Out: one line per check, or JSON; exit code 0 where nothing is broken, else 1. A warning breaks
nothing: AdaFlex works, slower or with less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from adaflex import __version__
from adaflex.errors import AdaflexError
from adaflex.solver.units import show_bytes

HELP = "what this machine, compiler and torch can do"
MARKS = {"ok": "ok  ", "warning": "warn", "broken": "FAIL"}
LEAST_DISK = 1 << 28
PROBE = 'extern "C" int adaflex_doctor() { return 42; }\n'


@dataclass(frozen=True)
class Finding:
    """One check: ``state`` is "ok", "warning" or "broken"."""

    name: str
    state: str
    text: str
    way_out: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Check everything, print."""
    found = list(findings())
    broken = any(each.state == "broken" for each in found)
    if args.json:
        print(json.dumps({"adaflex": __version__, "ok": not broken, "findings": [asdict(each) for each in found]}))
        return int(broken)
    for each in found:
        print(f"{MARKS[each.state]} {each.name}: {each.text}" + (f"; {each.way_out}" if each.way_out else ""))
    return int(broken)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...]


def findings() -> Iterator[Finding]:
    """Every check in turn; one that fails itself is a finding too."""
    for check in CHECKS:
        try:
            yield from check()
        except AdaflexError as fault:
            yield Finding(check.__name__.strip("_"), "broken", str(fault))
        except Exception as fault:
            yield Finding(check.__name__.strip("_"), "broken", f"{type(fault).__name__}: {fault}", "report this")


def _python() -> Iterator[Finding]:
    text = f"AdaFlex {__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform == "linux" and platform.machine() == "x86_64":
        yield Finding("platform", "ok", text)
    else:
        yield Finding(
            "platform", "warning", text, "kernels are made for Linux on x86-64; elsewhere nothing was measured"
        )


def _solver() -> Iterator[Finding]:
    from adaflex.solver.solve import solver_name

    name = solver_name()
    yield (
        Finding("solver", "ok", name)
        if name
        else Finding("solver", "warning", "none: plans come with a bound but no proof", "pip install pulp highspy")
    )


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as fault:
        yield Finding("torch", "broken", f"cannot be imported ({fault})", "pip install 'adaflex[torch]'")
        return
    supported = torch.__version__.startswith("2.13.")
    way_out = "" if supported else "AdaFlex is tested with torch 2.13: pip install 'torch>=2.13,<2.14'"
    yield Finding("torch", "ok" if supported else "warning", torch.__version__, way_out)
    yield from _private()
    if torch.cuda.is_available():
        yield Finding("gpu", "ok", torch.cuda.get_device_name(0))
    else:
        yield Finding("gpu", "ok", "none; plans are made for the processor")


def _private() -> Iterator[Finding]:
    """The private parts of torch that capture leans on, each tried out."""
    from adaflex.errors import OptionError
    from adaflex.passes import torch_compat as compat

    route = compat.capture_route()
    state, way_out = {
        "whole": ("ok", ""),
        "broken": ("warning", "ops are put together again from their parts; install torch 2.13"),
        "none": ("broken", "torch.compile(backend='adaflex') cannot capture; use adaflex.compile, or torch 2.13"),
    }[route]
    yield Finding("capture", state, f"composite ops are traced {route}", way_out)
    seen = _call_frame()
    way_out = "" if seen else "each graph is planned alone; install torch 2.13"
    yield Finding("call frame", "ok" if seen else "warning", "found" if seen else "not found", way_out)
    twin = compat.through_dynamo(OptionError("x"))
    plain = type(twin) is OptionError
    way_out = "errors come wrapped in torch's own; install torch 2.13" if plain else ""
    yield Finding("errors through Dynamo", "warning" if plain else "ok", "wrapped" if plain else "plain", way_out)


def _call_frame() -> bool:
    """Whether a backend sees who called torch.compile: tried with one that does nothing."""
    import torch

    from adaflex.passes.torch_compat import call_frame

    seen = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        seen.append(call_frame() is not None)
        return module.forward

    with torch.no_grad():
        torch.compile(torch.nn.Linear(2, 2), backend=backend)(torch.ones(1, 2))
    return bool(seen and seen[0])


def _processor() -> Iterator[Finding]:
    from adaflex.machine import NEEDS, cpu, isa, thread_count

    name, flags = cpu()
    chosen = isa()
    best = next(level for level, needs in NEEDS.items() if needs <= flags)
    yield Finding("processor", "ok", f"{name}, {os.cpu_count()} cores, {thread_count()} threads used")
    if chosen != best:
        yield Finding("instruction set", "warning", f"{chosen}, forced by ADAFLEX_ISA", f"unset it to use {best}")
    elif chosen == "portable":
        yield Finding(
            "instruction set", "warning", "portable", "without AVX2 kernels are slow; nothing to be done here"
        )
    else:
        missing = sorted(NEEDS["avx512"] - flags)
        text = chosen + (f" (no {', '.join(missing[:4])})" if missing else "")
        yield Finding("instruction set", "ok", text)


def _compiler() -> Iterator[Finding]:
    from adaflex.native import build, compiler, load

    tool = compiler()
    if tool is None:
        yield Finding(
            "compiler", "warning", "none: reference bodies run, slowly", "install g++ or set ADAFLEX_CXX to a compiler"
        )
        return
    works = load(build(PROBE, name="doctor")).adaflex_doctor() == 42
    state = "ok" if works else "broken"
    way_out = "" if works else "a library built with it gives wrong results; set ADAFLEX_CXX to another"
    yield Finding("compiler", state, f"{tool.path}: {tool.version}", way_out)


def _cache() -> Iterator[Finding]:
    from adaflex.commands.cache import parts_of
    from adaflex.native import cache_folder
    from adaflex.settings import settings

    config = settings()
    folder = cache_folder("native").parent  # CacheError where a named cache cannot be written
    parts = parts_of(folder)
    held = ", ".join(f"{part.files} {name} ({show_bytes(part.size_bytes)})" for name, part in parts.items())
    if folder != config.cache_dir:
        yield Finding("cache", "warning", f"{config.cache_dir} cannot be written", "set ADAFLEX_CACHE_DIR to a folder")
        return
    yield Finding("cache", "ok", f"{folder}: {held}")
    free = shutil.disk_usage(folder).free
    way_out = "make room, or set ADAFLEX_CACHE_DIR to another disk" if free < LEAST_DISK else ""
    yield Finding("disk", "warning" if way_out else "ok", f"{show_bytes(free)} free beside the cache", way_out)


def _streaming() -> Iterator[Finding]:
    from importlib.util import find_spec

    if find_spec("torch") is None:  # said above
        return
    from adaflex.placing import disk

    tier = disk()
    request, speed = tier.bandwidth[-1]
    text = (
        f"{show_bytes(speed)} a second cold, in requests of {show_bytes(request)}; {tier.latency_ns / 1000:.0f} us each"
    )
    yield Finding("streaming", "ok", text)


CHECKS = (_python, _solver, _processor, _compiler, _torch, _cache, _streaming)
