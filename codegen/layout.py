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

    Byte j of a word holds the code of k = 8i + j in its low nibble and that of k = 8i + 4 + j, less 8 in two's
    complement, in its high one: masked, that is a signed byte of 16 (code - 8).
    """
    words = _panels(_checked(codes, torch.uint8), 64, 8)
    return words[..., :4] | (words[..., 4:] ^ 8) << 4


def unpack_int4(panels: Tensor, n: int, k: int) -> Tensor:
    """int4 panels to uint8 codes 0..15 [n, k]."""
    return _rows(torch.cat((panels & 15, panels >> 4 ^ 8), dim=-1), n, k)


def _checked(codes: Tensor, dtype: torch.dtype) -> Tensor:
    if codes.dtype != dtype or codes.dim() != 2:
        raise TypeError(f"codes must be {dtype} [N, K], got {codes.dtype} {list(codes.shape)}; convert them first")
    return codes


def pack_columns(values: Tensor) -> Tensor:
    """Per-output values [N] to float32 [Np]. Padding is 0."""
    padded = values.new_zeros(round_up(len(values), PANEL), dtype=torch.float32)
    padded[: len(values)] = values.detach()
    return padded


def column_sums(codes: Tensor, scale: Tensor) -> Tensor:
    """What an activation's minimum is multiplied with: scale [N] times the sum of codes [N, K], float32 [Np]."""
    return pack_columns(codes.to(torch.float64).sum(dim=1) * scale.to(torch.float64))


def pack_table(values: Tensor) -> Tensor:
    """16-bit values per output and group [N, K/G] to [Np/32, K/G, 16, 2].

    Output c of a panel lies in half c // 16 of pair c % 16: a load of pairs serves outputs 0..15 and 16..31.
    """
    n, groups = values.shape
    padded = values.new_zeros(round_up(n, PANEL), groups)
    padded[:n] = values
    return padded.view(-1, 2, 16, groups).permute(0, 3, 2, 1).contiguous()


def unpack_table(table: Tensor, n: int) -> Tensor:
    """The inverse of `pack_table` for n outputs."""
    return table.permute(0, 3, 2, 1).reshape(-1, table.shape[1])[:n].contiguous()


def pack_scales(scale: Tensor) -> Tensor:
    """Scales per output and group [N, K/G], each a bfloat16 number, as a table. ValueError where one is not."""
    rounded = scale.detach().to(torch.bfloat16)
    if not torch.equal(rounded.to(scale.dtype), scale):
        raise ValueError("scales of groups must be bfloat16 numbers; round them before codes are chosen")
    return pack_table(rounded)


def group_sums(codes: Tensor, groups: int) -> Tensor:
    """Sums of codes [N, K] over each of the groups: int64 [N, groups]."""
    return codes.to(torch.int64).view(codes.shape[0], groups, -1).sum(dim=2)


def int8_sums(codes: Tensor, groups: int) -> Tensor:
    """Sums of int8 codes per group as a table of int16: below 2^15 up to groups of 256."""
    return pack_table(group_sums(codes, groups).to(torch.int16))


def int4_sums(codes: Tensor, zero: Tensor) -> Tensor:
    """Sums of codes 0..15 less their zero points 0..15 [N, K/G], and the zero points, as a table of int16.

    An entry is 16 * sum(code - zero) + ((zero - 8) & 15): below 2^15 up to groups of 128.
    """
    whole = zero.to(torch.int64)
    sums = group_sums(codes, zero.shape[1]) - whole * (codes.shape[1] // zero.shape[1])
    return pack_table((16 * sums + (whole - 8 & 15)).to(torch.int16))


def unpack_zero_points(sums: Tensor, n: int) -> Tensor:
    """The zero points uint8 [n, K/G] in a table that `int4_sums` made."""
    return ((unpack_table(sums, n) & 15) ^ 8).to(torch.uint8)


def pack_zeros(zero: Tensor) -> Tensor:
    """Zero points 0..15 [N, K/G] to uint8 [Np/32, K/G, 16]: outputs c low and c + 16 high in byte c of a panel."""
    halves = pack_table(zero.to(torch.uint8))
    return halves[..., 0] | halves[..., 1] << 4


def unpack_zeros(zeros: Tensor, n: int) -> Tensor:
    """The inverse of `pack_zeros`: uint8 [n, K/G]."""
    return unpack_table(torch.stack((zeros & 15, zeros >> 4), dim=-1), n)
