"""Embedding table in fp32: the choice that changes nothing.

In: a table [V, W]. Out: the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adaflex.codegen.kernels.call import Call, join, offsets, split, total_bytes
from adaflex.passes.rewrite import Encoded, Machine
from adaflex.solver.table import Encoding, Site

name = "embed32"
ops: tuple[str, ...] = ("embedding",)
bits = 32


def supports(shape: Sequence[int], encoding: Encoding) -> bool:
    """Any shape."""
    return encoding == Encoding(name, bits)


def offers(site: Site, machine: Machine) -> Sequence[Encoding]:
    """Always."""
    return (Encoding(name, bits),)


def encode(weight: Tensor, encoding: Encoding, gram: Tensor | None) -> Encoded:
    """The table as it is."""
    return Encoded(encoding, tuple(weight.shape), {"weight": weight.to(torch.float32).contiguous()})


def decode(encoded: Encoded) -> Tensor:
    """The table as it was."""
    return encoded.parts["weight"]


def reference(x: Tensor, encoded: Encoded, bias: Tensor | None) -> Tensor:
    """Row x[...] of the table, fp32 [..., W]; ``x`` holds row numbers."""
    return F.embedding(x, encoded.parts["weight"])


def _sizes(shape: Sequence[int]) -> dict[str, int]:
    return {"b": shape[0] * shape[1] * 4}


def size_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """Rows one after the other, the end padded to 64 bytes."""
    return total_bytes(_sizes(shape))


def pack(encoded: Encoded) -> Tensor:
    """[V][W]."""
    return join([encoded.parts["weight"]])


def unpack(block: Tensor, shape: Sequence[int], encoding: Encoding) -> Encoded:
    """The inverse of ``pack``."""
    values = split(block, _sizes(shape))["b"].view(torch.float32).reshape(shape[0], shape[1])
    return Encoded(encoding, tuple(shape), {"weight": values.clone()})


def form(encoding: Encoding) -> str:
    """No activation is read: the input is row numbers."""
    return ""


def call(encoding: Encoding, columns: int, rows: int) -> Call:
    """One part, read by row."""
    return Call("rows.h", "gather_f32", offsets(_sizes((rows, columns))))
