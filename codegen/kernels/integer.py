"""What the integer linears share: weight codes on a grid, and products with rows quantised on the fly.

In: a weight [N, K] fp32, its encoding and, for repair, the gram matrix of its inputs. Out: codes, scales, zero points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from adaflex.codegen import layout
from adaflex.codegen.hadamard import rotate, rotate_gram
from adaflex.codegen.kernels.call import padded
from adaflex.codegen.kernels.compensate import compensated
from adaflex.codegen.kernels.quantise import NIBBLE, expand, fit_grid, in_groups, quantise_rows
from adaflex.passes.rewrite import Encoded
from adaflex.solver.table import Encoding


def encode_integer(weight: Tensor, encoding: Encoding, gram: Tensor | None, dtype: torch.dtype) -> Encoded:
    """Codes of ``dtype`` [N, K], "scale" [N, groups] fp32 and, where not symmetric, "zero" [N, groups] uint8.

    Scales of groups are bfloat16 numbers. ``encoding.rounding`` of the result says what was done: compensated only
    with a gram matrix.
    """
    turned = rotate(weight.float(), encoding.rotation)
    bits, group, symmetric = encoding.bits, encoding.group, encoding.symmetric
    if encoding.rounding == "compensated" and gram is not None:
        codes, grid = compensated(turned, rotate_gram(gram, encoding.rotation), bits, group, symmetric)
        done = encoding
    else:
        importance = None if gram is None else rotate_gram(gram, encoding.rotation).diagonal().clamp(min=0)
        grid = fit_grid(turned, bits, group, symmetric, importance)
        codes, done = grid.codes(turned), replace(encoding, rounding="nearest")
    parts = {"codes": codes.to(dtype).contiguous(), "scale": grid.scale.contiguous()}
    if not symmetric:
        parts["zero"] = grid.zero.to(torch.uint8).contiguous()
    return Encoded(done, tuple(weight.shape), parts)


def centred(encoded: Encoded) -> Tensor:
    """Codes less their zero point, fp32 [N, K]."""
    codes = encoded.parts["codes"].float()
    if encoded.encoding.bits > NIBBLE:
        return codes
    if encoded.encoding.symmetric:
        return codes - 2.0 ** (encoded.encoding.bits - 1)
    return codes - expand(encoded.parts["zero"].float(), codes.shape[1])


def stored_weight(encoded: Encoded) -> Tensor:
    """The weight in the basis it is stored in (rotated where the encoding says so), fp32 [N, K]."""
    return centred(encoded) * expand(encoded.parts["scale"], encoded.shape[1])


def decode_integer(encoded: Encoded) -> Tensor:
    """The weight in the model's own basis, fp32 [N, K]."""
    return rotate(stored_weight(encoded), encoded.encoding.rotation)


def linear_integer(x: Tensor, encoded: Encoded, bias: Tensor | None) -> Tensor:
    """y = q(x) wᵀ + b for rows ``x`` [..., K] fp32 already rotated: the codes' products, then the minimum's term."""
    columns = encoded.shape[1]
    codes, scale, low = quantise_rows(x, encoded.encoding.group)
    weight, weight_scale = centred(encoded), encoded.parts["scale"]
    sums = weight_scale * in_groups(weight, encoded.encoding.group).sum(-1)
    if encoded.encoding.group:
        product = F.linear(codes * expand(scale, columns), weight * expand(weight_scale, columns))
    else:
        product = F.linear(codes, weight) * scale * weight_scale.T
    product = product + F.linear(low, sums)
    return product if bias is None else product + bias.float()


def scales(packed: Tensor, shape: Sequence[int], encoding: Encoding) -> Tensor:
    """Scales as ``layout.pack_columns``, of groups as ``layout.pack_scales`` stored them -> fp32 [N, groups]."""
    if not encoding.group:
        return packed.view(torch.float32)[: shape[0]].unsqueeze(1).contiguous()
    return layout.unpack_table(table(packed, torch.bfloat16, shape, encoding), shape[0]).float()


def table(packed: Tensor, dtype: torch.dtype, shape: Sequence[int], encoding: Encoding) -> Tensor:
    """Bytes of a table of 16-bit entries as ``layout.pack_table`` shaped it."""
    return packed.view(dtype).reshape(-1, shape[1] // encoding.group, layout.PANEL // 2, 2)


def table_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """Length of a table of 16-bit entries per output and group."""
    return padded(shape[0], layout.PANEL) * (shape[1] // encoding.group) * 2
