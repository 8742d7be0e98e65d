"""Scalar functions that printed Triton kernels call: what Triton's own language lacks, in fp32.

In: fp32 tiles. Out: fp32 tiles. No vendor library is called, so the interpreter runs the same text. Relative errors
are those of the underlying exp and log (about 2 units in the last place) unless a function says otherwise.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def maximum(a, b):
    """The larger; NaN where either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    """The smaller; NaN where either is."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def row_sum(x):
    """Sum over the columns, one per row."""
    return tl.sum(x, 1, keep_dims=True)


@triton.jit
def row_max(x):
    """Largest of a row; NaN where it has one."""
    return tl.reduce(x, 1, maximum, keep_dims=True)


@triton.jit
def row_min(x):
    """Smallest of a row; NaN where it has one."""
    return tl.reduce(x, 1, minimum, keep_dims=True)


@triton.jit
def tanh(x):
    """Odd polynomial (Cephes) below 0.625, else through exp."""
    a = tl.abs(x)
    z = x * x
    p = ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z) + 1.33314422036e-1) * z
    small = (p - 3.33332819422e-1) * z * x + x
    large = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
    return tl.where(a < 0.625, small, tl.where(x < 0.0, -large, large))


@triton.jit
def expm1(x):
    """2 t / (1 - t) with t = tanh(x / 2) near 0, else exp(x) - 1."""
    t = tanh(0.5 * x)
    return tl.where(tl.abs(x) < 0.5, 2.0 * t / (1.0 - t), tl.exp(x) - 1.0)


@triton.jit
def log1p(x):
    """log(u) x / (u - 1) with u = 1 + x as rounded: the rounding error cancels (Higham)."""
    u = 1.0 + x
    ratio = tl.where((u == 1.0) | (u == float("inf")), 1.0, x / (u - 1.0))
    return tl.where(u == 1.0, x, tl.log(u) * ratio)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gelu(x):
    """x times the normal distribution function."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    """The tanh form of GELU."""
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def round_even(x):
    """Nearest whole number, ties to even: adding 1.5 * 2**23 leaves no room for a fraction."""
    return tl.where(tl.abs(x) < 4194304.0, (x + 12582912.0) - 12582912.0, x)


@triton.jit
def trunc(x):
    """Towards zero."""
    return tl.where(x < 0.0, tl.ceil(x), tl.floor(x))


@triton.jit
def sign(x):
    """-1, 0 or 1; 0 for NaN, as in torch."""
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0))


@triton.jit
def power(a, b):
    """a ** b with torch's signs and special cases; relative error grows as |b log2 a| units in the last place."""
    magnitude = tl.exp2(b * tl.log2(tl.abs(a)))
    odd = tl.abs(b - 2.0 * trunc(0.5 * b)) == 1.0
    whole = tl.floor(b) == b
    signed = tl.where((a < 0.0) & odd, -magnitude, magnitude)
    value = tl.where((a < 0.0) & (whole == 0), float("nan"), signed)
    return tl.where((b == 0.0) | (a == 1.0), 1.0, value)


@triton.jit
def modulo(a, b):
    """Remainder with the sign of the divisor."""
    return a - tl.floor(a / b) * b


@triton.jit
def group_max(x, GROUP: tl.constexpr):
    """Every column's group's largest value: [rows, columns] of which each aligned GROUP columns are equal."""
    parts = tl.reshape(x, [x.shape[0], x.shape[1] // GROUP, GROUP])
    most = tl.reduce(parts, 2, maximum, keep_dims=True)
    return tl.reshape(tl.broadcast_to(most, parts.shape), x.shape)


@triton.jit
def group_min(x, GROUP: tl.constexpr):
    """As ``group_max``, the smallest."""
    parts = tl.reshape(x, [x.shape[0], x.shape[1] // GROUP, GROUP])
    least = tl.reduce(parts, 2, minimum, keep_dims=True)
    return tl.reshape(tl.broadcast_to(least, parts.shape), x.shape)


@triton.jit
def butterfly(x, STEP: tl.constexpr):
    """Sum and difference of columns STEP apart, in each aligned run of 2 STEP columns."""
    runs = tl.reshape(x, [x.shape[0], x.shape[1] // (2 * STEP), 2, STEP])
    left, right = tl.split(tl.permute(runs, [0, 1, 3, 2]))
    both = tl.join(left + right, left - right)
    return tl.reshape(tl.permute(both, [0, 1, 3, 2]), x.shape)


@triton.jit
def rotate(x, LEVELS: tl.constexpr, FACTOR: tl.constexpr):
    """Each aligned block of 2**LEVELS columns times the Hadamard matrix in Sylvester order, times FACTOR.

    As a matrix product it would need the whole matrix in registers, and spill.
    """
    for level in tl.static_range(LEVELS):
        x = butterfly(x, 1 << level)
    return x * FACTOR
