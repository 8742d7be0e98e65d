"""The vector type: loads, stores, arithmetic, masks and reductions against numpy and torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Harness = Callable[[str], ctypes.CDLL]
F32 = NDArray[np.float32]
LENGTHS = (1, 7, 15, 16, 17, 33, 64)
SPECIAL = np.array([0.0, -0.0, 1e-40, -1e-40, 1e-45, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1.1754944e-38], "f4")


@pytest.fixture(scope="module")
def lib(harness: Harness) -> ctypes.CDLL:
    return harness("vec")


def pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def guarded(n: int, dtype: str) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """An array of n elements and the buffer around it, filled with a pattern."""
    size = np.dtype(dtype).itemsize
    around = np.full(n * size + 128, 0x5A, np.uint8)
    return around[64 : 64 + n * size].view(dtype), around


def untouched(around: NDArray[np.generic], inside: NDArray[np.generic]) -> bool:
    return bool((around[:64] == 0x5A).all() and (around[64 + inside.nbytes :] == 0x5A).all())


def unary(lib: ctypes.CDLL, name: str, x: F32) -> F32:
    y = np.empty_like(x)
    getattr(lib, f"u_{name}")(pointer(x), pointer(y), ctypes.c_long(x.size))
    return y


def binary(lib: ctypes.CDLL, name: str, a: F32, b: F32) -> F32:
    y = np.empty_like(a)
    getattr(lib, name)(pointer(a), pointer(b), pointer(y), ctypes.c_long(a.size))
    return y


def same(got: F32, want: F32) -> None:
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    ok = ~np.isnan(want)
    np.testing.assert_array_equal(got[ok].view(np.int32), want[ok].view(np.int32))


def bits_over_floats(step: int = 9973) -> F32:
    return np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


TORCH = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i32": torch.int32,
    "i64": torch.int64,
    "bool": torch.bool,
}


def as_numpy(t: torch.Tensor) -> NDArray[np.generic]:
    return t.view(torch.int16).numpy() if t.dtype in (torch.bfloat16, torch.float16) else t.numpy()


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kind", list(TORCH))
def test_conversions_are_torchs_and_touch_nothing_else(lib: ctypes.CDLL, kind: str, n: int) -> None:
    rng = np.random.default_rng(n)
    x = (rng.standard_normal(n) * 50).astype(np.float32)
    x[:: max(1, n // 3)] = 0.0
    if kind == "u8":
        x = np.abs(x)
    want = as_numpy(torch.from_numpy(x).to(TORCH[kind]))
    out, around = guarded(n, want.dtype.name)
    getattr(lib, f"store_{kind}")(pointer(x), pointer(out), ctypes.c_long(n))
    np.testing.assert_array_equal(out, want)
    assert untouched(around, out)
    back, around = guarded(n, "float32")
    getattr(lib, f"load_{kind}")(pointer(out), pointer(back), ctypes.c_long(n))
    np.testing.assert_array_equal(back, torch.from_numpy(x).to(TORCH[kind]).float().numpy())
    assert untouched(around, back)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_half_formats_over_all_floats(lib: ctypes.CDLL, kind: str) -> None:
    x = np.concatenate([bits_over_floats(), SPECIAL, np.array([65519.0, 65520.0, 2.0**-24, 2.0**-25, 2.0**-26], "f4")])
    want = torch.from_numpy(x).to(TORCH[kind]).float().numpy()
    halves, back = np.empty(x.size, np.uint16), np.empty_like(x)
    getattr(lib, f"store_{kind}")(pointer(x), pointer(halves), ctypes.c_long(x.size))
    getattr(lib, f"load_{kind}")(pointer(halves), pointer(back), ctypes.c_long(x.size))
    if kind == "bf16":  # subnormal floats may become zero
        tiny = np.abs(want) < 1.2e-38
        assert (np.abs(back[tiny]) <= 1.2e-38).all()
        same(back[~tiny], want[~tiny])
    else:
        same(back, want)


def test_scalar_halves(lib: ctypes.CDLL) -> None:
    x = np.concatenate([bits_over_floats(), SPECIAL])
    bf, fp, back = np.empty(x.size, np.uint16), np.empty(x.size, np.uint16), np.empty_like(x)
    lib.scalar_halves(pointer(x), pointer(bf), pointer(fp), pointer(back), ctypes.c_long(x.size))
    same((bf.astype(np.uint32) << 16).view(np.float32), torch.from_numpy(x).bfloat16().float().numpy())
    same(back, torch.from_numpy(x).half().float().numpy())


ROUNDING = ("abs", "neg", "floor", "ceil", "round", "trunc", "sign", "relu")


@pytest.mark.parametrize("name", ROUNDING)
def test_exact_functions_are_torchs_bit_for_bit(lib: ctypes.CDLL, name: str) -> None:
    halves = (np.arange(-2000, 2000) / 4).astype(np.float32)
    big = np.array([2.0**22 + 0.5, 2.0**23 - 0.5, 2.0**23 + 1, -(2.0**22) - 0.5, 1e30, -1e30], "f4")
    x = np.concatenate([halves, big, SPECIAL, bits_over_floats(99991)])
    same(unary(lib, name, x), getattr(torch, name)(torch.from_numpy(x)).numpy())


def test_square_root_is_rounded_correctly(lib: ctypes.CDLL) -> None:
    x = np.concatenate([SPECIAL, bits_over_floats(99991)])
    x = np.abs(x[~np.isnan(x)])
    same(unary(lib, "sqrt", x), np.sqrt(x))


@pytest.mark.parametrize("name", ["min", "max", "copysign"])
def test_binary_functions_hand_nan_through(lib: ctypes.CDLL, name: str) -> None:
    a, b = (m.ravel().astype(np.float32) for m in np.meshgrid(SPECIAL, SPECIAL))
    function = {"min": torch.minimum, "max": torch.maximum, "copysign": torch.copysign}[name]
    want = function(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    got = binary(lib, f"b_{name}", a, b)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(got[~np.isnan(want)], want[~np.isnan(want)])


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons(lib: ctypes.CDLL, name: str) -> None:
    a, b = (m.ravel().astype(np.float32) for m in np.meshgrid(SPECIAL, SPECIAL))
    want = getattr(torch, name)(torch.from_numpy(a), torch.from_numpy(b)).float().numpy()
    np.testing.assert_array_equal(binary(lib, f"c_{name}", a, b), want)


@pytest.mark.parametrize("n", LENGTHS)
def test_arithmetic_and_masks(lib: ctypes.CDLL, n: int) -> None:
    a, b, c = np.random.default_rng(n).standard_normal((3, n)).astype(np.float32)
    y, around = guarded(n, "float32")
    lib.arithmetic(pointer(a), pointer(b), pointer(c), pointer(y), ctypes.c_long(n))
    u, v, w = (t.astype(np.float64) for t in (a, b, c))
    want = u * v + w + (v - u * w) * (u - v) / (w + 3) + np.clip(u, -0.5, 0.5)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    assert untouched(around, y)
    a[::5], b[::3] = np.nan, np.inf
    lib.masks(pointer(a), pointer(b), pointer(y), ctypes.c_long(n))
    chosen = ((a < b) & ~(a < 0)) | (np.isnan(a) ^ np.isinf(b))
    np.testing.assert_array_equal(y, np.where(chosen, a, b))


@pytest.mark.parametrize("n", range(1, 17))
def test_reductions(lib: ctypes.CDLL, n: int) -> None:
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32) - 5
    y = np.empty(6, np.float32)
    lib.reductions(pointer(x), ctypes.c_int(n), pointer(y))
    np.testing.assert_allclose(y[0], x.sum(dtype=np.float64), rtol=1e-6)
    assert (y[1], y[2]) == (x.max(), x.min())
    assert (y[3], y[4], y[5]) == (2**n - 1, 1 + 2 * (n == 16), 2**n - 1)
    x[n // 2] = np.nan
    lib.reductions(pointer(x), ctypes.c_int(n), pointer(y))
    assert np.isnan(y[:3]).all()


def test_codes_round_to_even_and_saturate(lib: ctypes.CDLL) -> None:
    x = np.array([-5, -0.4, 0.5, 1.5, 2.5, 254.5, 255.4, 300, 17.49, 17.51, 0, 255, 128, 127.5, 3, 4], np.float32)
    y = np.empty(16, np.uint8)
    lib.codes(pointer(x), pointer(y))
    np.testing.assert_array_equal(y, np.clip(np.round(x), 0, 255).astype(np.uint8))
