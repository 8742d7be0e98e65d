"""Regions in float64 numpy, one value array [rows, columns] at a time: what printed kernels are held against.

Shares no code with the printers. ``run(region, slots, memory, symbols)`` returns what each store holds, as float64;
a store in an activation form comes back as (codes, scale, minimum).
"""

from __future__ import annotations

import json
import math
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaflex.runtime.program import Slot
from adaflex.runtime.region import Load, Region, evaluate, product

Array = NDArray[np.float64]
erf = np.vectorize(math.erf, otypes=[np.float64])


def bf16(x: Array) -> Array:
    return torch.from_numpy(x).to(torch.bfloat16).double().numpy()


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


UNARY = {
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "recip": lambda x: 1 / x,
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log1p": np.log1p,
    "tanh": np.tanh, "erf": erf, "sigmoid": sigmoid, "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0), "sin": np.sin, "cos": np.cos, "floor": np.floor, "ceil": np.ceil,
    "round": np.rint, "trunc": np.trunc, "sign": np.sign, "not": lambda x: (x == 0) * 1.0, "square": np.square,
    "bf16": bf16,
}  # fmt: skip
BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "min": np.minimum, "max": np.maximum,
    "pow": np.power, "mod": np.mod, "floordiv": np.floor_divide, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
    "and": lambda a, b: (a != 0) & (b != 0), "or": lambda a, b: (a != 0) | (b != 0),
}  # fmt: skip
DTYPES = {
    "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i64": torch.int64, "i32": torch.int32,
    "u8": torch.uint8, "i8": torch.int8, "bool": torch.bool,
}  # fmt: skip


class Evaluator:
    """One region over one set of memories; the inner axis, where there is one, is a third axis of every array."""

    def __init__(
        self, region: Region, slots: Sequence[Slot], memory: Mapping[int, Tensor], symbols: Mapping[str, int]
    ) -> None:
        self.region, self.slots, self.memory, self.symbols = region, slots, memory, symbols
        self.rows, self.columns, self.inner = (
            evaluate(size, symbols) for size in (product(region.dims), region.columns, region.inner)
        )

    def addresses(self, load: Load) -> NDArray[np.int64]:
        dims = [evaluate(size, self.symbols) for size in self.region.dims]
        index = np.stack(np.unravel_index(np.arange(self.rows), dims))
        strides = np.array([evaluate(stride, self.symbols) for stride in load.strides])
        row = (index * strides[:, None]).sum(0) + evaluate(load.offset, self.symbols)
        if load.gather >= 0:
            picks = self.region.loads[load.gather]
            row = row + self.flat(picks)[self.addresses(picks)[:, 0, 0]].astype(np.int64) * evaluate(
                load.pitch, self.symbols
            )
        column = np.arange(self.columns) * evaluate(load.column, self.symbols)
        inner = np.arange(self.inner) * evaluate(load.inner, self.symbols)
        return row[:, None, None] + column[None, :, None] + inner[None, None, :]

    def flat(self, load: Load) -> Array:
        data = self.memory[load.slot].reshape(-1)
        if load.form:
            data = data.view(torch.uint8).view(DTYPES[load.form])
        return data.double().numpy()

    def values(self) -> list[Array]:
        found: list[Array] = []
        for op in self.region.ops:
            v = [found[a] for a in op.args] if op.name != "load" else []
            found.append(self.op(op, v))
        return found

    def op(self, op: Any, v: list[Array]) -> Array:
        whole = (self.rows, self.columns, self.inner)
        if op.name == "load":
            load = self.region.loads[op.args[0]]
            return self.flat(load)[self.addresses(load)]
        if op.name in ("const", "width", "depth"):
            return np.full((1, 1, 1), {"const": op.value, "width": self.columns, "depth": self.inner}[op.name])
        if op.name == "column":
            return np.arange(self.columns, dtype=np.float64)[None, :, None]
        if op.name == "select":
            return np.where(v[0] != 0, v[1], v[2])
        if op.name in UNARY:
            return UNARY[op.name](v[0]).astype(np.float64)
        if op.name in BINARY:
            return BINARY[op.name](v[0], v[1]).astype(np.float64)
        reduce = {"sum": np.sum, "max": np.max, "min": np.min}[op.name.removeprefix("fold_").removeprefix("r")]
        axis = 2 if op.name.startswith("fold_") else 1
        return reduce(np.broadcast_to(v[0], whole), axis=axis, keepdims=True)


def turned(x: Array, block: int) -> Array:
    if not block:
        return x
    signs = [[(-1) ** (i & j).bit_count() for j in range(block)] for i in range(block)]
    return (x.reshape(-1, block) @ (np.array(signs) / math.sqrt(block))).reshape(x.shape)


def quantised(x: Array, form: str) -> tuple[Array, Array, Array]:
    base, _, block = form.partition("-h")
    x = turned(x, int(block or 0))
    group = x.shape[1] if base == "u8t" else int(base.removeprefix("u8g"))
    parts = x.reshape(len(x), -1, group)
    low, high = parts.min(2), parts.max(2)
    scale = np.where(high > low, (high - low) / 255, 1.0)
    return np.rint((parts - low[..., None]) / scale[..., None]).reshape(x.shape), scale, low


def run(region: Region, slots: Sequence[Slot], memory: Mapping[int, Tensor], symbols: Mapping[str, int]) -> list[Any]:
    with np.errstate(all="ignore"):
        found = Evaluator(region, slots, memory, symbols)
        values = found.values()
        made: list[Any] = []
        for store in region.stores:
            slot = slots[store.slot]
            per_row = evaluate(slot.columns, symbols) == 1
            shape = (found.rows, 1 if per_row else found.columns)
            value = np.broadcast_to(values[store.value][:, :, 0], shape)
            made.append(quantised(value, slot.form) if slot.form.startswith("u8") and slot.form != "u8" else value)
        return made


def report(cases: Mapping[str, Callable[[], list[Any]]], names: Sequence[str]) -> None:
    """Print one JSON object: case -> list of (what, error, allowed)."""
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, for masked lanes of the interpreter
    found: dict[str, Any] = {}
    for name in names or cases:
        torch.manual_seed(0)
        try:
            found[name] = cases[name]()
        except Exception as fault:  # one broken case leaves the others their answers
            found[name] = [["".join(traceback.format_exception(fault))[-3000:], 1.0, 0.0]]
    print(json.dumps(found))
