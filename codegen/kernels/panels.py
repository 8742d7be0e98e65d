"""Weight layouts: panels of 32 output columns, the order in which the tile kernels stream them.

In: codes or values [N, K]. Out: their bytes, and back. One layout serves every instruction set:
float [N/32][K][32], bf16 [N/32][Kp/2][32][2], int8 [N/32][Kp/4][32][4], int4 [N/32][Kp/8][32][4] bytes whose low
nibble is element k = 8i + j and high nibble k = 8i + 4 + j. Padding is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from adaflex.codegen.kernels.call import padded

PANEL = 32  # output columns


def pack_panels(values: Tensor, depth: int, multiple: int, fill: float = 0) -> Tensor:
    """[N, K] -> [N/32, Kp/depth, 32, depth]; K is padded to ``multiple`` with ``fill``, N to 32 with ``fill``."""
    rows, columns = values.shape
    full = F.pad(values, (0, padded(columns, multiple) - columns, 0, padded(rows, PANEL) - rows), value=fill)
    return full.reshape(-1, PANEL, full.shape[1] // depth, depth).transpose(1, 2).contiguous()


def unpack_panels(block: Tensor, shape: tuple[int, int], depth: int, multiple: int) -> Tensor:
    """The inverse of ``pack_panels``: a flat tensor of the block's elements -> [N, K]."""
    rows, columns = shape
    full = block.reshape(-1, padded(columns, multiple) // depth, PANEL, depth).transpose(1, 2)
    return full.reshape(padded(rows, PANEL), -1)[:rows, :columns].contiguous()


def pack_nibbles(codes: Tensor) -> Tensor:
    """Codes 0..15 uint8 [N, K] -> bytes [N/32, Kp/8, 32, 4], K padded to 64."""
    panels = pack_panels(codes, 8, 64)
    return panels[..., :4] | (panels[..., 4:] << 4)


def unpack_nibbles(block: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of ``pack_nibbles``."""
    pairs = block.reshape(-1, 4)
    return unpack_panels(torch.cat((pairs & 15, pairs >> 4), -1).reshape(-1), shape, 8, 64)


def pack_columns(values: Tensor) -> Tensor:
    """Per-channel values [N, groups] -> [groups, Np], padding zero: what an epilogue loads 16 at a time."""
    return F.pad(values.T, (0, padded(len(values), PANEL) - len(values))).contiguous()


def unpack_columns(block: Tensor, rows: int, groups: int) -> Tensor:
    """The inverse of ``pack_columns``: -> [N, groups]."""
    return block.reshape(groups, -1)[:, :rows].T.contiguous()
