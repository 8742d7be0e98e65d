"""Activation forms and packed weights in numpy: written and read by the index formulas of the kernel library.

In: rows of fp32, or the bytes of a slot. Out: the bytes of an activation form, or the numbers that they stand for.
Shares no code with the families, their layouts or the C++ library: it is what these are held against.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from adaflex.codegen.evaluate_region import Array, bf16_bits, widen

LEVELS = 255
FUNCTION = re.compile(r"gemm_(f32|bf16|w8a8_grouped|w8a8|w8|w4a8|w4)(?:<([0-9]+)(?:, *(true|false))?>)?")


def up(size: int, unit: int) -> int:
    """``size`` rounded up to a multiple of ``unit``."""
    return -(-size // unit) * unit


@lru_cache(maxsize=4)
def hadamard(block: int) -> Array:
    """Entry (i, j) is (-1)^popcount(i & j) / sqrt(block), in float64."""
    signs = [[1 - 2 * ((i & j).bit_count() % 2) for j in range(block)] for i in range(block)]
    return np.asarray(np.array(signs, np.float64) / block**0.5)


def turn(rows: Array, block: int) -> Array:
    """Rows [R, K] with each aligned block of columns multiplied by the Hadamard matrix."""
    if not block:
        return rows
    made: Array = rows.reshape(len(rows), -1, block) @ hadamard(block).astype(rows.dtype)
    return made.reshape(rows.shape)


def parse_form(form: str) -> tuple[str, int, int]:
    """ "u8g64-h128" is ("u8g", 64, 128): kind, group (0: the row), rotation (0: none)."""
    base, _, rotation = form.partition("-h")
    group = int(base[3:]) if base.startswith("u8g") else 0
    return ("u8g" if group else base), group, int(rotation or 0)


def write_form(values: Array, form: str, row_bytes: int) -> Array:
    """Rows [R, K] as an activation form: uint8 [R, row_bytes]."""
    kind, group, rotation = parse_form(form)
    values = turn(values, rotation)
    made = np.zeros((len(values), row_bytes), np.uint8)
    if kind == "bf16":
        made[:, : 2 * values.shape[1]] = _bytes(bf16_bits(values))
        return made
    columns = values.shape[1]
    codes, scale, low = quantise(values, group or columns)
    made[:, :columns] = codes
    tail = up(columns, 64)
    for part in (scale, low):
        made[:, tail : tail + 4 * part.shape[1]] = _bytes(part.astype(np.float32))
        tail += 4 * part.shape[1]
    return made


def _bytes(values: Array) -> Array:
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)


def quantise(values: Array, group: int) -> tuple[Array, Array, Array]:
    """Codes [R, K], scales and minima [R, K / group]: a constant group has scale 1 and codes 0; nan spreads."""
    grouped = values.astype(np.float32).reshape(len(values), -1, group)
    with np.errstate(all="ignore"):
        low, high = grouped.min(-1), grouped.max(-1)
        scale = np.where(high > low, (high - low) / np.float32(LEVELS), np.float32(1)).astype(np.float32)
        levels = np.rint((grouped - low[..., None]) / scale[..., None])
        codes = np.clip(np.nan_to_num(levels), 0, LEVELS).astype(np.uint8)
    return codes.reshape(values.shape), scale, low


def read_form(raw: Array, form: str, columns: int, dtype: Any) -> Array:
    """What rows uint8 [R, row_bytes] of a form stand for (still rotated): [R, K]."""
    kind, group, _ = parse_form(form)
    if kind == "f32":
        return np.ascontiguousarray(raw[:, : 4 * columns]).view(np.float32).astype(dtype)
    if kind == "bf16":
        return widen(np.ascontiguousarray(raw[:, : 2 * columns]).view(np.uint16), dtype)
    count = columns // group if group else 1
    tail = up(columns, 64)
    floats = np.ascontiguousarray(raw[:, tail : tail + 8 * count]).view(np.float32).astype(dtype)
    codes = raw[:, :columns].astype(dtype).reshape(len(raw), count, -1)
    made: Array = codes * floats[:, :count, None] + floats[:, count:, None]
    return made.reshape(len(raw), columns)


def read_weight(block: Array, function: str, parts: Mapping[str, int], n: int, k: int) -> Array:
    """The weight float64 [N, K] that a packed block (uint8) stands for, as the GEMM ``function`` reads it.

    ``parts``: byte offset of each. ValueError for a function that the kernel library does not have.
    """
    match = FUNCTION.fullmatch(function)
    if match is None:
        raise ValueError(f"no product is called '{function}'")
    kind, group, asymmetric = match[1], int(match[2] or 0), match[3] == "true"
    wide = up(n, 32)

    def part(name: str, dtype: Any, count: int) -> Array:
        start = parts[name]
        return block[start : start + count * np.dtype(dtype).itemsize].view(dtype)

    if kind == "f32":
        return _rows(part("b", np.float32, wide * k), wide, k, 1)[:n, :k].astype(np.float64)
    if kind == "bf16":
        depth = up(k, 32)
        return widen(_rows(part("b", np.uint16, wide * depth), wide, depth, 2)[:n, :k], np.float64)
    depth, groups = up(k, 64), k // group if group else 1
    if group:
        scale = widen(_entries(part("sw", np.uint16, groups * wide), wide), np.float64)[:n]
    else:
        scale = part("sw", np.float32, wide)[:n, None].astype(np.float64)
    zero = np.zeros_like(scale)
    if kind in ("w4a8", "w4"):
        codes = _nibbles(part("b", np.uint8, wide * depth // 2), wide, depth)[:n, :k]
        zero += 8
        if asymmetric and kind == "w4a8":
            zero = _entries(part("sums", np.uint16, groups * wide), wide)[:n] & 15 ^ 8
        elif asymmetric:
            pairs = part("zeros", np.uint8, groups * wide // 2)
            zero = _entries(np.stack((pairs & 15, pairs >> 4), axis=-1), wide)[:n]
    else:
        codes = _rows(part("b", np.int8, wide * depth), wide, depth, 4)[:n, :k]
    grouped = codes.astype(np.float64).reshape(n, groups, -1)
    return ((grouped - zero[..., None]) * scale[..., None]).reshape(n, k)


def _entries(flat: Array, wide: int) -> Array:
    """A table [N/32][K/G][16][2], column c of a panel in half c // 16 of pair c % 16, as [N, K/G]."""
    return flat.reshape(wide // 32, -1, 16, 2).transpose(0, 3, 2, 1).reshape(wide, -1)


def _rows(flat: Array, wide: int, depth: int, word: int) -> Array:
    """Panels [N/32][K/word][32][word] as rows [N, K]."""
    return flat.reshape(wide // 32, depth // word, 32, word).transpose(0, 2, 1, 3).reshape(wide, depth)


def _nibbles(flat: Array, wide: int, depth: int) -> Array:
    """Panels [N/32][K/8][32][4] of two codes a byte as rows [N, K]: low nibbles first, high ones are code - 8."""
    words = flat.reshape(wide // 32, depth // 8, 32, 4)
    eight = np.concatenate((words & 15, words >> 4 ^ 8), axis=-1)
    return eight.transpose(0, 2, 1, 3).reshape(wide, depth)
