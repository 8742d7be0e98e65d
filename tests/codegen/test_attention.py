"""Attention in float and bf16 against float64: shapes, masks, causal, many keys, shared heads, special values."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

Harness = Callable[[str], ctypes.CDLL]


class Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "mask", "out")),
        *((n, ctypes.c_long) for n in ("batch", "heads", "kv_heads", "queries", "keys", "width")),
        *((n, ctypes.c_long) for n in ("mask_row", "mask_column", "mask_head", "mask_batch")),
        ("scale", ctypes.c_float),
        *((n, ctypes.c_int) for n in ("causal", "bf16_products", "bf16_rows", "mask_kind")),
    ]


@dataclass(frozen=True)
class Shape:
    queries: int
    keys: int
    width: int
    heads: int = 2
    kv_heads: int = 2
    batch: int = 1
    causal: bool = False
    scale: float = 0.3


@pytest.fixture(scope="module")
def lib(harness: Harness) -> ctypes.CDLL:
    found = harness("attention")
    found.attend.restype = ctypes.c_double
    return found


def operands(shape: Shape, dtype: torch.dtype) -> list[torch.Tensor]:
    """q, k, v as [batch, rows, heads, width]."""
    make = torch.Generator().manual_seed(shape.queries * 1000 + shape.keys)
    rows = ((shape.queries, shape.heads), (shape.keys, shape.kv_heads), (shape.keys, shape.kv_heads))
    return [torch.randn(shape.batch, r, h, shape.width, generator=make).to(dtype) for r, h in rows]


def run(
    lib: ctypes.CDLL,
    shape: Shape,
    qkv: list[torch.Tensor],
    bf16: bool,
    mask: torch.Tensor | None = None,
    threads: int = 1,
) -> torch.Tensor:
    """The library's result [batch, queries, heads, width]; nothing outside of it is written."""
    q = qkv[0]
    around = torch.full((q.numel() + 128,), 7.0, dtype=q.dtype)
    out = around[64:-64].view(q.shape)
    whole = None if mask is None else mask.expand(shape.batch, shape.heads, shape.queries, shape.keys)
    strides = (0, 0, 0, 0) if whole is None else whole.stride()
    problem = Problem(
        *(t.data_ptr() for t in qkv),
        None if mask is None else mask.data_ptr(),
        out.data_ptr(),
        *(shape.batch, shape.heads, shape.kv_heads, shape.queries, shape.keys, shape.width),
        *(strides[2], strides[3], strides[1], strides[0]),
        shape.scale,
        *(int(shape.causal), int(bf16), int(q.dtype == torch.bfloat16)),
        0 if mask is None else 2 if mask.dtype == torch.bool else 1,
    )
    assert lib.attend(ctypes.byref(problem), ctypes.c_long(threads)) > 0
    assert bool((around[:64] == 7).all()) and bool((around[-64:] == 7).all())
    return out


