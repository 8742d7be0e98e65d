"""Quantiser arithmetic shared by the families: activation rows, weight grids and the search for their clipping.

In: fp32 tensors. Out: integer codes with scales, or grids that turn values into codes. A grid has one scale (and zero
point) per row and group of ``group`` columns; group 0 means one group as long as the row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROW_LEVELS = 255  # activation codes are 0..255
NIBBLE = 4  # bits: codes of no more than these are 0..2^bits - 1, wider ones signed


def group_length(columns: int, group: int) -> int:
    """Columns per scale: ``group``, or all of them where it is 0."""
    return group or columns


def in_groups(x: Tensor, group: int) -> Tensor:
    """``x`` [..., K] as [..., K / length, length]."""
    length = group_length(x.shape[-1], group)
    return x.reshape(*x.shape[:-1], x.shape[-1] // length, length)


def quantise_rows(x: Tensor, group: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Dynamic asymmetric 8-bit codes of ``x`` [..., K]: (codes, scale, minimum) as fp32, x ~ codes * scale + minimum.

    Codes are whole numbers 0..255 [..., K]; scale and minimum are [..., K / group]. A constant group has scale 1 and
    codes 0, so that it is exact. Rounding is half to even.
    """
    grouped = in_groups(x.float(), group)
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = torch.where(high > low, (high - low) / ROW_LEVELS, torch.ones_like(low))
    codes = torch.round((grouped - low.unsqueeze(-1)) / scale.unsqueeze(-1)).clamp(0, ROW_LEVELS)
    return codes.reshape(x.shape), scale, low


def expand(values: Tensor, columns: int) -> Tensor:
    """Per-group values [..., groups] repeated to one per column [..., columns]."""
    return values.repeat_interleave(columns // values.shape[-1], -1)


@dataclass(frozen=True)
class Grid:
    """Uniform levels per row and group: value = scale * (code - zero), low <= code <= high."""

    scale: Tensor  # [rows, groups] fp32, positive
    zero: Tensor  # [rows, groups] fp32 whole numbers
    low: int
    high: int

    def codes(self, values: Tensor, group: int | None = None) -> Tensor:
        """Nearest codes (fp32 whole numbers) of ``values`` [rows, columns]; ``group``: all columns are that group's."""
        scale, zero = self._of(values.shape[-1], group)
        return torch.round(values / scale + zero).clamp_(self.low, self.high)

    def values(self, codes: Tensor, group: int | None = None) -> Tensor:
        """What codes [rows, columns] stand for."""
        scale, zero = self._of(codes.shape[-1], group)
        return (codes - zero) * scale

    def _of(self, columns: int, group: int | None) -> tuple[Tensor, Tensor]:
        if group is not None:
            return self.scale[:, group : group + 1], self.zero[:, group : group + 1]
        return expand(self.scale, columns), expand(self.zero, columns)


def clips(bits: int) -> tuple[float, ...]:
    """Shares of the range that are tried: the fewer the levels, the more is to be won by clipping."""
    return tuple(1.0 - 0.04 * step for step in range(3 if bits > 6 else 7 if bits > NIBBLE else 13))


def fit_grid(
    weight: Tensor, bits: int, group: int = 0, symmetric: bool = True, importance: Tensor | None = None
) -> Grid:
    """The grid of ``weight`` [rows, K] whose range, shrunk by the best of a few shares, loses least.

    Loss is the squared error weighted by ``importance`` [K] (mean square of each input column). Codes of more
    than 4 bits are signed (-127..127 for 8, without zero point); 4-bit codes are 0..15 with zero point 8 where
    symmetric. An all-zero group has scale 1. Scales of groups are bfloat16 numbers, as the kernels store them, and
    the codes tried are those of the rounded scale.
    """
    grouped = in_groups(weight, group)
    columns = torch.ones(weight.shape[-1]) if importance is None else importance
    share = columns.reshape(1, *grouped.shape[1:])
    low, high = (0, 2**bits - 1) if bits <= NIBBLE else (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    lowest = best_scale = best_zero = torch.empty(0)
    for clip in clips(bits):
        scale, zero = _range(grouped, bits, symmetric, clip, torch.bfloat16 if group else torch.float32)
        code = torch.round(grouped / scale.unsqueeze(-1) + zero.unsqueeze(-1)).clamp_(low, high)
        error = ((code - zero.unsqueeze(-1)) * scale.unsqueeze(-1) - grouped).square_().mul_(share).sum(-1)
        if clip == 1.0:
            lowest, best_scale, best_zero = error, scale, zero
        better = error < lowest
        lowest, best_scale = torch.where(better, error, lowest), torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return Grid(best_scale, best_zero, low, high)


def _range(grouped: Tensor, bits: int, symmetric: bool, clip: float, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale, rounded to the type ``stored``, and zero point [rows, groups] when the range is shrunk to ``clip``."""
    if symmetric:
        largest = grouped.abs().amax(-1) * clip
        scale = (largest / (2 ** (bits - 1) - 1)).to(stored).float()
        zero = torch.full_like(scale, 0.0 if bits > NIBBLE else 2.0 ** (bits - 1))
        return torch.where(scale > 0, scale, torch.ones_like(scale)), zero
    levels = 2**bits - 1
    low = grouped.amin(-1).clamp(max=0) * clip
    high = grouped.amax(-1).clamp(min=0) * clip
    scale = ((high - low) / levels).to(stored).float()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, torch.round(-low / scale).clamp_(0, levels)
