"""Sizes as plain data: expressions evaluate to what torch's symbolic sizes mean."""

import json

import pytest
import sympy
import torch
from torch import nn
from torch.export import Dim
from torch.utils._sympy.functions import FloorDiv, PythonMod

import adaflex
from adaflex.passes import sizes
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


class Chunks(nn.Module):
    """Fills up to whole chunks, counted by dividing downwards what is below zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length = x.shape
        count = -(-length // 4)
        return nn.functional.pad(x, (0, 4 * count - length)).view(batch, count, 4).softmax(-1)


def test_divisions_of_what_is_below_zero_are_counted_upwards() -> None:
    program = adaflex.compile(Chunks(), (torch.randn(2, 9),), threads=1)
    for length in (9, 10, 11, 13, 14, 15, 101):
        given = torch.randn(3, length)
        torch.testing.assert_close(program(given), Chunks()(given))


def test_a_remainder_of_what_is_below_zero() -> None:
    s = sympy.Symbol("s0", integer=True, positive=True)
    names = {"s0": "s0"}
    for expression in (
        FloorDiv(-s, 4),
        PythonMod(-s, 4),
        FloorDiv(-3 * s - 1, 7),
        PythonMod(-3 * s - 1, 7),
        -FloorDiv(-s, 4),
    ):
        size = sizes._from_expression(expression, names)
        assert "//" not in json.dumps(size) and "%" not in json.dumps(size)
        for value in range(1, 30):
            assert evaluate(size, {"s0": value}) == int(expression.subs(s, value)), (expression, value)


def test_a_guard_that_only_tells_one_apart_is_none() -> None:
    b, s = (sympy.Symbol(name, integer=True, positive=True) for name in ("s0", "s1"))
    names = {"s0": "s0", "s1": "s1"}
    steps = -64 + 64 * FloorDiv(s, 16)
    assert sizes.guard_of(sympy.StrictLessThan(64 * s, 64 * s * b), names) is None
    assert sizes.guard_of(sympy.StrictGreaterThan(64 * s * b, 64), names) is None
    found = sizes.guard_of(sympy.StrictLessThan(steps, b * steps), names)
    assert found is not None
    relation, low, high = found
    for length in (15, 16, 31, 32, 64):  # what else it says is kept: that there are steps
        values = {"s0": 1, "s1": length}
        assert sizes.RELATIONS[relation](evaluate(low, values), evaluate(high, values)) == (length >= 32)
    kept = sizes.guard_of(sympy.StrictLessThan(8, s), names)
    assert kept == ("<", 8, "s1")
