"""Operators that a library registered: refused before anything is measured; under torch.compile the original runs."""

import logging

import pytest
import torch
from torch import Tensor, nn

import adaflex
from adaflex.errors import AdaflexError, CaptureError


@torch.library.custom_op("adaflex_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(twice(x))


def test_a_foreign_operator_is_named_and_the_original_runs(caplog: pytest.LogCaptureFixture) -> None:
    model = Foreign().eval().requires_grad_(False)
    x = torch.randn(4, 16)
    with pytest.raises(CaptureError, match=r"operator 'adaflex_tests.twice.default' is neither ATen"):
        adaflex.compile(model, (x,), calibration=[(x,)])
    planned = torch.compile(model, backend="adaflex", fullgraph=True, options={"calibration": [(x,)]})
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="adaflex"):
        assert torch.equal(planned(x), model(x))
    assert any("adaflex_tests.twice" in each.message and "original runs" in each.message for each in caplog.records)
    torch._dynamo.reset()
    strict = torch.compile(model, backend="adaflex", options={"calibration": [(x,)], "strict": True})
    with torch.no_grad(), pytest.raises(AdaflexError, match=r"adaflex_tests\.twice"):
        strict(x)
