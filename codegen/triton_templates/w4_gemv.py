"""Template: as ``w4_gemm`` for at most four rows of x: each weight is dequantised to fp32 once and meets all rows.

In and out as in ``w4_gemm``. The tile is y [ROWS, BN]; ROWS is 1, 2 or 4; products are summed over K lane by lane,
and across lanes once at the end. Nibbles become fp32 by setting the exponent under them (2**23 + code).
"""

# mypy: ignore-errors
# ruff: noqa: F821, B018
from __future__ import annotations

import triton
import triton.language as tl

from adaflex.codegen.triton_templates import scalar as af  # noqa: F401 (printed regions use it)


@triton.jit
def half_sums(codes, zero, scale, x, ASYMMETRIC: tl.constexpr):
    """scale (codes - zero) x [ROWS, BN, H]: codes uint8 [BN, H], zero and scale [BN], x [ROWS, H]."""
    weight = (codes.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True)
    weight = weight - (8388608.0 + zero.to(tl.float32))[:, None] if ASYMMETRIC else weight - 8388616.0
    return (weight * scale[:, None])[None, :, :] * x.to(tl.float32)[:, None, :]


@triton.jit(do_not_specialize=["M"])
def KERNEL(
    x, b, scale, zero, partial, M, N, K, pitch, ARGUMENTS,
    GROUP: tl.constexpr, H: tl.constexpr, ASYMMETRIC: tl.constexpr, F16: tl.constexpr, WHOLE: tl.constexpr,
    SHARED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    k = tl.arange(0, H)
    blocks = tl.cdiv(K, 2 * H)
    wide = tl.cdiv(N, 64) * 64
    share = tl.cdiv(blocks, tl.num_programs(2))
    first = tl.program_id(2) * share
    row = tl.minimum(n, N - 1)
    codes_at = b + ((row // 64).to(tl.int64) * blocks * 64 + row % 64)[:, None] * H + k[None, :]
    x_at = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * pitch + k[None, :]
    sums = tl.zeros([BM, BN, H], tl.float32)
    for block in range(first, tl.minimum(first + share, blocks)):
        packed = tl.load(codes_at + block * (64 * H))
        left = K if WHOLE else K - block * (2 * H)
        low = tl.load(x_at + block * (2 * H), mask=k[None, :] < left, other=0.0)
        high = tl.load(x_at + block * (2 * H) + H, mask=k[None, :] + H < left, other=0.0)
        group = block * (2 * H) // GROUP * wide + row
        after = group if GROUP > H else group + wide
        z_low = tl.load(zero + group) if ASYMMETRIC else 0
        z_high = tl.load(zero + after) if ASYMMETRIC else 0
        sums += half_sums(packed & 15, z_low, tl.load(scale + group), low, ASYMMETRIC)
        sums += half_sums(packed >> 4, z_high, tl.load(scale + after), high, ASYMMETRIC)
    total = tl.sum(sums, 2)
    rows = m[:, None]
    cols = n[None, :]
    rm = rows < M
    cm = cols < N
    if SHARED:
        place = tl.program_id(2).to(tl.int64) * M * N + rows.to(tl.int64) * N + cols
        tl.store(partial + place, total, mask=rm & cm)
    else:
        EPILOGUE
