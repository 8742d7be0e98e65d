"""Random graphs compute what eager computes, and under random legal plans what their references compute: in the
evaluator's arithmetic and in C++.

``FUZZ=50000 make fuzz`` runs more graphs; a seed that fails is a reproducer: ``graph_of(seed)``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from adaflex.codegen.evaluate import Evaluator
from adaflex.codegen.kernels.menu import MENU
from adaflex.native import compiler
from adaflex.passes.menu import TIED
from adaflex.passes.sites import find_sites
from adaflex.runtime import layout as layouts
from adaflex.runtime.arena import Packing, Piece, overlaps
from adaflex.runtime.execute import Executor
from adaflex.runtime.program import Program
from tests.codegen import graphs
from tests.codegen.batched import BatchedKernels, build_together, supported
from tests.codegen.lowered import program_of
from tests.codegen.plans import MACHINE, Planned, planned

GRAPHS = int(os.environ.get("FUZZ", "2000"))
CHUNK = 50
COMPILED = 100
UNITS = 4
GAP = 256  # bytes of red zone
BF16_ATTENTION = 1 / 64  # relative distance: weights, values and products of an attention in bf16
ONE_CODE = 0.02  # relative distance where an activation fell to the other side of a tie
MOST_TIES = 4  # of the 50 graphs of a chunk; a wrong family shows in a dozen


def graph_of(seed: int, most: int = 30) -> graphs.Case:
    """The graph of a seed; a fourth have sizes that groups and rotations divide, an eighth have windows over images."""
    return graphs.graph(seed, most, graphs.WIDE if seed % 4 == 3 else graphs.WIDTHS, images=seed % 8 == 5)


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


def strays(case: graphs.Case, plan: Planned, run: Executor, batch: int) -> tuple[list[str], bool]:
    """What is wrong with one call of a program under a plan; whether an output is as far off as one code."""
    inputs = case.make_inputs(batch)
    with torch.no_grad():
        expected = list(plan.reference(*case.weights, *inputs))
    found, tie = [], False
    for place, (got, wanted) in enumerate(zip(run(*inputs), expected, strict=True)):
        problem = differs(case, got, wanted, wanted.double())
        if problem and got.shape == wanted.shape and got.dtype == wanted.dtype and got.is_floating_point():
            apart = float((got.double() - wanted.double()).nan_to_num().norm() / wanted.double().nan_to_num().norm())
            tie = tie or not plan.bf16_attention
            problem = (
                "" if apart <= (BF16_ATTENTION if plan.bf16_attention else ONE_CODE) else f"{problem} ({apart:.2g})"
            )
        if problem:
            found.append(f"seed {case.seed}, batch {batch}, output {place}, {plan.label}: {problem}")
    return found, tie


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
def test_graphs_compute_what_eager_and_their_references_compute(first: int) -> None:
    found, ties = [], 0
    for seed in range(first, min(first + CHUNK, GRAPHS)):
        case = graph_of(seed)
        program, weights = program_of(case.capture, case.weights)
        run = Executor(program, weights, Evaluator(program), threads=2)
        run.poison = 0xFF
        for batch in batches(case):
            found += faults(case, run, batch)
        found += overlapping(program, case)
        bad, tie = under_a_plan(case)
        found, ties = found + bad, ties + tie
    assert not found, "\n".join(found)
    assert ties <= MOST_TIES, f"{ties} of {CHUNK} graphs are as far from their references as one code"


def under_a_plan(case: graphs.Case) -> tuple[list[str], bool]:
    """The faults of the case's random plan, through the evaluator and in its layouts; whether a tie fell otherwise."""
    plan = planned(case, case.seed)
    if plan is None:
        return [], False
    run = Executor(plan.program, plan.weights, Evaluator(plan.program), threads=2)
    run.poison = 0xFF
    found, tie = strays(case, plan, run, batches(case)[-1])
    return found + overlapping(plan.program, case), tie


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
    arena, layout = run._arenas[-1], shape.layout
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
    cases = [
        graph_of(10_000 + seed, most=14) for seed in range(unit * COMPILED // UNITS, (unit + 1) * COMPILED // UNITS)
    ]
    plain = [program_of(case.capture, case.weights) for case in cases]
    plans = [planned(case, case.seed) for case in cases]
    programs = [program for program, _ in plain] + [plan.program for plan in plans if plan is not None]
    library = build_together(programs, supported())
    found, ties, number = [], 0, len(cases)
    for place, (case, (program, weights), plan) in enumerate(zip(cases, plain, plans, strict=True)):
        for threads in (1, 3):
            kernels = BatchedKernels(library, threads, place)
            found += compiled(case, program, weights, kernels, monkeypatch, faults)
        if plan is not None:
            kernels = BatchedKernels(library, 2, number)
            number += 1
            bad, tie = strays(case, plan, executor(plan.program, plan.weights, kernels), batches(case)[-1])
            found += bad + compiled(case, plan.program, plan.weights, kernels, monkeypatch)
            ties += tie
    assert not found, "\n".join(found)
    assert ties <= MOST_TIES, f"{ties} of {len(plans)} graphs are as far from their references as one code"


def executor(program: Program, weights: Tensor, kernels: BatchedKernels) -> Executor:
    """Poisoned before every call."""
    run = Executor(program, weights, kernels, threads=kernels.threads)
    run.poison = 0xFF
    return run


Look = Callable[[graphs.Case, Executor, int], list[str]]


def compiled(
    case: graphs.Case,
    program: Program,
    weights: Tensor,
    kernels: BatchedKernels,
    monkeypatch: pytest.MonkeyPatch,
    look: Look = lambda case, run, batch: [],
) -> list[str]:
    """Faults of one program: packed tightly, then with red zones; both must give the same bits."""
    found = []
    for batch in batches(case):
        inputs = case.make_inputs(batch)
        tight = executor(program, weights, kernels)
        found += look(case, tight, batch)
        with monkeypatch.context() as patch:
            patch.setattr(layouts, "_pack", apart)
            loose = executor(program, weights, kernels)
            pairs = zip(loose(*inputs), tight(*inputs), strict=True)
            if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
                found.append(f"seed {case.seed}, batch {batch}: other bits when nothing shares memory")
            found += red_zones(loose, case, batch)
    return found


def test_plans_are_drawn_on_every_axis() -> None:
    """Of 200 graphs some have blocks left out, some fewer neurons, some a table that is a head's weight."""
    skips, widths, tied = 0, 0, 0
    for seed in range(200):
        case = graph_of(seed)
        plan = planned(case, seed)
        if plan is not None:
            skips += bool(plan.decision.skipped)
            widths += any(encoding.sparsity for encoding in plan.decision.encodings.values())
            sites = find_sites(case.capture, case.weights, MENU, MACHINE).sites
            tied += any(site.op == TIED and site.id in plan.decision.encodings for site in sites)
    assert min(skips, widths) >= 4 and tied >= 1, (skips, widths, tied)
