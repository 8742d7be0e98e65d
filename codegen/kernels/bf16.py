"""Linear with bf16 weights and activations, products summed in fp32.

In: a weight [N, K]. Out: it rounded to bf16, in panels of 32 columns.
Bound of the program against ``reference``: both sum the same exact products in fp32, in different order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adaflex.codegen import layout
from adaflex.codegen.kernels.call import Call, join, offsets, padded, split
from adaflex.passes.rewrite import TIED, Encoded, Machine
from adaflex.solver.table import Encoding, Site

name = "bf16"
ops: tuple[str, ...] = ("linear", TIED)
bits = 16


def supports(shape: Sequence[int], encoding: Encoding) -> bool:
    """Any shape."""
    return encoding == Encoding(name, bits)


def offers(site: Site, machine: Machine) -> Sequence[Encoding]:
    """Always."""
    return (Encoding(name, bits),)


def encode(weight: Tensor, encoding: Encoding, gram: Tensor | None) -> Encoded:
    """Round to nearest even."""
    return Encoded(encoding, tuple(weight.shape), {"weight": weight.to(torch.bfloat16).contiguous()})


def decode(encoded: Encoded) -> Tensor:
    """Widened to fp32."""
    return encoded.parts["weight"].float()


def reference(x: Tensor, encoded: Encoded, bias: Tensor | None) -> Tensor:
    """y = bf16(x) wᵀ + b, products and sums in fp32."""
    rounded = x.to(torch.bfloat16).float()
    return F.linear(rounded, decode(encoded), bias if bias is None else bias.float()).to(x.dtype)


def size_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """Rows padded to 32, columns to 32, two bytes each."""
    return padded(shape[0], layout.PANEL) * padded(shape[1], 32) * 2


def pack(encoded: Encoded) -> Tensor:
    """Panels bf16 [N/32][Kp/2][32][2]."""
    return join([layout.pack_bf16(encoded.parts["weight"])])


def unpack(block: Tensor, shape: Sequence[int], encoding: Encoding) -> Encoded:
    """The inverse of ``pack``."""
    values = split(block, {"b": size_bytes(shape, encoding)})["b"].view(torch.bfloat16)
    panels = values.reshape(-1, padded(shape[1], 32) // 2, layout.PANEL, 2)
    return Encoded(encoding, tuple(shape), {"weight": layout.unpack_bf16(panels, shape[0], shape[1])})


def form(encoding: Encoding) -> str:
    """Activations are read as bf16."""
    return "bf16"


def call(encoding: Encoding, columns: int, rows: int) -> Call:
    """One part; ``columns`` is K, ``rows`` N."""
    return Call("gemm_float.h", "gemm_bf16", offsets({"b": size_bytes((rows, columns), encoding)}))
