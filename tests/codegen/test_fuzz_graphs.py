"""Random graphs, lowered without loss, compute what eager computes: in the evaluator's arithmetic and in C++.

``FUZZ=50000 make fuzz`` runs more graphs; a seed that fails is a reproducer: ``graphs.graph(seed)``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from adaflex.codegen.cpp import ISA_FLAGS, include_folder, render
from adaflex.codegen.evaluate import Evaluator
from adaflex.native import build, compiler
from adaflex.runtime import layout as layouts
from adaflex.runtime.arena import Packing, Piece, overlaps
from adaflex.runtime.execute import Executor
from adaflex.runtime.kernels import Kernels
from adaflex.runtime.program import Program
from tests.codegen import graphs
from tests.codegen.batched import BatchedKernels, join, supported
from tests.codegen.lowered import program_of

GRAPHS = int(os.environ.get("FUZZ", "400"))
CHUNK = 50
COMPILED = 100
UNITS = 4
GAP = 256  # bytes of red zone


def faults(case: graphs.Case, run: Executor, batch: int) -> list[str]:
    """What is wrong with the outputs of one call."""
    inputs = case.make_inputs(batch)
    given = [tensor.clone() for tensor in inputs]
    outputs = run(*inputs)
    eager, exact = case.capture.run(case.weights, given), graphs.doubled(case, given)
    found = []
    for place, (got, near, far) in enumerate(zip(outputs, eager, exact, strict=True)):
        problem = differs(case, got, near, far)
        if problem:
            found.append(f"seed {case.seed}, batch {batch}, output {place}: {problem}")
    if not all(torch.equal(a, b) for a, b in zip(inputs, given, strict=True)):
        found.append(f"seed {case.seed}: an input was written to")
    return found


def differs(case: graphs.Case, got: Tensor, eager: Tensor, exact: Tensor) -> str:
    if got.shape != eager.shape or got.dtype != eager.dtype:
        return f"{got.dtype} {tuple(got.shape)} instead of {eager.dtype} {tuple(eager.shape)}"
    if not eager.is_floating_point():
        return "" if torch.equal(got, eager) else "other values"
    if not torch.equal(got.isnan(), eager.isnan()):
        return "other nans"
    distance = float((got.double() - exact).abs().nan_to_num().max()) if got.numel() else 0.0
    limit = graphs.bound(exact, eager, case.coarsest, 100)
    return "" if distance <= limit else f"{distance:.3g} from float64, {limit:.3g} allowed"


def batches(case: graphs.Case) -> Sequence[int]:
    return (4, 1, 7) if case.symbolic else (4,)


def overlapping(program: Program, case: graphs.Case) -> list[str]:
    """Buffers that live at one time on the same bytes, for several numbers of threads."""
    found = []
    for batch in batches(case):
        values = dict.fromkeys(program.symbols, batch)
        for threads in (1, 2, 3):
            made = layouts.plan_layout(program, values, threads, 64)
            for pieces in (made.shared_pieces, made.thread_pieces):
                bad = overlaps([piece for _, piece in pieces], [made.offsets[slot] for slot, _ in pieces])
                found += [f"seed {case.seed}: {pair} overlap with {threads} threads" for pair in bad]
    return found


@pytest.mark.parametrize("first", range(0, GRAPHS, CHUNK))
def test_lowered_graphs_compute_what_eager_computes(first: int) -> None:
    found = []
    for seed in range(first, min(first + CHUNK, GRAPHS)):
        case = graphs.graph(seed)
        program, weights = program_of(case.capture, case.weights)
        run = Executor(program, weights, Evaluator(program), threads=2)
        run.poison = 0xFF
        for batch in batches(case):
            found += faults(case, run, batch)
        found += overlapping(program, case)
    assert not found, "\n".join(found)


def apart(pieces: list[tuple[int, Piece]]) -> Packing:
    """A packing in which nothing shares memory and red zones lie between."""
    offsets, at = [], GAP
    for _, piece in pieces:
        offsets.append(at)
        at += -(-piece.size_bytes // 64) * 64 + GAP
    return Packing(tuple(offsets), at)


def red_zones(run: Executor, case: graphs.Case, batch: int) -> list[str]:
    """Bytes between slots, and behind each slot's last row, that a kernel wrote to."""
    shape = run.shape(case.make_inputs(batch))
    arena, layout = shape.free[-1].arena, shape.layout
    start = -arena.data_ptr() % 64
    untouched = torch.ones(layout.arena_bytes, dtype=torch.bool)
    for thread in range(run.threads):
        own = layout.shared_bytes + thread * layout.thread_bytes
        untouched[own + layout.scratch_offset : own + layout.thread_bytes] = False
        for slot, piece in layout.thread_pieces:
            at = own + layout.offsets[slot]
            untouched[at : at + piece.size_bytes - layouts.GUARD_BYTES] = False
    for slot, piece in layout.shared_pieces:
        at = layout.offsets[slot]
        untouched[at : at + piece.size_bytes - layouts.GUARD_BYTES] = False
    bad = untouched & (arena[start : start + layout.arena_bytes] != 0xFF)
    return (
        [f"seed {case.seed}, batch {batch}: byte {int(bad.nonzero()[0])} of the arena was written"] if bad.any() else []
    )


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("unit", range(UNITS))
def test_compiled_graphs_compute_what_eager_computes(unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [graphs.graph(10_000 + seed, most=14) for seed in range(unit, COMPILED, UNITS)]
    made = [program_of(case.capture, case.weights) for case in cases]
    isa = supported()
    library = build(join([render(program) for program, _ in made]), includes=[include_folder()], flags=ISA_FLAGS[isa])
    found = []
    for number, (case, (program, weights)) in enumerate(zip(cases, made, strict=True)):
        for threads in (1, 3):
            found += compiled(case, program, weights, BatchedKernels(library, threads, number), monkeypatch)
    assert not found, "\n".join(found)


def compiled(
    case: graphs.Case, program: Program, weights: Tensor, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Faults of one program: packed tightly, then with red zones; both must give the same bits."""
    threads = kernels.threads  # type: ignore[attr-defined]
    found = []
    for batch in batches(case):
        inputs = case.make_inputs(batch)
        tight = Executor(program, weights, kernels, threads=threads)
        tight.poison = 0xFF
        found += faults(case, tight, batch)
        with monkeypatch.context() as patch:
            patch.setattr(layouts, "_pack", apart)
            loose = Executor(program, weights, kernels, threads=threads)
            loose.poison = 0xFF
            pairs = zip(loose(*inputs), tight(*inputs), strict=True)
            if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
                found.append(f"seed {case.seed}, batch {batch}: other bits when nothing shares memory")
            found += red_zones(loose, case, batch)
    return found
