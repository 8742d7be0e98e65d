"""Independent numpy decoder in float64: from packed bytes, by the layouts' index formulas, element by element.

Shares no code with the families but the name of the function that reads a block. ``weight`` gives the dense weight a
packed block stands for; ``activations`` gives what the kernels' prologue makes of rows; ``linear`` multiplies the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.solver.table import Encoding

Array = NDArray[Any]


def up(size: int, multiple: int) -> int:
    while size % multiple:
        size += 1
    return size


def bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def to_bf16(x: Array) -> Array:
    """Nearest even, by integer arithmetic."""
    bits = x.astype(np.float32).view(np.uint32)
    return bf16(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))


def hadamard(block: int) -> Array:
    signs = [[(-1) ** bin(i & j).count("1") for j in range(block)] for i in range(block)]
    return np.array(signs, dtype=np.float64) / np.sqrt(block)


def turn(x: Array, block: int) -> Array:
    if not block:
        return x
    made = np.empty_like(x)
    for first in range(0, x.shape[-1], block):
        made[..., first : first + block] = x[..., first : first + block] @ hadamard(block)
    return made


class Reader:
    """Parts of a block, each 64-byte aligned, one after the other."""

    def __init__(self, block: Array) -> None:
        self.block, self.at = block, 0

    def take(self, dtype: Any, count: int) -> Array:
        size = np.dtype(dtype).itemsize * count
        part = self.block[self.at : self.at + size].copy().view(dtype)
        self.at = up(self.at + size, 64)
        return part


def weight(block: Array, shape: tuple[int, int], encoding: Encoding) -> Array:
    """The dense weight [N, K] in the model's own basis, by the layout of the kernel that reads the block."""
    read = Reader(block)
    function = kernel(MENU, encoding.family).call(encoding, shape[1], shape[0]).function
    made = LAYOUTS[function.partition("<")[0]](read, shape, encoding, function)
    assert read.at == len(block), "the block is longer than its parts"
    return turn(made, encoding.rotation)


