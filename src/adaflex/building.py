"""From a program to something that runs here: generated kernels built and loaded, or the evaluator without a compiler.

In: a ``Program`` and its bytes. Out: an ``Executor``. Needs neither the solver nor the compiler passes, so that an
artifact runs without them.
"""

from __future__ import annotations

import functools
import logging

from torch import Tensor

from adaflex.codegen.cpp import ISA_FLAGS, common, include_folder, render
from adaflex.native import build, compiler, keep
from adaflex.runtime.execute import Executor
from adaflex.runtime.kernels import Kernels, NativeKernels
from adaflex.runtime.program import Program
from adaflex.runtime.stream import Stream

log = logging.getLogger("adaflex")


@functools.cache
def _say_no_compiler() -> None:
    log.warning("no C++ compiler was found: AdaFlex runs reference bodies, slowly; install g++ or set ADAFLEX_CXX")


def kernels(program: Program, isa: str, threads: int, native: bytes | None = None) -> Kernels:
    """The program's kernels: generated and built here, or the evaluator where there is no compiler (said once).

    ``native``: trusted bytes of a library built elsewhere, used as they are.
    """
    if native is not None:
        return NativeKernels(keep(native), threads)
    if compiler() is None:
        from adaflex.codegen.evaluate import Evaluator

        _say_no_compiler()
        return Evaluator(program)
    text = render(program)
    library = build(text, includes=[include_folder()], flags=ISA_FLAGS[isa], name="plan", common=common(program))
    return NativeKernels(library, threads)


def executor(
    program: Program,
    weights: Tensor,
    isa: str,
    threads: int,
    max_concurrency: int = 1,
    native: bytes | None = None,
    stream: Stream | None = None,
) -> Executor:
    """A program ready to be called; ``stream`` holds what it streams."""
    found = kernels(program, isa, threads, native)
    return Executor(program, weights, found, threads=threads, max_concurrency=max_concurrency, stream=stream)
