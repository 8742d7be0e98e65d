"""Functions of analysis against float64, and against torch at infinities, nan, zeros and subnormals."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Harness = Callable[[str], ctypes.CDLL]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
SPECIAL = np.array([0.0, -0.0, 1e-40, -1e-40, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1.1754944e-38, -200, 200], "f4")


@pytest.fixture(scope="module")
def lib(harness: Harness) -> ctypes.CDLL:
    return harness("vec")


def call(lib: ctypes.CDLL, name: str, *x: F32) -> F32:
    y = np.empty_like(x[0])
    getattr(lib, name)(*(ctypes.c_void_p(a.ctypes.data) for a in (*x, y)), ctypes.c_long(y.size))
    return y


def dense(low: float, high: float, n: int = 200_003) -> F32:
    return np.linspace(low, high, n).astype(np.float32)


def powers(low: float, high: float, n: int = 200_003) -> F32:
    return np.geomspace(low, high, n).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """``error`` is |got - want| / max(|want|, floor), the largest allowed over the range; floor inf: absolute."""

    name: str
    want: Callable[[F64], F64]
    x: F32
    error: float
    floor: float = 1.2e-38


def erf(x: F64) -> F64:
    return torch.erf(torch.from_numpy(x)).numpy()


def gelu(x: F64) -> F64:
    return x * 0.5 * torch.erfc(torch.from_numpy(-x / math.sqrt(2))).numpy()


def sigmoid(x: F64) -> F64:
    return 1 / (1 + np.exp(-x))


def gelu_tanh(x: F64) -> F64:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


both = np.concatenate([dense(-20, 20), powers(1e-38, 20), -powers(1e-38, 20)])
CASES = (
    Case("exp", np.exp, dense(-87, 88.7), 2e-7),
    Case("exp", np.exp, dense(-104, -87), 1.5e-45, math.inf),
    Case("exp2", np.exp2, dense(-126, 127.99), 2e-7),
    Case("exp2_short", np.exp2, dense(-126, 127.99), 2.5e-7),
    Case("expm1", np.expm1, both, 3e-7),
    Case("expm1", np.expm1, dense(20, 88.7), 3e-7),
    Case("log", np.log, powers(1e-44, 3.4e38), 2e-7),
    Case("log", np.log, dense(0.5, 2), 2.5e-7),
    Case("log2", np.log2, powers(1e-44, 3.4e38), 3e-7),
    Case("log2", np.log2, dense(0.5, 2), 4e-7),
    Case("log1p", np.log1p, np.concatenate([dense(-0.999, 3), powers(1e-38, 1e38), -powers(1e-38, 0.99)]), 3e-7),
    Case("tanh", np.tanh, both, 3e-7),
    Case("erf", erf, both, 3e-7),
    Case("sigmoid", sigmoid, dense(-87, 87), 4e-7),
    Case("silu", lambda x: x * sigmoid(x), both, 5e-7),
    Case("gelu", gelu, dense(-20, 4), 3e-7, math.inf),
    Case("gelu", gelu, dense(-0.3, 0.3), 4e-7),
    Case("gelu", gelu, dense(4, 1000), 2e-7),
    Case("gelu_tanh", gelu_tanh, both, 6e-7, math.inf),
    Case("rsqrt", lambda x: 1 / np.sqrt(x), powers(1e-37, 1e38), 2e-7),
    Case("recip", lambda x: 1 / x, powers(1e-37, 1e37), 1e-7),
    Case("sin", np.sin, dense(-10, 10), 3e-7),
    Case("cos", np.cos, dense(-10, 10), 3e-7),
    Case("sin", np.sin, np.concatenate([dense(-1e5, 1e5), powers(1, 3e38)]), 3e-7, math.inf),
    Case("cos", np.cos, np.concatenate([dense(-1e5, 1e5), powers(1, 3e38)]), 3e-7, math.inf),
)


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c.name}" for i, c in enumerate(CASES)])
def test_error_against_float64(lib: ctypes.CDLL, case: Case) -> None:
    got, want = call(lib, f"u_{case.name}", case.x).astype(np.float64), case.want(case.x.astype(np.float64))
    scale = 1.0 if case.floor == math.inf else np.maximum(np.abs(want), case.floor)
    error = np.abs(got - want) / scale
    at = int(np.argmax(error))
    assert error[at] <= case.error, f"{case.name}({case.x[at]!r}) = {got[at]!r}, not {want[at]!r}: {error[at]:.3g}"


TORCH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **{n: getattr(torch, n) for n in ("exp", "exp2", "expm1", "log", "log2", "log1p", "tanh", "erf", "sigmoid")},
    **{n: getattr(torch, n) for n in ("sin", "cos", "rsqrt")},
    "recip": torch.reciprocal,
    "silu": torch.nn.functional.silu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("name", list(TORCH))
def test_special_values_are_torchs(lib: ctypes.CDLL, name: str) -> None:
    x = np.repeat(SPECIAL, 16)
    with torch.inference_mode():
        want = TORCH[name](torch.from_numpy(x)).numpy()
    got = call(lib, f"u_{name}", x)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=5e-7, atol=2e-45)


def test_gelu_at_special_values(lib: ctypes.CDLL) -> None:
    got = call(lib, "u_gelu", np.array([0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38], "f4"))
    assert got[0] == 0 and got[1] == np.inf and abs(got[2]) < 1e-9 and np.isnan(got[3])
    assert got[4] == np.float32(3.4e38) and abs(got[5]) < 1e-9


def test_pow(lib: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    a = np.exp(rng.uniform(-80, 80, 100_003)).astype(np.float32)
    b = (rng.uniform(-85, 85, a.size) / np.maximum(np.abs(np.log(a)), 0.1)).astype(np.float32)
    want = np.power(a.astype(np.float64), b.astype(np.float64))
    ok = (want > 1.2e-38) & (want < 3.4e38)
    error = np.abs(call(lib, "b_pow", a, b)[ok] / want[ok] - 1)
    assert ok.mean() > 0.9 and error.max() < 2e-7


@pytest.mark.parametrize("name", ["pow", "mod", "floordiv"])
def test_binary_special_values_are_torchs(lib: ctypes.CDLL, name: str) -> None:
    usual = SPECIAL if name == "pow" else SPECIAL[np.abs(SPECIAL) < 1000]  # torch.remainder overflows at 1 % 1e-40
    usual = usual[(usual == 0) | ~(np.abs(usual) < 1e-30)]
    values = np.concatenate([usual, np.array([1, -1, 2, -2, 0.5, -3, 3, 7.5, -7.5, 1e9, 0.1, np.inf, np.nan], "f4")])
    a, b = (np.ascontiguousarray(m.ravel()).astype(np.float32) for m in np.meshgrid(values, values))
    function = {"pow": torch.pow, "mod": torch.remainder, "floordiv": torch.floor_divide}[name]
    want = function(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    got = call(lib, f"b_{name}", a, b)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=3e-7, atol=2e-45)
