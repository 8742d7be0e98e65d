"""Packs encoded weights into the panels that the C++ kernels read, and back.

In: weights or codes [N, K] (N outputs, K inputs) as torch tensors. Out: contiguous tensors in the kernels' layouts;
every instruction set reads the same bytes. A panel holds 32 outputs; N is padded with zeros to whole panels, K to a
unit that each layout names.
Padding is stored and counts as memory. `unpack_*` give back exactly what was packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 32  # outputs of a panel


def round_up(size: int, unit: int) -> int:
    """The smallest multiple of `unit` that is no less than `size`."""
    return -(-size // unit) * unit


def _panels(weight: Tensor, k_unit: int, per_word: int) -> Tensor:
    """[N, K] to [Np/32, Kp/per_word, 32, per_word], zero-padded."""
    n, k = weight.shape
    padded = weight.new_zeros(round_up(n, PANEL), round_up(k, k_unit))
    padded[:n, :k] = weight
    blocks = padded.view(-1, PANEL, padded.shape[1] // per_word, per_word)
    return blocks.transpose(1, 2).contiguous()


def _rows(panels: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `_panels` for an [n, k] weight."""
    words = panels.transpose(1, 2)
    return words.reshape(words.shape[0] * PANEL, -1)[:n, :k].contiguous()


def pack_f32(weight: Tensor) -> Tensor:
    """float32 [N, K] to float32 [Np/32, K, 32, 1]."""
    return _panels(weight.to(torch.float32), 1, 1)


def unpack_f32(panels: Tensor, n: int, k: int) -> Tensor:
    """float32 panels to float32 [n, k]."""
    return _rows(panels, n, k)


def pack_bf16(weight: Tensor) -> Tensor:
    """float [N, K], rounded to bfloat16, to bfloat16 [Np/32, Kp/2, 32, 2], Kp = K rounded up to 32."""
    return _panels(weight.to(torch.bfloat16), 32, 2)


def unpack_bf16(panels: Tensor, n: int, k: int) -> Tensor:
    """bfloat16 panels to bfloat16 [n, k]."""
    return _rows(panels, n, k)


def pack_int8(codes: Tensor) -> Tensor:
    """int8 codes [N, K] to int8 [Np/32, Kp/4, 32, 4], Kp = K rounded up to 64."""
    return _panels(_checked(codes, torch.int8), 64, 4)


def unpack_int8(panels: Tensor, n: int, k: int) -> Tensor:
    """int8 panels to int8 [n, k]."""
    return _rows(panels, n, k)


def pack_int4(codes: Tensor) -> Tensor:
    """uint8 codes 0..15 [N, K] to uint8 [Np/32, Kp/8, 32, 4], Kp = K rounded up to 64.

    Byte j of a word holds k = 8i + j in its low and k = 8i + 4 + j in its high nibble.
    """
    words = _panels(_checked(codes, torch.uint8), 64, 8)
    return words[..., :4] | words[..., 4:] << 4


def unpack_int4(panels: Tensor, n: int, k: int) -> Tensor:
    """int4 panels to uint8 codes 0..15 [n, k]."""
    return _rows(torch.cat((panels & 15, panels >> 4), dim=-1), n, k)


def _checked(codes: Tensor, dtype: torch.dtype) -> Tensor:
    if codes.dtype != dtype or codes.dim() != 2:
        raise TypeError(f"codes must be {dtype} [N, K], got {codes.dtype} {list(codes.shape)}; convert them first")
    return codes


def pack_columns(values: Tensor) -> Tensor:
    """Per-output values [N] to float32 [Np]; per output and group [N, K/G] to float32 [K/G, Np]. Padding is 0."""
    table = values.detach().to(torch.float32)
    table = table.unsqueeze(0) if table.dim() == 1 else table.t()
    padded = table.new_zeros(table.shape[0], round_up(table.shape[1], PANEL))
    padded[:, : table.shape[1]] = table
    return padded.squeeze(0) if values.dim() == 1 else padded


def column_sums(codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """What an activation's minimum is multiplied with: scale * sum over k of (code - zero), per output and group.

    `codes` [N, K], `scale` and `zero` [N] or [N, K/G]; computed in float64; packed as `pack_columns` does.
    """
    groups = 1 if scale.dim() == 1 else scale.shape[1]
    sums = codes.to(torch.float64).view(codes.shape[0], groups, -1).sum(dim=2)
    if zero is not None:
        sums = sums - zero.to(torch.float64).view_as(sums) * (codes.shape[1] // groups)
    return pack_columns((sums * scale.to(torch.float64).view_as(sums)).view_as(scale))


def zero_terms(scale: Tensor, zero: Tensor) -> Tensor:
    """scale * zero [N, K/G] in float64, packed as `pack_columns` does: what asymmetric int4 kernels subtract."""
    return pack_columns(scale.to(torch.float64) * zero.to(torch.float64))
