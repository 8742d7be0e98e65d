"""Block Hadamard rotation of the reduction axis: spreads outliers over a block before quantisation.

In: rows whose last axis is a multiple of the block. Out: rows of the same shape and length (the rotation is
orthogonal and its own inverse), so weights rotated offline meet activations rotated in the quantise prologue.
Rotations before quantisation: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs" (2024).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BLOCKS = (128, 64)  # what the row kernels rotate in registers, largest first


@lru_cache(maxsize=8)
def hadamard(block: int) -> Tensor:
    """The normalised Hadamard matrix [block, block] fp32 in Sylvester order; ``block`` is a power of two.

    Entry (i, j) is (-1)^popcount(i & j) / sqrt(block).
    """
    if block < 1 or block & (block - 1):
        raise ValueError(f"a Hadamard block is a power of two, not {block}")
    matrix = torch.ones(1, 1)
    while len(matrix) < block:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix.mul(block**-0.5)


def rotate(x: Tensor, block: int) -> Tensor:
    """``x`` [..., K] with each aligned block of the last axis multiplied by the matrix; block 0 leaves it alone."""
    if not block:
        return x
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // block, block)
    return torch.matmul(blocks, hadamard(block).to(x.dtype)).reshape(x.shape)


def rotate_gram(gram: Tensor, block: int) -> Tensor:
    """The gram matrix [K, K] of rotated rows, from that of the rows themselves: Hᵀ G H."""
    return rotate(rotate(gram, block).T, block).T


def largest_block(columns: int) -> int:
    """The largest block the kernels rotate that divides ``columns``; 0 where none does."""
    return next((block for block in BLOCKS if columns % block == 0), 0)
