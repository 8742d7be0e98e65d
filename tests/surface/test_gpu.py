"""device="cuda": planned, run and saved through the surface in Triton's interpreter; what cannot be had is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import adaflex
from adaflex import gpu
from adaflex.codegen.triton_templates.w4_layout import pack
from adaflex.errors import OptionError
from adaflex.options import parse
from adaflex.solver.table import Encoding
from tests.surface.tiny_model import calls, model

ROOT = Path(__file__).resolve().parents[2]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_a_plan_for_the_device_runs_there() -> None:
    pytest.importorskip("triton")
    mode = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.surface.gpu_case"]
    env = {**os.environ, **mode, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["families"] == ["fp32", "w4"], "only what has a kernel there is offered"
    assert any("w4" in choice for choice in found["chosen"]) and found["memory"]
    assert found["error"] < 0.1 and found["apart"] < 0.01, "the CPU runs the same plan"
    assert found["weights"] - found["stored"] == 4 * (128 + 64), "the biases are all that is not decided"
    assert found["device"].startswith("cuda" if not mode else "cpu")


def test_bytes_are_those_of_the_devices_packing() -> None:
    for symmetric in (True, False):
        codes, scale = torch.zeros(70, 256, dtype=torch.uint8), torch.ones(70, 4)
        zero = None if symmetric else scale.to(torch.uint8)
        packed = pack(codes, scale, zero, 64)
        assert gpu.stored_bytes((70, 256), Encoding("w4", 4, 64, symmetric)) == packed.size_bytes
    assert gpu.stored_bytes((70, 256), Encoding("w8a8", 8)) == gpu.stored_bytes((70, 256), Encoding("fp32"))


@no_gpu
def test_without_a_gpu_it_is_refused_before_anything_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("adaflex.api._captured", lambda *_: pytest.fail("something was captured"))
    with pytest.raises(OptionError, match=r"device='cuda'.*no GPU.*device='cpu'"):
        adaflex.plan(model(), calls(), device="cuda")


def test_under_torch_compile_it_names_the_other_door() -> None:
    compiled = torch.compile(model(), backend="adaflex", options={"device": "cuda"})
    with pytest.raises(OptionError, match=r"adaflex\.compile\(model, inputs, device='cuda'\)"), torch.no_grad():
        compiled(calls(1)[0]["x"])


@pytest.mark.parametrize(("given", "words"), [({"bits": 4}, "give memory"), ({"latency": "0.5x"}, "give a time")])
def test_budgets_that_mean_nothing_there_are_refused(
    given: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(OptionError, match=words):
        gpu.check(parse({"device": "cuda", **given}))
