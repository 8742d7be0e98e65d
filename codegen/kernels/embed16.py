"""Embedding table in bf16, widened when a row is read.

In: a table [V, W]. Out: its rows rounded to nearest even.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adaflex.codegen.kernels.call import Call, join, offsets, split, total_bytes
from adaflex.passes.rewrite import Encoded, Machine
from adaflex.solver.table import Encoding, Site

name = "embed16"
ops: tuple[str, ...] = ("embedding",)
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
    """Row x[...] of the table, fp32 [..., W]; ``x`` holds row numbers."""
    return F.embedding(x, encoded.parts["weight"]).float()


def _sizes(shape: Sequence[int]) -> dict[str, int]:
    return {"b": shape[0] * shape[1] * 2}


def size_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """Rows one after the other, the end padded to 64 bytes."""
    return total_bytes(_sizes(shape))


def pack(encoded: Encoded) -> Tensor:
    """[V][W]."""
    return join([encoded.parts["weight"]])


def unpack(block: Tensor, shape: Sequence[int], encoding: Encoding) -> Encoded:
    """The inverse of ``pack``."""
    values = split(block, _sizes(shape))["b"].view(torch.bfloat16).reshape(shape[0], shape[1])
    return Encoded(encoding, tuple(shape), {"weight": values.clone()})


def form(encoding: Encoding) -> str:
    """No activation is read: the input is row numbers."""
    return ""


def call(encoding: Encoding, columns: int, rows: int) -> Call:
    """One part, read by row."""
    return Call("rows.h", "gather_bf16", offsets(_sizes((rows, columns))))
