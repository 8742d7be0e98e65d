"""Row functions: 8-bit forms with and without rotation, bf16 rows, gathered embedding rows."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Harness = Callable[[str], ctypes.CDLL]
F32 = NDArray[np.float32]
LENGTHS = (1, 15, 32, 64, 100, 127, 384, 1000, 1536)


@pytest.fixture(scope="module")
def lib(harness: Harness) -> ctypes.CDLL:
    return harness("rows")


def pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def row(n: int, seed: int = 0) -> F32:
    return (np.random.default_rng(seed + n).standard_normal(n) * 3 + 1).astype(np.float32)


def hadamard(n: int) -> NDArray[np.float64]:
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def rotated(x: F32, block: int) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    return (wide.reshape(-1, block) @ hadamard(block)).ravel() if block else wide


def written(function: Callable[..., None], x: F32, size: int) -> NDArray[np.uint8]:
    """The bytes the function wrote; checks that it wrote no others and left its input alone."""
    around = np.full(size + 192, 0x5A, np.uint8)
    start = 64 + (-around.ctypes.data) % 64
    before = x.copy()
    function(pointer(x), ctypes.c_long(x.size), pointer(around[start:]))
    assert (around[:start] == 0x5A).all() and (around[start + size :] == 0x5A).all()
    np.testing.assert_array_equal(x, before)
    return around[start : start + size]


def check_codes(got: NDArray[np.uint8], x: NDArray[np.float64], groups: int, slack: float) -> None:
    """Codes, scales and minima of the form, against the definition in float64."""
    padded = -(-x.size // 64) * 64
    codes = got[: x.size].reshape(groups, -1).astype(np.float64)
    assert (got[x.size : padded] == 0).all()
    scale, minimum = got[padded:].view(np.float32).reshape(2, groups, 1).astype(np.float64)
    grouped = x.reshape(groups, -1)
    low, high = grouped.min(1, keepdims=True), grouped.max(1, keepdims=True)
    np.testing.assert_allclose(minimum, low, rtol=1e-6, atol=slack)
    np.testing.assert_allclose(scale, np.where(high > low, (high - low) / 255, 1), rtol=1e-5)
    assert (np.abs(codes * scale + minimum - grouped) <= scale * 0.5001 + slack).all()
    assert np.abs(codes - np.round((grouped - low) / scale)).max() <= (1 if slack else 0)


ROTATED = [(n, block) for n in LENGTHS for block in (0, 64, 128) if not block or n % block == 0]


@pytest.mark.parametrize(("n", "block"), ROTATED)
def test_u8t(lib: ctypes.CDLL, n: int, block: int) -> None:
    x = row(n)
    got = written(getattr(lib, f"u8t_{block}"), x, -(-n // 64) * 64 + 8)
    check_codes(got, rotated(x, block), 1, 1e-5)


@pytest.mark.parametrize("n", [4096, 4096 + 128, 9984])
def test_u8t_of_rows_longer_than_the_scratch(lib: ctypes.CDLL, n: int) -> None:
    x = row(n)
    check_codes(written(lib.u8t_128, x, n + 8), rotated(x, 128), 1, 1e-5)


GROUPED = [(32, 0), (64, 0), (128, 0), (32, 64), (64, 64), (128, 64), (64, 128), (128, 128)]


@pytest.mark.parametrize(("group", "block"), GROUPED)
@pytest.mark.parametrize("spans", [1, 3, 8])
def test_u8g(lib: ctypes.CDLL, group: int, block: int, spans: int) -> None:
    n = max(group, block) * spans
    x = row(n)
    x[:group] *= 100
    got = written(getattr(lib, f"u8g{group}_{block}"), x, -(-n // 64) * 64 + 8 * (n // group))
    check_codes(got, rotated(x, block), n // group, 1e-4 if block else 1e-5)


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
@pytest.mark.parametrize("n", [1, 64, 100])
def test_a_constant_row_is_exact(lib: ctypes.CDLL, n: int, value: float) -> None:
    got = written(lib.u8t_0, np.full(n, value, np.float32), -(-n // 64) * 64 + 8)
    assert (got[:-8] == 0).all() and got[-8:].view(np.float32).tolist() == [1.0, value]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["u8t_0", "u8t_64", "u8g64_0", "u8g64_64"])
def test_nan_and_infinity_come_through(lib: ctypes.CDLL, name: str, bad: float) -> None:
    for at in (0, 17, 63):
        x = row(64)
        x[at] = bad
        got = written(getattr(lib, name), x, 72)
        scale, minimum = got[64:].view(np.float32)
        with np.errstate(invalid="ignore"):
            back = got[:64].astype(np.float32) * scale + minimum
        assert not np.isfinite(back).any()


@pytest.mark.parametrize("shift", [0.0, 1e3, -1e6])
def test_a_row_far_from_zero(lib: ctypes.CDLL, shift: float) -> None:
    x = row(100) + np.float32(shift)
    check_codes(written(lib.u8t_0, x, 136), x.astype(np.float64), 1, 0.0)


def test_codes_are_torchs_on_ordinary_rows(lib: ctypes.CDLL) -> None:
    for seed in range(20):
        x = row(384, seed)
        got = written(lib.u8t_0, x, 392)
        t = torch.from_numpy(x)
        scale = (t.max() - t.min()) / 255
        want = torch.round((t - t.min()) / scale).numpy()
        assert (got[:384] != want).mean() < 0.01


@pytest.mark.parametrize(("n", "block"), ROTATED)
def test_bf16(lib: ctypes.CDLL, n: int, block: int) -> None:
    x = row(n)
    got = written(getattr(lib, f"bf16_{block}"), x, -(-n // 32) * 64).view(np.uint16)
    back = (got.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(back[:n], rotated(x, block), rtol=2**-8, atol=1e-5)
    assert (got[n:] == 0).all()
    if not block:
        np.testing.assert_array_equal(back[:n], torch.from_numpy(x).bfloat16().float().numpy())


@pytest.mark.parametrize("width", [1, 16, 100, 384])
@pytest.mark.parametrize("gap", [0, 5])
def test_gather(lib: ctypes.CDLL, width: int, gap: int) -> None:
    table = np.random.default_rng(width).standard_normal((7, width)).astype(np.float32)
    halves = torch.from_numpy(table).bfloat16()
    scale, minimum = np.float32(0.25), np.float32(-3)
    codes = np.random.default_rng(1).integers(0, 255, (7, width), dtype=np.uint8)
    tail = np.frombuffer(scale.tobytes() + minimum.tobytes(), np.uint8)
    fill = np.zeros((7, gap), np.uint8)
    u8 = np.hstack([codes, np.tile(tail, (7, 1)), fill])
    s8 = np.hstack([codes, np.tile(tail[:4], (7, 1)), fill])
    want = [table, halves.float().numpy(), codes * scale + minimum, codes.view(np.int8) * scale]
    for kind, block in enumerate((table, halves.view(torch.int16).numpy(), u8, s8)):
        pitch = block.strides[0] if gap and kind > 1 else 0
        if gap and kind < 2:
            continue
        out = np.full(width + 16, 7, np.float32)
        lib.gather(kind, pointer(block), ctypes.c_long(width), ctypes.c_long(5), pointer(out), ctypes.c_long(pitch))
        np.testing.assert_array_equal(out[:width], want[kind][5])
        assert (out[width:] == 7).all()
