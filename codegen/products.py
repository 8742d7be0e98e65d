"""What the kernel library's products read: the activation form, and the parts of a packed weight with their bytes.

In: a function's name, N, K. Out: what a program from a file is held against before that function is given addresses.
Imports no family: loading an artifact needs neither the menu nor what chooses from it.
"""

from __future__ import annotations

import re

FUNCTION = re.compile(r"gemm_(f32|bf16|w8a8_grouped|w8a8|w8|w4a8|w4)(?:<([0-9]+)(?:, (true|false))?>)?")
PANEL = 32  # outputs are padded to whole panels
GROUPED = {"w8a8_grouped": False, "w4a8": True, "w4": True}  # takes a group; and whether it is asymmetric
GROUPS = (32, 64, 128)


def product_reads(function: str, n: int, k: int) -> tuple[str, tuple[tuple[str, int], ...]] | None:
    """(activation form, ((part, bytes), ...)) in the order of the function's parameters; None where there is no such
    function for these sizes. A part of 0 bytes is passed and not read."""
    match = FUNCTION.fullmatch(function)
    if match is None:
        return None
    kind, group, asymmetric = match[1], int(match[2] or 0), match[3]
    if (group != 0) != (kind in GROUPED) or (asymmetric is not None) != GROUPED.get(kind, False):
        return None
    if group and (group not in GROUPS or k % group):
        return None
    wide, deep = _up(n, PANEL), _up(k, 64)
    floats, table = wide * 4, wide * 2 * (k // group if group else 0)
    nibbles, zeros = wide * deep // 2, table // 4 if asymmetric == "true" else 0
    return {
        "f32": ("f32", (("b", wide * k * 4),)),
        "bf16": ("bf16", (("b", wide * _up(k, 32) * 2),)),
        "w8": ("bf16", (("b", wide * deep), ("sw", floats))),
        "w8a8": ("u8t", (("b", wide * deep), ("sw", floats), ("csw", floats))),
        "w8a8_grouped": (f"u8g{group}", (("b", wide * deep), ("sw", table), ("sums", table))),
        "w4": ("bf16", (("b", nibbles), ("sw", table), ("zeros", zeros))),
        "w4a8": (f"u8g{group}", (("b", nibbles), ("sw", table), ("sums", table))),
    }[kind]


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
