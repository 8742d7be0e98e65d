"""The GPU executor: whole programs with kernels in Triton's interpreter, and what needs no kernels at all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from adaflex.codegen.kernels.menu import MENU
from adaflex.errors import OptionError
from adaflex.runtime.cuda import CudaExecutor, attend, device_program, memory_dtype, slide
from adaflex.runtime.program import (
    WINDOW_KINDS,
    Argument,
    AttentionStep,
    LibraryStep,
    Loop,
    Operand,
    Phase,
    Program,
    RowStep,
    Segment,
    Slot,
    WindowStep,
)
from adaflex.runtime.region import Load, Op, Region, Store

ROOT = Path(__file__).resolve().parents[2]
CASES = ("sentence_w8a8", "sentence_w4", "spellings_fp32", "lstm_fp32")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """What every program found, from one process that interprets kernels."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.runtime.cuda_cases"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", CASES)
def test_program_against_reference(case: str, results: dict[str, Any]) -> None:
    family = case.rpartition("_")[2]
    if not any(entry.name == family for entry in MENU):
        pytest.skip(f"the menu has no family '{family}' yet")
    wrong = [f"{what}: {error} (allowed {allowed})" for what, error, allowed in results[case] if not error <= allowed]
    assert not wrong, "\n".join(wrong)


def slot(kind: str, rows: int, columns: int, window: str = "full") -> Slot:
    return Slot(kind, "f32", rows, columns, 4 * columns, (rows, columns), window)


def program() -> Program:
    """Two row steps over a block window, then torch's full_like on a named device."""
    slots = (slot("input", 4, 8), slot("local", 4, 8, "block"), slot("local", 4, 8), slot("value", 4, 8))
    copies = [Region((4,), 8, (Load(a, (8,), 1),), (Op("load", (0,)),), (Store(0, b),)) for a, b in ((0, 1), (1, 2))]
    arguments = (Argument("slot", slot=2), Argument("float", text="3.0"))
    last = LibraryStep("aten.full_like.default", arguments, (("device", Argument("device", text="cpu")),), (3,))
    segment = Segment(4, (Phase((Loop((0, 1), 4, 8),)),))
    steps = (RowStep(copies[0]), RowStep(copies[1]), last)
    return Program((), (), (0,), ("x",), (3,), slots, (), steps, (segment, 2))


