"""How generated code calls the kernel that reads a packed weight.

In: nothing. Out: ``Call``, and the layout of a packed block: parts one after the other, each 64-byte aligned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes: a cache line, and the widest vector load


@dataclass(frozen=True)
class Call:
    """A function template of the kernel library and where its operands lie in the packed block."""

    header: str
    function: str
    parts: tuple[tuple[str, int], ...]  # (name, byte offset from the block's start)


def padded(size: int, multiple: int = ALIGNMENT) -> int:
    """``size`` rounded up to a multiple."""
    return -(-size // multiple) * multiple


def offsets(sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Where each part begins when parts of these byte sizes follow each other, aligned."""
    found, offset = [], 0
    for name, size in sizes.items():
        found.append((name, offset))
        offset += padded(size)
    return tuple(found)


def total_bytes(sizes: Mapping[str, int]) -> int:
    """Length of the block that holds parts of these byte sizes, the last one's padding included."""
    return sum(padded(size) for size in sizes.values())


def join(parts: Sequence[Tensor]) -> Tensor:
    """The block uint8 [bytes] that holds these tensors' bytes, each aligned, gaps zero."""
    pieces = []
    for part in parts:
        flat = part.contiguous().reshape(-1).view(torch.uint8)
        pieces += [flat, flat.new_zeros(padded(len(flat)) - len(flat))]
    return torch.cat(pieces)


def split(block: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The parts' bytes (uint8, unpadded) of a block that ``join`` made."""
    return {name: block[offset : offset + sizes[name]] for name, offset in offsets(sizes)}
