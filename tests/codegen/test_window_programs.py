"""Programs with windows: how they are scheduled, what they compute, and what lowering refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaflex.codegen.evaluate import Evaluator
from adaflex.errors import CaptureError
from adaflex.native import compiler
from adaflex.passes.capture import Capture
from adaflex.passes.export_door import from_export
from adaflex.passes.windows import windows
from adaflex.runtime.artifact import version_of
from adaflex.runtime.execute import Executor
from adaflex.runtime.program import GemmStep, Program, RowStep, Segment, WindowStep
from adaflex.runtime.program_json import from_plain, to_plain
from adaflex.solver.table import Encoding
from tests.codegen.batched import BatchedKernels, build_together, supported
from tests.codegen.lowered import program_of

ONE, TWO, THREE = (1, 1), (2, 2), (3, 3)
AROUND, WIDE = (1, 1, 1, 1), (2, 2, 2, 2)
INT8 = Encoding("w8a8", 8)
EXPANDED = 1e-5  # relative distance: fp32 sums in another order
QUANTISED = 0.03  # relative distance: two products of 8 bits


class Net(nn.Module):
    """Images channels first; a convolution, a depthwise one, a pool, a convolution, a mean of what is left."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(9 * 3, 20), nn.Linear(9 * 20, 24)
        self.each = nn.Parameter(torch.randn(9, 20))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = windows(x.permute(0, 2, 3, 1), None, "patches", THREE, ONE, AROUND, ONE)
        y = windows(torch.relu(self.first(y)), self.each, "depthwise", THREE, ONE, AROUND, ONE)
        y = windows(y, None, "max", THREE, TWO, AROUND, ONE)
        y = torch.tanh(self.last(windows(y, None, "patches", THREE, ONE, WIDE, TWO)))
        return windows(y, None, "mean", TWO, TWO, (0, 0, 0, 0), ONE), y.permute(0, 3, 1, 2)


def captured(batch: int, dynamic: bool = False) -> tuple[Capture, tuple[Tensor, ...], Tensor]:
    x = torch.randn(batch, 3, 12, 11, generator=torch.Generator().manual_seed(batch))
    dim = torch.export.Dim
    shapes = {"x": {0: dim("b", min=1, max=8), 2: dim("h", min=8, max=64), 3: dim("w", min=8, max=64)}}
    capture, weights = from_export(Net().eval().requires_grad_(False), (x,), dynamic_shapes=shapes if dynamic else None)
    return capture, weights, x


Case = tuple[Capture, tuple[Tensor, ...], Tensor, Program, Tensor]


@pytest.fixture(scope="module")
def cases() -> Mapping[str, Case]:
    """One image, two, any number of any size; in fp32 and in 8 bits."""
    found: dict[str, Case] = {}
    for name, (batch, dynamic) in {"one": (1, False), "two": (2, False), "any": (3, True)}.items():
        capture, weights, x = captured(batch, dynamic)
        for label, encoding in (("fp32", Encoding("fp32")), ("int8", INT8)):
            program, data = program_of(capture, weights, lambda shape, chosen=encoding: chosen)
            found[f"{name} {label}"] = capture, weights, x, program, data
    return found


def runs(program: Program) -> list[list[list[str]]]:
    """Segments, their phases, and in each loop what its steps are."""
    short = {RowStep: "r", GemmStep: "g", WindowStep: "w"}
    return [
        [
            "".join(short[type(program.steps[step])] for step in loop.steps)
            for phase in entry.phases
            for loop in phase.loops
        ]
        for entry in program.schedule
        if isinstance(entry, Segment)
    ]  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["one fp32", "two fp32", "any fp32", "one int8", "two int8", "any int8"])
def test_patches_live_block_by_block_in_the_loop_that_multiplies_them(cases: Mapping[str, Case], name: str) -> None:
    program = cases[name][3]
    chain = "wrg" if "int8" in name else "wg"
    assert runs(program) == [["w", chain, "w", "w", chain, "w"]]  # images turned, then as the model says
    for step in program.steps:
        if isinstance(step, WindowStep):
            kept = "block" if step.kind == "patches" and step.taps > 1 else "group"
            assert program.slots[step.out].kind == "output" or program.slots[step.out].window == kept


def assert_computes(case: Case, run: Executor, inputs: tuple[Tensor, ...], allowed: float) -> None:
    capture, weights, *_ = case
    for got, want in zip(run(*inputs), capture.run(weights, inputs), strict=True):
        assert got.shape == want.shape
        assert float((got - want).norm() / want.norm()) < allowed


def sizes(case: Case, name: str) -> list[Tensor]:
    make = torch.Generator().manual_seed(5)
    others = [(1, 9, 16), (5, 8, 8), (2, 21, 10)] if "any" in name else []
    return [case[2], *(torch.randn(b, 3, h, w, generator=make) for b, h, w in others)]


def test_programs_compute_what_the_graph_computes_in_numpy(cases: Mapping[str, Case]) -> None:
    for name, case in cases.items():
        program = case[3]
        run = Executor(program, case[4], Evaluator(program), threads=1)
        run.poison = 0xFF
        for x in sizes(case, name):
            assert_computes(case, run, (x,), QUANTISED if "int8" in name else EXPANDED)


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_programs_compute_what_the_graph_computes_in_kernels(cases: Mapping[str, Case]) -> None:
    chosen = {name: cases[name] for name in ("two fp32", "any int8")}  # two units' worth of compiling
    library = build_together([case[3] for case in chosen.values()], supported(), name="windows")
    for threads in (1, 2):
        for number, (name, case) in enumerate(chosen.items()):
            run = Executor(case[3], case[4], BatchedKernels(library, threads, number), threads=threads)
            run.poison = 0xFF
            for x in sizes(case, name):
                assert_computes(case, run, (x,), QUANTISED if "int8" in name else EXPANDED)


def test_they_come_back_from_json_and_say_their_format(cases: Mapping[str, Case]) -> None:
    for case in cases.values():
        assert from_plain(json.loads(json.dumps(to_plain(case[3])))) == case[3]
        assert version_of(case[3]) == 5


class Odd(nn.Module):
    """Weights that a call computes."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return windows(x, torch.tanh(weight), "depthwise", THREE, ONE, AROUND, ONE)


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (Odd(), (torch.randn(1, 4, 4, 2), torch.randn(9, 2)), "not a constant"),
        (Odd(), (torch.randn(1, 4, 4, 2).double(), torch.randn(9, 2).double()), "not fp32"),
    ],
)
def test_what_no_kernel_reads_is_named(model: nn.Module, inputs: Any, words: str) -> None:
    capture, weights = from_export(model, inputs)
    with pytest.raises(CaptureError, match=words):
        program_of(capture, weights)
