"""Linear with int4 weights in groups and bf16 activations: the fewest bytes, and only the weights are rounded.

In: a weight [N, K]. Out: codes 0..15 with a scale (and, where not symmetric, a zero point) per column and group.
Bound of the program against ``reference``: products of codes are exact in fp32 and scaled per group; here scaled codes
are summed, so |difference| <= (K + 16) eps sum |x w|.
Per group and column the block holds a bf16 scale and, where not symmetric, four bits of zero point.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adaflex.codegen import layout
from adaflex.codegen.kernels.call import Call, join, offsets, padded, split, total_bytes
from adaflex.codegen.kernels.integer import decode_integer, encode_integer, scales, stored_weight, table_bytes
from adaflex.passes.rewrite import Encoded, Machine
from adaflex.solver.table import Encoding, Site

name = "w4"
ops: tuple[str, ...] = ("linear",)
bits = 4
GROUPS = (32, 64, 128)  # that the kernel is built for


def supports(shape: Sequence[int], encoding: Encoding) -> bool:
    """Whether the kernel reads this encoding: groups divide K."""
    known = encoding.family == name and encoding.bits == bits and not encoding.rotation and encoding.group in GROUPS
    return known and shape[1] % encoding.group == 0


def offers(site: Site, machine: Machine) -> Sequence[Encoding]:
    """Groups of 128, then of 64 with a zero point (of 32 where 64 does not divide K)."""
    forms = [(128, True), (64, False)] if site.shape[1] % 64 == 0 else [(32, False)]
    made = [Encoding(name, bits, group, symmetric, 0, "compensated") for group, symmetric in forms]
    return tuple(encoding for encoding in made if supports(site.shape, encoding))


def encode(weight: Tensor, encoding: Encoding, gram: Tensor | None) -> Encoded:
    """Compensated rounding where a gram matrix is given, else to nearest with searched clipping."""
    return encode_integer(weight, encoding, gram, torch.uint8)


def decode(encoded: Encoded) -> Tensor:
    """Scales times codes less zero points."""
    return decode_integer(encoded)


def reference(x: Tensor, encoded: Encoded, bias: Tensor | None) -> Tensor:
    """y = bf16(x) wᵀ + b, products and sums in fp32."""
    rounded = x.to(torch.bfloat16).float()
    return F.linear(rounded, stored_weight(encoded), bias if bias is None else bias.float()).to(x.dtype)


def _sizes(shape: Sequence[int], encoding: Encoding) -> dict[str, int]:
    rows = padded(shape[0], layout.PANEL)
    table = table_bytes(shape, encoding)
    sizes = {"b": rows * padded(shape[1]) // 2, "sw": table}
    return sizes if encoding.symmetric else sizes | {"zeros": table // 4}


def size_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """Half a byte per code, padded to panels, and 16 or 20 bits per column and group."""
    return total_bytes(_sizes(shape, encoding))


def pack(encoded: Encoded) -> Tensor:
    """Panels of nibbles [N/32][Kp/8][32][4], sw [N/32][K/G][16][2] and, where not symmetric, zeros [N/32][K/G][16]."""
    parts = [layout.pack_int4(encoded.parts["codes"]), layout.pack_scales(encoded.parts["scale"])]
    return join(parts if encoded.encoding.symmetric else [*parts, layout.pack_zeros(encoded.parts["zero"])])


def unpack(block: Tensor, shape: Sequence[int], encoding: Encoding) -> Encoded:
    """The inverse of ``pack``."""
    bytes_of = split(block, _sizes(shape, encoding))
    panels = bytes_of["b"].reshape(-1, padded(shape[1]) // 8, layout.PANEL, 4)
    codes = layout.unpack_int4(panels, shape[0], shape[1])
    parts = {"codes": codes, "scale": scales(bytes_of["sw"], shape, encoding)}
    if not encoding.symmetric:
        zeros = bytes_of["zeros"].reshape(-1, shape[1] // encoding.group, layout.PANEL // 2)
        parts["zero"] = layout.unpack_zeros(zeros, shape[0])
    return Encoded(encoding, tuple(shape), parts)


def form(encoding: Encoding) -> str:
    """Activations are read as bf16."""
    return "bf16"


def call(encoding: Encoding, columns: int, rows: int) -> Call:
    """Three parts; ``columns`` is K, ``rows`` N. A symmetric block has no zeros: the kernel does not read them."""
    parts = offsets(_sizes((rows, columns), encoding))
    zeros = () if not encoding.symmetric else (("zeros", 0),)
    flags = f"{encoding.group}, {str(not encoding.symmetric).lower()}"
    return Call("gemm_weight_only.h", f"gemm_w4<{flags}>", parts + zeros)