class Fake:
    """Stands in for kernels: remembers what it was asked to run."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def weight_bytes(self) -> int:
        return 1000

    def workspace_bytes(self, number: int, values: Any) -> int:
        return 100 * number

    def run(self, number: int, tensor: Any, values: Any, workspace: torch.Tensor) -> None:
        self.ran.append(number)
        assert tensor(number + 1).shape == (32,) and tensor(number + 1).dtype == torch.float32
        assert workspace.numel() == 100


def test_a_device_runs_every_step_over_all_rows() -> None:
    made = device_program(program(), "meta")
    assert all(entry.window == "full" for entry in made.slots)
    segment = made.schedule[0]
    assert isinstance(segment, Segment) and segment.groups == 0
    assert [phase.loops[0].steps for phase in segment.phases] == [(0,), (1,)]
    last = made.steps[2]
    assert isinstance(last, LibraryStep) and last.kwargs[0][1].text == "meta"


def test_steps_run_in_order_in_one_arena() -> None:
    kernels = Fake()
    made = CudaExecutor(program(), torch.empty(0, dtype=torch.uint8), kernels, "cpu")
    x = torch.zeros(4, 8)
    (out,) = made(x)
    assert kernels.ran == [0, 1] and torch.equal(out, torch.full((4, 8), 3.0))
    memory = made.memory((x,))
    arena = memory["arena"]
    assert memory["weights"] == 1000 and memory["library"] == 4 * 8 * 4
    assert memory["total"] == 1000 + arena + memory["library"]
    made(x)
    (shape,) = made._shapes.values()
    assert len(shape.free) == 1 and shape.free[0].memory.numel() == arena
    offsets = [shape.layout.offsets[number] for number in (1, 2)]
    assert abs(offsets[0] - offsets[1]) >= 128, "both are live in the second step"


@pytest.mark.parametrize(
    "given,words",
    [
        (torch.zeros(4, 9), "this program takes (4, 8)"),
        (torch.zeros(4, 8, dtype=torch.float64), "float64"),
        (torch.zeros(4, 8, device="meta"), "is on 'meta'"),
    ],
)
def test_wrong_inputs_are_named(given: torch.Tensor, words: str) -> None:
    made = CudaExecutor(program(), torch.empty(0, dtype=torch.uint8), Fake(), "cpu")
    with pytest.raises(OptionError, match=re.escape(words)):
        made(given)
    with pytest.raises(OptionError, match="2 inputs"):
        made(given, given)


def test_memory_is_read_as_what_kernels_read() -> None:
    assert memory_dtype("bool") == memory_dtype("u8g64-h128") == torch.uint8
    assert (memory_dtype("bf16"), memory_dtype("i64")) == (torch.bfloat16, torch.int64)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_reads_and_writes_in_place(causal: bool) -> None:
    b, h, t, d = 2, 3, 5, 4
    qkv = torch.randn(b, t, 3, h, d)
    mask = torch.rand(b, t) > 0.3
    mask[:, 0] = True
    strides = (t * 3 * h * d, d, 3 * h * d, 1)
    q, k, v = (Operand(0, strides, place * h * d) for place in range(3))
    where = None if causal else Operand(1, (t, 0, 0, 1))
    out = Operand(2, (t * h * d, d, h * d, 1))
    step = AttentionStep(q, k, v, where, out, b, h, h, t, t, d, 0.5, causal, False)
    result = torch.zeros(b, t, h, d)
    slots = (slot("input", 1, 1), Slot("input", "bool", b, t, t), slot("local", 1, 1))
    made = Program((), (), (), (), (), slots, (), (step,), (0,))
    attend(step, [qkv.reshape(-1), mask.view(torch.uint8).reshape(-1), result].__getitem__, {}, made)
    parts = [qkv[:, :, place].transpose(1, 2).double() for place in range(3)]
    scores = parts[0] @ parts[1].transpose(2, 3) * 0.5
    kept = torch.ones(t, t, dtype=torch.bool).tril() if causal else mask[:, None, None, :]
    want = scores.masked_fill(~kept, float("-inf")).softmax(-1) @ parts[2]
    assert torch.allclose(result.double(), want.transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("kind", WINDOW_KINDS)
def test_windows_read_and_write_in_place(kind: str) -> None:
    """Of images that are a part of wider ones, channels first."""
    n, h, w, c = 2, 6, 5, 3
    base, weight = torch.randn(n, c + 1, h, w), torch.randn(6, c)
    strides = ((c + 1) * h * w, w, 1, h * w)
    x = Operand(0, strides, h * w)
    geometry = ((2, 3), (2, 1), (0, 1, 0, 1), (1, 1))
    step = WindowStep(kind, x, 1 if kind == "depthwise" else -1, 2, "s0", h, w, c, *geometry)
    images = base[:, 1:]
    result = torch.full((n * 3 * 5 * step.columns,), torch.nan)
    slide(step, [base.reshape(-1), weight.reshape(-1), result].__getitem__, {"s0": n})
    if kind == "patches":
        want = F.unfold(images, *geometry[:1], 1, (0, 1), (2, 1)).unflatten(1, (c, 6)).permute(0, 3, 2, 1)
    elif kind == "max":
        want = F.max_pool2d(F.pad(images, (1, 1), value=-torch.inf), (2, 3), (2, 1)).permute(0, 2, 3, 1)
    else:
        weights = weight if kind == "depthwise" else torch.full((6, c), 1 / 6)
        want = F.conv2d(images, weights.t().reshape(c, 1, 2, 3), None, (2, 1), (0, 1), 1, c).permute(0, 2, 3, 1)
    assert torch.allclose(result, want.reshape(-1), atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["fp32", "w8a8", "w4"])
def test_on_a_device(family: str) -> None:
    """The same programs, kernels compiled, on the device that is there."""
    from tests.runtime.cuda_cases import model_case

    for what, error, allowed in model_case("sentence", family, "cuda"):
        assert error <= 4 * allowed, what
