"""Graphs that once were lowered wrongly, as small as they get, in poisoned memory against eager torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaflex.building import kernels
from adaflex.codegen.evaluate import Evaluator
from adaflex.native import compiler
from adaflex.passes.export_door import from_export
from adaflex.runtime.execute import Executor
from adaflex.runtime.layout import plan_layout
from adaflex.runtime.program import LibraryStep
from adaflex.solver.table import Encoding
from tests.codegen.batched import supported
from tests.codegen.lowered import program_of


class Case(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear, x)


CASES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "sum without keepdim": lambda f, x: (f(x).sum(-1), f(x).amax(-1) / 2),
    "sum without keepdim, multiplied": lambda f, x: f(x.sum(-1)),
    "copy of heads": lambda f, x: f(x.view(3, 6, 2, 3).transpose(1, 2).reshape(3, 6, 6)),
    "output that is a view of a local": lambda f, x: f(x).tanh().transpose(0, 1),
    "square permutation before its base": lambda f, x: (f(x).permute(0, 2, 1), f(x), f(x)),
    "same output twice": lambda f, x: (lambda y: (y, y.permute(0, 2, 1), y))(f(x)),
    "fold over an axis of one": lambda f, x: f(x).unsqueeze(1).amax(1),
    "entry from the end": lambda f, x: f(x).select(1, -2).tanh() + f(x)[:, -1],
    "input handed through": lambda f, x: (x, f(x)),
}


@pytest.mark.parametrize("name", CASES)
def test_found(name: str) -> None:
    torch.manual_seed(0)
    model, x = Case(CASES[name]).eval().requires_grad_(False), torch.randn(3, 6, 6)
    capture, weights = from_export(model, (x,))
    program, block = program_of(capture, weights)
    run = Executor(program, block, Evaluator(program), threads=2)
    run.poison = 0xFF
    for got, expected in zip(run(x), capture.run(weights, (x,)), strict=True):
        torch.testing.assert_close(got, expected)


class NarrowHeads(nn.Module):
    """Heads of 16 columns, which rows of bf16 are padded beyond, scaled after they were split."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(64, 192)

    def forward(self, x: Tensor) -> Any:
        q, k, v = (part.view(2, 5, 4, 16).transpose(1, 2) * 1.5 for part in self.qkv(x).chunk(3, -1))
        return nn.functional.scaled_dot_product_attention(q, k, v), self.qkv(k.transpose(1, 2).reshape(2, 5, 64))


def test_attention_reads_rows_of_bf16_without_their_padding() -> None:
    torch.manual_seed(0)
    model, x = NarrowHeads().eval().requires_grad_(False), torch.randn(2, 5, 64)
    capture, weights = from_export(model, (x,))
    program, block = program_of(capture, weights, lambda shape: Encoding("bf16", 16))
    run = Executor(program, block, Evaluator(program), threads=2)
    run.poison = 0xFF
    for got, expected in zip(run(x), model(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0.03, atol=0.03)


def test_what_a_library_step_reads_is_never_a_window() -> None:
    torch.manual_seed(0)
    model = Case(CASES["output that is a view of a local"]).eval().requires_grad_(False)
    capture, weights = from_export(model, (torch.randn(3, 6, 6),))
    program, _ = program_of(capture, weights)
    layout = plan_layout(program, {}, 2, 64)
    for step in program.steps:
        if isinstance(step, LibraryStep):
            slots = [argument.slot for argument in step.args if argument.kind == "slot"]
            assert slots and all(windows[slot] == 0 for windows in layout.windows for slot in slots)
            assert all(program.slots[slot].window == "full" for slot in slots)


ONE_NUMBER_A_ROW: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "a reduction spread over the inputs of a linear": lambda f, x: f(x.amax(-1, keepdim=True).expand(3, 6, 6)),
    "a column spread over them": lambda f, x: f(x[..., :1].expand(3, 6, 6)) + f(x),
}


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.skipif(compiler() is None, reason="no C++ compiler"))]
)
@pytest.mark.parametrize("name", ONE_NUMBER_A_ROW)
def test_one_number_a_row_becomes_an_activation_form(name: str, compiled: bool) -> None:
    torch.manual_seed(0)
    model, x = Case(ONE_NUMBER_A_ROW[name]).eval().requires_grad_(False), torch.randn(3, 6, 6)
    capture, weights = from_export(model, (x,))
    program, block = program_of(capture, weights, lambda shape: Encoding("w8a8", 8))
    run = Executor(program, block, kernels(program, supported(), 2) if compiled else Evaluator(program), threads=2)
    run.poison = 0xFF
    for got, expected in zip(run(x), capture.run(weights, (x,)), strict=True):
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)
