"""Sizes as plain data: expressions evaluate to what torch's symbolic sizes mean."""

import json

import pytest
import torch
from torch import nn
from torch.export import Dim

from adaflex.passes.capture import evaluate, symbols_in
from adaflex.passes.export_door import from_export


def test_operators() -> None:
    size = ("+", ("*", 3, "s0"), ("//", ("+", "s1", 7), 4), ("%", "s0", 5), ("max", 1, "s1"), ("cdiv", "s1", 2))
    values = {"s0": 8, "s1": 9}
    assert evaluate(size, values) == 24 + 4 + 3 + 9 + 5
    assert symbols_in(size) == {"s0", "s1"}
    assert evaluate(json.loads(json.dumps(size)), values) == evaluate(size, values)


def test_a_missing_symbol_is_named() -> None:
    with pytest.raises(KeyError, match="s3"):
        evaluate(("*", 2, "s3"), {"s0": 1})


class Strided(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([x, x[:, ::2], x], 1)
        return y.flatten(0, 1)[1:]


def test_compound_sizes_of_a_graph() -> None:
    dims = ({0: Dim("b", min=2, max=9), 1: Dim("t", min=4, max=30)},)
    capture, weights = from_export(Strided(), (torch.randn(3, 6),), dynamic_shapes=dims)
    for batch, length in ((2, 4), (5, 9), (9, 30)):
        x = torch.randn(batch, length)
        values = capture.bind_symbols((x,))
        got = capture.run(weights, (x,))[0]
        assert [evaluate(size, values) for size in capture.outputs[0].shape] == list(got.shape)
        assert torch.equal(got, Strided()(x))
