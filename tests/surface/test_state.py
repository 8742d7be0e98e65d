"""Models that write to their buffers: torch.compile moves the user's, programs move copies, files refuse."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import adaflex
from adaflex.backend import Backend
from adaflex.errors import OptionError
from tests.surface.test_backend import Fake


class Stateful(nn.Module):
    """Batch statistics, a counter and a cache of the last rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 32)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.zeros(8, 32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.up(x))
        self.calls.add_(1)
        self.cache[:4] = y[:4] * 0.5
        return self.down(torch.relu(y)) + self.cache.mean(0) * self.calls


def stateful() -> nn.Module:
    torch.manual_seed(0)
    return Stateful().requires_grad_(False)


@pytest.mark.parametrize("given", [True, False])
def test_compiled_models_move_their_buffers_as_eager_does(given: bool) -> None:
    model = stateful()
    eager = copy.deepcopy(model)
    options = {"pin": {"*": "fp32"}, "threads": 1}
    if given:
        options["calibration"] = [torch.randn(8, 32) for _ in range(4)]
    compiled = torch.compile(model, backend="adaflex", fullgraph=True, options=options)
    with torch.no_grad():
        for call in range(3):
            x = torch.randn(8, 32)
            torch.testing.assert_close(compiled(x), eager(x), rtol=1e-4, atol=1e-4)
            assert int(model.calls) == call + 1  # planning and calibration moved nothing
            for (name, mine), (_, theirs) in zip(model.named_buffers(), eager.named_buffers(), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=name)


def test_a_program_moves_copies_of_its_own_and_is_not_saved(tmp_path: Path) -> None:
    model = stateful()
    eager = copy.deepcopy(model)
    program = adaflex.compile(model, [torch.randn(8, 32) for _ in range(4)], pin={"*": "fp32"}, threads=1)
    for _ in range(3):
        x = torch.randn(8, 32)
        torch.testing.assert_close(program(x), eager(x), rtol=1e-4, atol=1e-4)
    assert int(model.calls) == 0
    with pytest.raises(OptionError, match=r"own buffers.*hand them in and out"):
        program.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


class Reassigned(nn.Module):
    """Puts another tensor in its buffer's place at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(32, 32)
        self.register_buffer("last", torch.zeros(4, 32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        self.last = torch.cat([self.last[1:], y[:1]])
        return y + self.last.mean(0)


def test_buffers_that_are_replaced_at_each_call_do_not_make_each_call_plan(caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    model = Reassigned().requires_grad_(False)
    eager, planner = copy.deepcopy(model), Fake()
    compiled = torch.compile(model, backend=Backend(planner).compile_graph, fullgraph=True)
    with torch.no_grad():
        for _ in range(8):
            x = torch.randn(8, 32)
            torch.testing.assert_close(compiled(x), eager(x), rtol=1e-5, atol=1e-5)
            gc.collect()
    assert 1 <= len(planner.planned) + len(planner.extended) <= 4
    assert caplog.text.count("buffers (of last) were replaced") == 1
