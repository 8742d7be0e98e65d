"""Linear with int4 weights in groups and activations quantised to 8 bits in the same groups.

In: a weight [N, K]. Out: codes 0..15 with a scale (and, where not symmetric, a zero point) per column and group; where
a rotation is asked for, the weight and every activation row are turned by a block Hadamard matrix first.
Bound of the program against ``reference``: as for grouped w8a8, (K + 8) eps sum |x w| and one step at rounding ties.
Per group and column the block holds a bf16 scale and 16 bits for the sum of the codes and their zero point.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaflex.codegen import layout
from adaflex.codegen.hadamard import largest_block, rotate
from adaflex.codegen.kernels.call import Call, join, offsets, padded, split, total_bytes
from adaflex.codegen.kernels.integer import decode_integer, encode_integer, linear_integer, scales, table, table_bytes
from adaflex.passes.rewrite import Encoded, Machine
from adaflex.solver.table import Encoding, Site

name = "w4a8"
ops: tuple[str, ...] = ("linear",)
bits = 4
GROUPS = (32, 64, 128)  # that the kernel is built for


def supports(shape: Sequence[int], encoding: Encoding) -> bool:
    """Whether the kernel reads this encoding: groups and rotation divide K."""
    known = encoding.family == name and encoding.bits == bits and encoding.group in GROUPS
    turned = encoding.rotation in (0, 64, 128) and (not encoding.rotation or shape[1] % encoding.rotation == 0)
    return known and turned and shape[1] % encoding.group == 0


def offers(site: Site, machine: Machine) -> Sequence[Encoding]:
    """Rotated groups of 128, then of 64 with a zero point (of 32 where 64 does not divide K)."""
    block = largest_block(site.shape[1])
    forms = [(128, True), (64, False)] if block else [(32, False)]
    made = [Encoding(name, bits, group, symmetric, block, "compensated") for group, symmetric in forms]
    return tuple(encoding for encoding in made if supports(site.shape, encoding))


def encode(weight: Tensor, encoding: Encoding, gram: Tensor | None) -> Encoded:
    """Compensated rounding where a gram matrix is given, else to nearest with searched clipping."""
    return encode_integer(weight, encoding, gram, torch.uint8)


def decode(encoded: Encoded) -> Tensor:
    """Scales times codes less zero points, turned back."""
    return decode_integer(encoded)


def reference(x: Tensor, encoded: Encoded, bias: Tensor | None) -> Tensor:
    """y = q(x) wᵀ + b with the rows of x quantised as the kernel's prologue does."""
    return linear_integer(rotate(x.float(), encoded.encoding.rotation), encoded, bias).to(x.dtype)


def _sizes(shape: Sequence[int], encoding: Encoding) -> dict[str, int]:
    rows = padded(shape[0], layout.PANEL)
    entries = table_bytes(shape, encoding)
    return {"b": rows * padded(shape[1]) // 2, "sw": entries, "sums": entries}


def size_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """Half a byte per code, padded to panels, and 32 bits per column and group."""
    return total_bytes(_sizes(shape, encoding))


def pack(encoded: Encoded) -> Tensor:
    """Panels of nibbles [N/32][Kp/8][32][4], sw and sums, each [N/32][K/G][16][2]."""
    codes, scale = encoded.parts["codes"], encoded.parts["scale"]
    zero = encoded.parts.get("zero", torch.full(scale.shape, 8, dtype=torch.uint8))
    return join([layout.pack_int4(codes), layout.pack_scales(scale), layout.int4_sums(codes, zero)])


def unpack(block: Tensor, shape: Sequence[int], encoding: Encoding) -> Encoded:
    """The inverse of ``pack``."""
    bytes_of = split(block, _sizes(shape, encoding))
    panels = bytes_of["b"].reshape(-1, padded(shape[1]) // 8, layout.PANEL, 4)
    codes = layout.unpack_int4(panels, shape[0], shape[1])
    parts = {"codes": codes, "scale": scales(bytes_of["sw"], shape, encoding)}
    if not encoding.symmetric:
        parts["zero"] = layout.unpack_zero_points(table(bytes_of["sums"], torch.int16, shape, encoding), shape[0])
    return Encoded(encoding, tuple(shape), parts)


def form(encoding: Encoding) -> str:
    """u8 per group of a token, rotated or not."""
    return f"u8g{encoding.group}" + (f"-h{encoding.rotation}" if encoding.rotation else "")


def call(encoding: Encoding, columns: int, rows: int) -> Call:
    """Three parts; ``columns`` is K, ``rows`` N."""
    flags = f"{encoding.group}, {str(not encoding.symmetric).lower()}"
    return Call("gemm_w4a8.h", f"gemm_w4a8<{flags}>", offsets(_sizes((rows, columns), encoding)))
