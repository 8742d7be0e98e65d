"""Embedding table in 8-bit codes with a scale and a minimum per row.

In: a table [V, W]. Out: codes 0..255; a row is codes * scale + minimum, exact where it is constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adaflex.codegen.kernels.call import Call, join, offsets, split, total_bytes
from adaflex.codegen.kernels.quantise import quantise_rows
from adaflex.passes.rewrite import Encoded, Machine
from adaflex.solver.table import Encoding, Site

name = "embed8"
ops: tuple[str, ...] = ("embedding",)
bits = 8
TAIL = 8  # bytes behind a row's codes


def supports(shape: Sequence[int], encoding: Encoding) -> bool:
    """Rows of whole words, so that the floats after the codes are aligned."""
    return encoding == Encoding(name, bits) and shape[1] % 4 == 0


def offers(site: Site, machine: Machine) -> Sequence[Encoding]:
    """Where rows are whole words."""
    return (Encoding(name, bits),) if site.shape[1] % 4 == 0 else ()


def encode(weight: Tensor, encoding: Encoding, gram: Tensor | None) -> Encoded:
    """Each row over its own range, to nearest."""
    codes, scale, low = quantise_rows(weight)
    parts = {"codes": codes.to(torch.uint8).contiguous(), "scale": scale.squeeze(1), "minimum": low.squeeze(1)}
    return Encoded(encoding, tuple(weight.shape), parts)


def decode(encoded: Encoded) -> Tensor:
    """Codes times scale plus minimum."""
    parts = encoded.parts
    return parts["codes"].float() * parts["scale"].unsqueeze(1) + parts["minimum"].unsqueeze(1)


def reference(x: Tensor, encoded: Encoded, bias: Tensor | None) -> Tensor:
    """Row x[...] of the table, fp32 [..., W]; ``x`` holds row numbers."""
    parts = encoded.parts
    return F.embedding(x, parts["codes"]).float() * parts["scale"][x].unsqueeze(-1) + parts["minimum"][x].unsqueeze(-1)


def _sizes(shape: Sequence[int]) -> dict[str, int]:
    return {"b": shape[0] * (shape[1] + TAIL)}


def size_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """One byte per weight and two floats per row."""
    return total_bytes(_sizes(shape))


def pack(encoded: Encoded) -> Tensor:
    """One line per row: its codes u8 [W], then scale and minimum as floats."""
    tails = torch.stack((encoded.parts["scale"], encoded.parts["minimum"]), 1).view(torch.uint8)
    return join([torch.cat((encoded.parts["codes"], tails), 1)])


def unpack(block: Tensor, shape: Sequence[int], encoding: Encoding) -> Encoded:
    """The inverse of ``pack``."""
    lines = split(block, _sizes(shape))["b"].reshape(shape[0], shape[1] + TAIL)
    scale, low = lines[:, shape[1] :].contiguous().view(torch.float32).unbind(1)
    codes = lines[:, : shape[1]].clone()
    return Encoded(encoding, tuple(shape), {"codes": codes, "scale": scale.clone(), "minimum": low.clone()})


def form(encoding: Encoding) -> str:
    """No activation is read: the input is row numbers."""
    return ""


def call(encoding: Encoding, columns: int, rows: int) -> Call:
    """One part, read by row."""
    return Call("rows.h", "gather_u8", offsets(_sizes((rows, columns))))
