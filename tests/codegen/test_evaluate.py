"""The evaluator's own pieces against definitions written another way: forms, packed weights, addresses, ops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from adaflex.codegen.evaluate_attention import evaluate_attention
from adaflex.codegen.evaluate_forms import read_form, read_weight, write_form
from adaflex.codegen.evaluate_region import UNARY, bf16_bits, evaluate_region, widen
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.errors import OptionError
from adaflex.runtime.program import AttentionStep, Operand
from adaflex.runtime.region import Load, Op, Region, Store
from adaflex.solver.table import Encoding
from tests.codegen import oracle

RNG = np.random.default_rng(5)
ENCODINGS = [
    Encoding("fp32"),
    Encoding("bf16", 16),
    Encoding("w8a8", 8),
    Encoding("w8a8", 8, rotation=64),
    Encoding("w8a8", 8, 64),
    Encoding("w8a8", 8, 32, rotation=128),
    Encoding("w8", 8),
    *(Encoding(name, 4, group, even) for name in ("w4", "w4a8") for group in (32, 128) for even in (True, False)),
]
NAMES = {family.name for family in MENU}


@pytest.mark.parametrize("encoding", [e for e in ENCODINGS if e.family in NAMES], ids=lambda e: e.label())
@pytest.mark.parametrize("shape", [(5, 128), (33, 256), (64, 128)])
def test_packed_weights_are_read_as_the_byte_formulas_say(encoding: Encoding, shape: tuple[int, int]) -> None:
    family = kernel(MENU, encoding.family)
    weight = torch.from_numpy(RNG.standard_normal(shape).astype(np.float32))
    encoded = family.encode(weight, encoding, None)
    block = family.pack(encoded).numpy()
    call = family.call(encoding, shape[1], shape[0])
    found = read_weight(block, call.function, dict(call.parts), *shape)
    stored = oracle.turn(oracle.weight(block, shape, encoding), encoding.rotation)
    assert np.abs(found - stored).max() <= 1e-6 * np.abs(stored).max()
    decoded = oracle.turn(family.decode(encoded).double().numpy(), encoding.rotation)
    assert np.abs(found - decoded).max() <= 1e-5 * np.abs(stored).max()


@pytest.mark.parametrize("form", ["bf16", "bf16-h64", "u8t", "u8t-h128", "u8g32", "u8g64-h64", "u8g128"])
def test_forms_come_back_as_what_they_stand_for(form: str) -> None:
    rows = RNG.standard_normal((7, 128)).astype(np.float32)
    rows[3] = 2.5
    raw = write_form(rows, form, 128 * 2 + 64)
    found = read_form(raw, form, 128, np.float64)
    expected = oracle.activations(rows, form)
    if form.startswith("bf16-"):
        expected = oracle.to_bf16(oracle.turn(rows.astype(np.float64), 64))
    flips = np.abs(found - expected) > 1e-5 * np.abs(expected).max()
    assert flips.mean() < 0.01 and np.abs(found - expected).max() < 0.1  # a rounding tie may fall the other way


def test_padding_of_forms_is_zero() -> None:
    raw = write_form(RNG.standard_normal((3, 40)).astype(np.float32), "u8t", 128)
    assert not raw[:, 40:64].any() and not raw[:, 72:].any()


def test_a_nan_in_a_row_comes_through() -> None:
    rows = np.ones((2, 64), np.float32)
    rows[1, 5] = np.nan
    found = read_form(write_form(rows, "u8t", 128), "u8t", 64, np.float32)
    assert (found[0] == 1).all() and np.isnan(found[1]).all()


def test_bf16_rounds_as_torch_does() -> None:
    bits = RNG.integers(0, 1 << 32, 20_000, dtype=np.uint32)
    values = np.concatenate((bits.view(np.float32), np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)))
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(widen(bf16_bits(values), np.float32), expected)


TORCH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "recip": torch.reciprocal,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "not": lambda x: (x == 0).to(x.dtype),
    "bf16": lambda x: x.to(torch.bfloat16).to(x.dtype),
}


@pytest.mark.parametrize("name", sorted(UNARY))
def test_unary_ops_are_torchs(name: str) -> None:
    x = np.concatenate((RNG.standard_normal(200) * 3, [0.0, 0.5, -0.5, 1.5, 2.5, 30, -30]))
    function = TORCH.get(name) or getattr(torch, name)
    with np.errstate(all="ignore"):
        found = UNARY[name](x)
    np.testing.assert_allclose(found, function(torch.from_numpy(x)).numpy(), rtol=1e-12, atol=1e-14)


def region(
    loads: tuple[Load, ...], ops: tuple[Op, ...], dims: tuple[int, ...] = (3,), columns: int = 4, inner: int = 1
):
    return Region(dims, columns, loads, ops, (Store(len(ops) - 1, 9),), inner)


def test_addresses_by_hand() -> None:
    """Every element of a strided load over two axes, an inner axis and columns, summed in a loop."""
    memory = RNG.standard_normal(400).astype(np.float32)
    load = Load(0, (7, -3), 2, 40, 11)
    made = region((load,), (Op("load", (0,)), Op("fold_sum", (0,))), (3, 5), 4, 6)
    (found,) = evaluate_region(made, {0: memory}, {}, np.float64)
    expected = [
        [sum(memory[40 + 7 * i - 3 * j + 11 * k + 2 * c].astype(np.float64) for k in range(6)) for c in range(4)]
        for i in range(3)
        for j in range(5)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gathers_pick_rows_and_refuse_others() -> None:
    table, index = np.arange(20, dtype=np.float32), np.array([4, 0, 4])
    loads = (Load(1, (1,), 0), Load(0, (0,), 1, gather=0, pitch=4))
    made = region(loads, (Op("load", (1,)),))
    (found,) = evaluate_region(made, {0: table, 1: index}, {})
    np.testing.assert_array_equal(found, table.reshape(5, 4)[index])
    with pytest.raises(OptionError, match="table lacks"):
        evaluate_region(made, {0: table, 1: np.array([4, 5, 0])}, {})


def test_a_constant_along_an_axis_counts_once_for_each_entry() -> None:
    made = region((Load(0, (1,), 0),), (Op("load", (0,)), Op("sum", (0,))))
    (found,) = evaluate_region(made, {0: np.array([1, 2, 3], np.float32)}, {})
    np.testing.assert_array_equal(found, [[4], [8], [12]])


@pytest.mark.parametrize("load", [Load(0, (4,), 1, 1), Load(0, (4,), 1, -1), Load(0, (-4,), 1), Load(0, (5,), 1)])
def test_loads_outside_their_slot_are_errors(load: Load) -> None:
    with pytest.raises(IndexError):
        evaluate_region(region((load,), (Op("load", (0,)),)), {0: np.zeros(12, np.float32)}, {})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "additive", "bool"])
def test_attention_is_torchs(kind: str, causal: bool) -> None:
    if causal and kind != "none":
        pytest.skip("torch refuses a mask beside is_causal")
    b, heads, kv, queries, keys, d = 2, 4, 2, 5, 5 if causal else 7, 8
    q, k, v = (torch.randn(b, h, t, d) for h, t in ((heads, queries), (kv, keys), (kv, keys)))
    mask = None
    if kind == "additive":
        mask = torch.randn(b, 1, queries, keys)
    elif kind == "bool":
        mask = torch.rand(b, 1, queries, keys) > 0.4
        mask[0, 0, 2] = False  # a row without any key is zero
    arrays = {n: t.reshape(-1).numpy() for n, t in enumerate((q, k, v))}
    if mask is not None:
        arrays[3] = mask.reshape(-1).numpy()
    strides = [tuple(t.stride()) for t in (q, k, v)]
    step = AttentionStep(
        *(Operand(n, s) for n, s in enumerate(strides)),
        Operand(3, (queries * keys, 0, keys, 1)) if mask is not None else None,
        Operand(4, strides[0]),
        b, heads, kv, queries, keys, d, 1 / math.sqrt(d), causal, False,
    )  # fmt: skip
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
    found = evaluate_attention(step, arrays, {}, np.float64)
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-5, atol=2e-6)
