"""Linear with int8 weights and dynamically quantised 8-bit activations: per token and channel, or groups on both sides.

In: a weight [N, K]. Out: codes -127..127 with one scale per output column, or per column and group of inputs; where a
rotation is asked for, the weight and every activation row are turned by a block Hadamard matrix first.
Activations are u8 with a minimum per token (and group): x ~= code * s + m, so that
y = s sw sum(code code) + m csw with csw = sw sum(code of the column). Scales of groups are bf16, their sums int16.
Bound of the program against ``reference``: integer sums are exact in the kernel; here they are rounded in fp32, so
|difference| <= (K + 8) eps sum |x w| plus, where a rounding tie falls the other way, one activation step times |w|.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaflex.codegen import layout
from adaflex.codegen.hadamard import largest_block, rotate
from adaflex.codegen.kernels.call import Call, join, offsets, padded, split, total_bytes
from adaflex.codegen.kernels.integer import decode_integer, encode_integer, linear_integer, scales, table_bytes
from adaflex.passes.rewrite import TIED, Encoded, Machine
from adaflex.solver.table import Encoding, Site

name = "w8a8"
ops: tuple[str, ...] = ("linear", TIED)
bits = 8
GROUPS = (32, 64, 128)  # that the grouped kernel is built for


def supports(shape: Sequence[int], encoding: Encoding) -> bool:
    """Whether the kernels read this encoding: groups and rotation divide K."""
    columns, group, block = shape[1], encoding.group, encoding.rotation
    known = encoding.family == name and encoding.symmetric and group in (0, *GROUPS) and block in (0, 64, 128)
    return known and (not group or columns % group == 0) and (not block or columns % block == 0)


def offers(site: Site, machine: Machine) -> Sequence[Encoding]:
    """Per token, rotated per token, rotated groups of 64: falling speed, rising accuracy.

    Groups without rotation are slower than rotation alone and less accurate; they stand in where no block divides K.
    Rows can be picked out of neither.
    """
    block = largest_block(site.shape[1])
    forms = [(0, 0), (0, block), (64, block)] if block else [(0, 0), (32, 0)]
    forms = forms[:1] if site.op == TIED else forms
    made = [Encoding(name, bits, group, True, turn, "compensated") for group, turn in forms]
    return tuple(encoding for encoding in made if supports(site.shape, encoding))


def encode(weight: Tensor, encoding: Encoding, gram: Tensor | None) -> Encoded:
    """Compensated rounding where a gram matrix is given, else to nearest with searched clipping."""
    return encode_integer(weight, encoding, gram, torch.int8)


def decode(encoded: Encoded) -> Tensor:
    """Codes times scales, turned back."""
    return decode_integer(encoded)


def reference(x: Tensor, encoded: Encoded, bias: Tensor | None) -> Tensor:
    """y = q(x) q(w)ᵀ + b with the rows of x quantised as the kernel's prologue does."""
    return linear_integer(rotate(x.float(), encoded.encoding.rotation), encoded, bias).to(x.dtype)


def _sizes(shape: Sequence[int], encoding: Encoding) -> dict[str, int]:
    rows = padded(shape[0], layout.PANEL)
    codes = {"b": rows * padded(shape[1])}
    if not encoding.group:
        return codes | {"sw": rows * 4, "csw": rows * 4}
    return codes | {"sw": table_bytes(shape, encoding), "sums": table_bytes(shape, encoding)}


def size_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """Codes padded to panels, and two floats per column or 32 bits per column and group."""
    return total_bytes(_sizes(shape, encoding))


def pack(encoded: Encoded) -> Tensor:
    """Panels int8 [N/32][Kp/4][32][4], then sw and csw, each [Np], or sw and sums, each [N/32][K/G][16][2]."""
    codes, scale = encoded.parts["codes"], encoded.parts["scale"]
    if encoded.encoding.group:
        return join([layout.pack_int8(codes), layout.pack_scales(scale), layout.int8_sums(codes, scale.shape[1])])
    scale = scale[:, 0]
    return join([layout.pack_int8(codes), layout.pack_columns(scale), layout.column_sums(codes, scale)])


def unpack(block: Tensor, shape: Sequence[int], encoding: Encoding) -> Encoded:
    """The inverse of ``pack``."""
    bytes_of = split(block, _sizes(shape, encoding))
    panels = bytes_of["b"].view(torch.int8).reshape(-1, padded(shape[1]) // 4, layout.PANEL, 4)
    codes = layout.unpack_int8(panels, shape[0], shape[1])
    return Encoded(encoding, tuple(shape), {"codes": codes, "scale": scales(bytes_of["sw"], shape, encoding)})


def form(encoding: Encoding) -> str:
    """u8 per token or per group of a token, rotated or not."""
    turned = f"-h{encoding.rotation}" if encoding.rotation else ""
    return (f"u8g{encoding.group}" if encoding.group else "u8t") + turned


def call(encoding: Encoding, columns: int, rows: int) -> Call:
    """Three parts; ``columns`` is K, ``rows`` N."""
    function = f"gemm_w8a8_grouped<{encoding.group}>" if encoding.group else "gemm_w8a8"
    return Call("gemm_w8a8.h", function, offsets(_sizes((rows, columns), encoding)))