def exact(shape: Shape, qkv: list[torch.Tensor], mask: torch.Tensor | None = None) -> torch.Tensor:
    """The definition in float64; a row without any key is 0."""
    q, k, v = (t.double().transpose(1, 2) for t in qkv)
    share = shape.heads // shape.kv_heads
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = q @ k.transpose(-1, -2) * shape.scale
    if shape.causal:
        seen = torch.ones(shape.queries, shape.keys, dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    weights = torch.softmax(scores, -1)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    return (weights.masked_fill(empty, 0.0) @ v).transpose(1, 2)


def check(got: torch.Tensor, want: torch.Tensor, bf16: bool) -> None:
    error = (got.double() - want).abs().max().item()
    assert error < (3e-2 if bf16 else 1e-5), error
    relative = ((got.double() - want).norm() / want.norm().clamp_min(1e-30)).item()
    assert relative < (6e-3 if bf16 else 2e-6), relative


SHAPES = (
    Shape(1, 1, 32),
    Shape(1, 77, 64, heads=4, kv_heads=1),
    Shape(8, 32, 32, heads=12, kv_heads=12),
    Shape(16, 16, 32, batch=3),
    Shape(13, 45, 40),
    Shape(9, 33, 7),
    Shape(19, 128, 96),
    Shape(5, 100, 128, heads=4, kv_heads=2),
    Shape(30, 64, 65),
    Shape(17, 31, 16),
    Shape(128, 128, 32),
    Shape(40, 40, 64, causal=True),
    Shape(33, 70, 32, causal=True),
    Shape(70, 33, 32, causal=True),
    Shape(10, 256, 32),
    Shape(11, 257, 32),
    Shape(9, 1300, 64),
    Shape(600, 600, 32, causal=True, heads=1, kv_heads=1),
    Shape(6, 50, 32, scale=-0.2),
)
ARITHMETIC = [(True, torch.bfloat16), (True, torch.float32), (False, torch.float32)]
NAMES = ["bf16", "bf16-of-float", "float"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("bf16", "rows"), ARITHMETIC, ids=NAMES)
def test_plain(lib: ctypes.CDLL, shape: Shape, bf16: bool, rows: torch.dtype) -> None:
    qkv = operands(shape, rows)
    check(run(lib, shape, qkv, bf16), exact(shape, qkv), bf16)


def masks(shape: Shape) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(3)
    keep = torch.rand(shape.batch, 1, shape.queries, shape.keys, generator=make) < 0.6
    keep[..., 0] = True
    padding = torch.arange(shape.keys).view(1, 1, 1, -1) < shape.keys * 2 // 3
    lowest = torch.finfo(torch.float32).min
    return {
        "float": torch.randn(shape.heads, shape.queries, shape.keys, generator=make).unsqueeze(0),
        "full": torch.where(keep, 0.0, -torch.inf),
        "keys": torch.where(padding, 0.0, lowest),
        "bool": keep,
        "bool-keys": padding.contiguous(),
        "transposed": torch.randn(shape.keys, shape.queries, generator=make).t()[None, None],
        "per-row": torch.randn(1, 1, shape.queries, 1, generator=make),
    }


@pytest.mark.parametrize("kind", list(masks(Shape(2, 2, 2))))
@pytest.mark.parametrize(
    "shape", [Shape(13, 45, 40, batch=2), Shape(10, 700, 32), Shape(50, 50, 32, causal=True)], ids=str
)
@pytest.mark.parametrize(("bf16", "rows"), ARITHMETIC, ids=NAMES)
def test_masks(lib: ctypes.CDLL, shape: Shape, kind: str, bf16: bool, rows: torch.dtype) -> None:
    qkv, mask = operands(shape, rows), masks(shape)[kind]
    check(run(lib, shape, qkv, bf16, mask), exact(shape, qkv, mask), bf16)


def test_no_keys_at_all(lib: ctypes.CDLL) -> None:
    shape = Shape(11, 0, 33)
    assert bool((run(lib, shape, operands(shape, torch.float32), False) == 0).all())


@pytest.mark.parametrize("keys", [20, 700])
@pytest.mark.parametrize("bf16", [True, False])
def test_rows_without_keys_are_torchs(lib: ctypes.CDLL, keys: int, bf16: bool) -> None:
    shape = Shape(6, keys, 32)
    qkv = operands(shape, torch.float32)
    mask = torch.zeros(1, 1, 6, keys)
    mask[..., 1, :] = -torch.inf
    mask[..., 2, :] = torch.finfo(torch.float32).min
    mask[..., 3, : keys - 1] = -torch.inf
    got = run(lib, shape, qkv, bf16, mask)
    q, k, v = (t.transpose(1, 2) for t in qkv)
    with torch.inference_mode():
        want = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=shape.scale).transpose(1, 2)
    torch.testing.assert_close(got, want, rtol=1e-2 if bf16 else 1e-5, atol=2e-2 if bf16 else 1e-5)
    assert bool((got[:, 1] == 0).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("keys", [20, 700])
@pytest.mark.parametrize("bf16", [True, False])
def test_nan_stays_in_its_row(lib: ctypes.CDLL, keys: int, bf16: bool, bad: float) -> None:
    shape = Shape(9, keys, 32, heads=1, kv_heads=1)
    qkv = operands(shape, torch.float32)
    clean = run(lib, shape, qkv, bf16)
    qkv[0][0, 4] = bad
    got = run(lib, shape, qkv, bf16)
    assert bool(got[0, 4].isnan().all())
    keep = torch.arange(9) != 4
    assert torch.equal(got[:, keep], clean[:, keep])


@pytest.mark.parametrize("bf16", [True, False])
def test_large_scores_do_not_overflow(lib: ctypes.CDLL, bf16: bool) -> None:
    shape = Shape(9, 600, 32, scale=50.0)
    qkv = operands(shape, torch.bfloat16 if bf16 else torch.float32)
    got = run(lib, shape, qkv, bf16)
    assert bool(got.isfinite().all())
    assert ((got.double() - exact(shape, qkv)).norm() / exact(shape, qkv).norm()).item() < (2e-2 if bf16 else 1e-4)


def test_float_error_is_no_larger_than_eagers(lib: ctypes.CDLL) -> None:
    shape = Shape(128, 128, 32, heads=12, kv_heads=12)
    qkv = operands(shape, torch.float32)
    want = exact(shape, qkv)
    q, k, v = (t.transpose(1, 2) for t in qkv)
    weights = torch.softmax(q @ k.transpose(-1, -2) * shape.scale, -1)
    eager = ((weights @ v).transpose(1, 2).double() - want).abs().max().item()
    assert (run(lib, shape, qkv, False).double() - want).abs().max().item() <= 2 * eager


@pytest.mark.parametrize("bf16", [True, False])
def test_threads_give_the_same_bits(lib: ctypes.CDLL, bf16: bool) -> None:
    shape = Shape(37, 90, 32, heads=6, kv_heads=3, batch=2)
    qkv = operands(shape, torch.float32)
    one = run(lib, shape, qkv, bf16)
    assert torch.equal(one, run(lib, replace(shape), qkv, bf16, threads=2))
