"""Template: y[M, N] = x[M, K] times int4 weights with a scale (and zero point) per group, then an epilogue region.

In: x fp16 or bf16 rows; weights as ``w4_layout.pack`` stores them. Out: what the epilogue stores, or, where K is SHARED
by several programs, fp32 sums partial[part, M, N]; a second kernel adds them in order, so equal calls give equal bits.
The tile is yᵀ [BN, BM]: dequantised weights are the left operand, which the matrix unit takes from registers, and BM
can be as small as 16. A block of K holds 2 H codes, the first H in low nibbles: each half is one product, and scales
multiply its fp32 sum, so that weights enter the product exactly (code - zero is a small whole number).
Nibbles become floats by setting the exponent under them: 1024 + code in fp16, 128 + code in bf16.
"""

# mypy: ignore-errors
# ruff: noqa: F821, B018
from __future__ import annotations

import triton
import triton.language as tl

from adaflex.codegen.triton_templates import scalar as af  # noqa: F401 (printed regions use it)


@triton.jit
def half_product(codes, zero, x, ASYMMETRIC: tl.constexpr, F16: tl.constexpr):
    """(codes - zero) xᵀ as fp32: codes uint8 0..15 [BN, H], zero [BN], x [BM, H]."""
    if F16:
        weight = (codes.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True)
        weight = weight - (1024.0 + zero.to(tl.float16))[:, None] if ASYMMETRIC else weight - 1032.0
        return tl.dot(weight.to(tl.float16), tl.trans(x.to(tl.float16)))
    weight = (codes.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True)
    weight = weight - (128.0 + zero.to(tl.bfloat16))[:, None] if ASYMMETRIC else weight - 136.0
    return tl.dot(weight.to(tl.bfloat16), tl.trans(x.to(tl.bfloat16)))


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
    sums = tl.zeros([BN, BM], tl.float32)
    ratio: tl.constexpr = 2 if GROUP == H else 1  # groups in a block
    scale_at = scale + row
    zero_at = zero + row
    group = tl.minimum(first, blocks - 1).to(tl.int64) * ratio * wide
    s_low = tl.load(scale_at + group)
    s_high = tl.load(scale_at + group + wide) if ratio == 2 else s_low
    for block in range(first, tl.minimum(first + share, blocks)):
        packed = tl.load(codes_at + block * (64 * H))
        if WHOLE:
            low = tl.load(x_at + block * (2 * H))
            high = tl.load(x_at + block * (2 * H) + H)
        else:
            left = K - block * (2 * H)
            low = tl.load(x_at + block * (2 * H), mask=k[None, :] < left, other=0.0)
            high = tl.load(x_at + block * (2 * H) + H, mask=k[None, :] + H < left, other=0.0)
        after = tl.minimum(block + 1, blocks - 1).to(tl.int64) * ratio * wide
        s_low_next = tl.load(scale_at + after)  # a block ahead: nothing waits for it
        s_high_next = tl.load(scale_at + after + wide) if ratio == 2 else s_low_next
        z_low = tl.load(zero_at + group) if ASYMMETRIC else 0
        z_high = tl.load(zero_at + group + wide) if ASYMMETRIC and ratio == 2 else z_low
        product = half_product(packed & 15, z_low, low, ASYMMETRIC, F16)
        if ratio == 1:
            product += half_product(packed >> 4, z_high, high, ASYMMETRIC, F16)
            sums += product * s_low[:, None]
        else:
            sums += product * s_low[:, None]
            sums += half_product(packed >> 4, z_high, high, ASYMMETRIC, F16) * s_high[:, None]
        s_low, s_high, group = s_low_next, s_high_next, after
    rows = m[None, :]
    cols = n[:, None]
    rm = rows < M
    cm = cols < N
    if SHARED:
        place = tl.program_id(2).to(tl.int64) * M * N + rows.to(tl.int64) * N + cols
        tl.store(partial + place, sums, mask=rm & cm)
    else:
        EPILOGUE