def floats(read: Reader, shape: tuple[int, int], encoding: Encoding, function: str) -> Array:
    rows, columns = shape
    data = read.take(np.float32, up(rows, 32) * columns).astype(np.float64)
    made = np.empty(shape)
    for n in range(rows):
        for k in range(columns):
            made[n, k] = data[(n // 32 * columns + k) * 32 + n % 32]
    return made


def halves(read: Reader, shape: tuple[int, int], encoding: Encoding, function: str) -> Array:
    rows, columns = shape
    depth = up(columns, 32)
    data = bf16(read.take(np.uint16, up(rows, 32) * depth))
    made = np.empty(shape)
    for n in range(rows):
        for k in range(columns):
            made[n, k] = data[((n // 32 * (depth // 2) + k // 2) * 32 + n % 32) * 2 + k % 2]
    return made


def bytes8(read: Reader, shape: tuple[int, int], encoding: Encoding, function: str) -> Array:
    rows, columns = shape
    depth, wide = up(columns, 64), up(rows, 32)
    group = encoding.group or columns
    count = columns // group * wide
    data = read.take(np.int8, wide * depth).astype(np.float64)
    scale = bf16(read.take(np.uint16, count)) if encoding.group else read.take(np.float32, wide).astype(np.float64)
    if "a8" in function:
        sums = read.take(np.int16 if encoding.group else np.float32, count)
    codes, made = np.empty(shape), np.empty(shape)
    for n in range(rows):
        for k in range(columns):
            codes[n, k] = data[((n // 32 * (depth // 4) + k // 4) * 32 + n % 32) * 4 + k % 4]
            made[n, k] = codes[n, k] * scale[entry(n, k // group, columns // group) if encoding.group else n]
    if encoding.group:
        for n in range(rows):
            for g in range(columns // group):
                assert sums[entry(n, g, columns // group)] == codes[n, g * group : (g + 1) * group].sum()
    return made


def entry(n: int, g: int, groups: int) -> int:
    """Place of column n, group g in a table of 16-bit entries [N/32][K/G][16][2]."""
    return ((n // 32 * groups + g) * 16 + n % 16) * 2 + n % 32 // 16


def nibbles(read: Reader, shape: tuple[int, int], encoding: Encoding, function: str) -> Array:
    rows, columns = shape
    depth, wide, group = up(columns, 64), up(rows, 32), encoding.group
    groups = columns // group
    data = read.take(np.uint8, wide * depth // 2)
    scale = bf16(read.take(np.uint16, groups * wide))
    sums = read.take(np.int16, groups * wide) if "a8" in function else None
    zeros = read.take(np.uint8, groups * wide // 2) if sums is None and not encoding.symmetric else None
    made = np.empty(shape)
    for n in range(rows):
        for g in range(groups):
            at = entry(n, g, groups)
            zero, total = 8, 0
            if zeros is not None:
                both = int(zeros[(n // 32 * groups + g) * 16 + n % 16])
                zero = both // 16 if n % 32 >= 16 else both % 16
            if sums is not None:
                zero = [8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7][int(sums[at]) % 16]
            for k in range(g * group, (g + 1) * group):
                eight, lane = divmod(k, 8)
                byte = int(data[((n // 32 * (depth // 8) + eight) * 32 + n % 32) * 4 + lane % 4])
                code = (byte // 16 + 8) % 16 if lane >= 4 else byte % 16
                made[n, k] = (code - zero) * scale[at]
                total += code - zero
            assert sums is None or int(sums[at]) // 16 == total
    return made


def rows32(read: Reader, shape: tuple[int, int], encoding: Encoding, function: str) -> Array:
    return read.take(np.float32, shape[0] * shape[1]).astype(np.float64).reshape(shape)


def rows16(read: Reader, shape: tuple[int, int], encoding: Encoding, function: str) -> Array:
    return bf16(read.take(np.uint16, shape[0] * shape[1])).reshape(shape)


def rows8(read: Reader, shape: tuple[int, int], encoding: Encoding, function: str) -> Array:
    lines = read.take(np.uint8, shape[0] * (shape[1] + 8)).reshape(shape[0], -1)
    tails = lines[:, shape[1] :].copy().view(np.float32).astype(np.float64)
    return lines[:, : shape[1]].astype(np.float64) * tails[:, :1] + tails[:, 1:]


LAYOUTS: dict[str, Callable[[Reader, tuple[int, int], Encoding, str], Array]] = {
    "gemm_f32": floats,
    "gemm_bf16": halves,
    "gemm_w8a8": bytes8,
    "gemm_w8a8_grouped": bytes8,
    "gemm_w8": bytes8,
    "gemm_w4a8": nibbles,
    "gemm_w4": nibbles,
    "gather_f32": rows32,
    "gather_bf16": rows16,
    "gather_u8": rows8,
}  # what a kernel reads, by the formulas of the kernel library: a family brings no oracle unless it brings a kernel


def activations(x: Array, form: str) -> Array:
    """What a kernel that reads this form takes rows for, turned like the stored weight."""
    kind, _, turned = form.partition("-h")
    x = turn(x.astype(np.float64), int(turned or 0))
    if kind == "f32":
        return x
    if kind == "bf16":
        return to_bf16(x)
    group = x.shape[-1] if kind == "u8t" else int(kind.removeprefix("u8g"))
    made = np.empty_like(x)
    for r in range(len(x)):
        for first in range(0, x.shape[1], group):
            part = x[r, first : first + group]
            low, high = part.min(), part.max()
            step = (high - low) / 255 if high > low else 1.0
            made[r, first : first + group] = np.clip(np.rint((part - low) / step), 0, 255) * step + low
    return made


def linear(x: Array, block: Array, shape: tuple[int, int], encoding: Encoding, form: str) -> Array:
    """y [rows, N] of rows ``x`` [rows, K], without bias."""
    stored = turn(weight(block, shape, encoding), encoding.rotation)
    return activations(x, form) @ stored.T
