"""Linear with fp32 weights and fp32 arithmetic: the choice that changes nothing.

In: a weight [N, K]. Out: the same, in panels of 32 columns.
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

name = "fp32"
ops: tuple[str, ...] = ("linear", TIED)
bits = 32


def supports(shape: Sequence[int], encoding: Encoding) -> bool:
    """Any shape."""
    return encoding == Encoding(name, bits)


def offers(site: Site, machine: Machine) -> Sequence[Encoding]:
    """Always."""
    return (Encoding(name, bits),)


def encode(weight: Tensor, encoding: Encoding, gram: Tensor | None) -> Encoded:
    """The weight as it is."""
    return Encoded(encoding, tuple(weight.shape), {"weight": weight.float().contiguous()})


def decode(encoded: Encoded) -> Tensor:
    """The weight as it was."""
    return encoded.parts["weight"]


def reference(x: Tensor, encoded: Encoded, bias: Tensor | None) -> Tensor:
    """y = x wᵀ + b in fp32."""
    return F.linear(x.float(), encoded.parts["weight"], bias if bias is None else bias.float()).to(x.dtype)


def size_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """Rows padded to 32, four bytes each."""
    return padded(shape[0], layout.PANEL) * shape[1] * 4


def pack(encoded: Encoded) -> Tensor:
    """Panels float [N/32][K][32]."""
    return join([layout.pack_f32(encoded.parts["weight"])])


def unpack(block: Tensor, shape: Sequence[int], encoding: Encoding) -> Encoded:
    """The inverse of ``pack``."""
    values = split(block, {"b": size_bytes(shape, encoding)})["b"].view(torch.float32)
    panels = values.reshape(-1, shape[1], layout.PANEL, 1)
    return Encoded(encoding, tuple(shape), {"weight": layout.unpack_f32(panels, shape[0], shape[1])})


def form(encoding: Encoding) -> str:
    """Activations are read as floats."""
    return "f32"


def call(encoding: Encoding, columns: int, rows: int) -> Call:
    """One part; ``columns`` is K, ``rows`` N."""
    return Call("gemm_float.h", "gemm_f32", offsets({"b": size_bytes((rows, columns), encoding)}))
