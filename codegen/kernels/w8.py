"""Linear with int8 weights and bf16 activations: half the bytes of bf16, and only the weights are rounded.

In: a weight [N, K]. Out: codes -127..127 with one scale per output column.
Bound of the program against ``reference``: codes are exact in bf16 and products exact in fp32; sums differ in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adaflex.codegen import layout
from adaflex.codegen.kernels.call import Call, join, offsets, padded, split, total_bytes
from adaflex.codegen.kernels.integer import decode_integer, encode_integer, scales
from adaflex.passes.rewrite import TIED, Encoded, Machine
from adaflex.solver.table import Encoding, Site

name = "w8"
ops: tuple[str, ...] = ("linear", TIED)
bits = 8


def supports(shape: Sequence[int], encoding: Encoding) -> bool:
    """Any shape; one symmetric scale per column, no rotation."""
    return encoding.family == name and encoding.symmetric and not encoding.group and not encoding.rotation


def offers(site: Site, machine: Machine) -> Sequence[Encoding]:
    """Always."""
    return (Encoding(name, bits, 0, True, 0, "compensated"),)


def encode(weight: Tensor, encoding: Encoding, gram: Tensor | None) -> Encoded:
    """Compensated rounding where a gram matrix is given, else to nearest with searched clipping."""
    return encode_integer(weight, encoding, gram, torch.int8)


def decode(encoded: Encoded) -> Tensor:
    """Codes times scales."""
    return decode_integer(encoded)


def reference(x: Tensor, encoded: Encoded, bias: Tensor | None) -> Tensor:
    """y = (bf16(x) codesᵀ) * scale + b, products and sums in fp32."""
    codes, scale = encoded.parts["codes"].float(), encoded.parts["scale"]
    product = F.linear(x.to(torch.bfloat16).float(), codes) * scale.T.reshape(-1)
    return (product if bias is None else product + bias.float()).to(x.dtype)


def _sizes(shape: Sequence[int]) -> dict[str, int]:
    rows = padded(shape[0], layout.PANEL)
    return {"b": rows * padded(shape[1]), "sw": rows * 4}


def size_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """Codes padded to panels, and one float per column."""
    return total_bytes(_sizes(shape))


def pack(encoded: Encoded) -> Tensor:
    """Panels int8 [N/32][Kp/4][32][4], sw [Np]."""
    return join([layout.pack_int8(encoded.parts["codes"]), layout.pack_columns(encoded.parts["scale"][:, 0])])


def unpack(block: Tensor, shape: Sequence[int], encoding: Encoding) -> Encoded:
    """The inverse of ``pack``."""
    bytes_of = split(block, _sizes(shape))
    panels = bytes_of["b"].view(torch.int8).reshape(-1, padded(shape[1]) // 4, layout.PANEL, 4)
    codes = layout.unpack_int8(panels, shape[0], shape[1])
    return Encoded(encoding, tuple(shape), {"codes": codes, "scale": scales(bytes_of["sw"], shape, encoding)})


def form(encoding: Encoding) -> str:
    """Activations are read as bf16."""
    return "bf16"


def call(encoding: Encoding, columns: int, rows: int) -> Call:
    """Two parts; ``columns`` is K, ``rows`` N."""
    return Call("gemm_weight_only.h", "gemm_w8", offsets(_sizes((rows, columns))))
