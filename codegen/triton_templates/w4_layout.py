"""The packed int4 weights of the Triton templates, from and to the logical codes that every packing shares.

In: codes uint8 0..15 [N, K], scales fp32 [N, K/G] and, where asymmetric, zero points uint8 [N, K/G]. Out: ``Packed``.
Codes lie in blocks of 64 outputs by 2 H inputs, H = min(G, 64), each block contiguous: byte [n][j] holds input j of the
block in its low and input H + j in its high nibble. N is padded to 64 and K to 2 H; padded scales are 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PANEL = 64  # outputs of a block
GROUPS = (32, 64, 128)
MOST_HALF = 64


@dataclass(frozen=True)
class Packed:
    """One weight on the GPU."""

    codes: Tensor  # uint8 [Np/64, Kp/2H, 64, H]
    scale: Tensor  # fp32 [Kp/G, Np]
    zero: Tensor  # uint8 [Kp/G, Np]; empty where symmetric (the zero point is 8)
    shape: tuple[int, int]  # N, K
    group: int

    @property
    def half(self) -> int:
        """Inputs in one nibble of a block."""
        return half_of(self.group)

    @property
    def size_bytes(self) -> int:
        """Stored bytes, padding included."""
        return self.codes.numel() + 4 * self.scale.numel() + self.zero.numel()


def half_of(group: int) -> int:
    """H of a group length."""
    return min(group, MOST_HALF)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def pack(codes: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> Packed:
    """Pack one weight. Raises ``ValueError`` for a group the kernels do not read or that does not divide K."""
    rows, columns = codes.shape
    if group not in GROUPS or columns % group:
        raise ValueError(f"groups of {group} for {columns} inputs: the kernels read {GROUPS} where they divide K")
    half = half_of(group)
    wide, deep = _up(rows, PANEL), _up(columns, 2 * half)
    padded = codes.new_zeros(wide, deep)
    padded[:rows, :columns] = codes
    blocks = padded.view(wide // PANEL, PANEL, deep // (2 * half), 2, half).permute(0, 2, 1, 3, 4)
    packed = (blocks[..., 0, :] | (blocks[..., 1, :] << 4)).contiguous()
    groups = -(-deep // group)
    return Packed(
        packed,
        _table(scale.float(), groups, wide),
        _table(zero, groups, wide) if zero is not None else codes.new_zeros(0),
        (rows, columns),
        group,
    )


def _table(values: Tensor, groups: int, wide: int) -> Tensor:
    table = values.new_zeros(groups, wide)
    table[: values.shape[1], : values.shape[0]] = values.t()
    return table


def unpack(packed: Packed) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes [N, K], scales [N, K/G] and zero points (None where symmetric): exactly what ``pack`` was given."""
    rows, columns = packed.shape
    halves = torch.stack((packed.codes & 15, packed.codes >> 4), dim=3)  # [Np/64, blocks, 64, 2, H]
    codes = halves.permute(0, 2, 1, 3, 4).reshape(packed.scale.shape[1], -1)[:rows, :columns].contiguous()
    count = columns // packed.group
    scale = packed.scale[:count, :rows].t().contiguous()
    return codes, scale, packed.zero[:count, :rows].t().contiguous() if packed.zero.numel() else None
