"""Evaluates a region in numpy: what it means, against which every printer is held.

In: a ``Region``, the elements of each slot it reads, the values of its sizes. Out: one array for each store. Nothing is
shared with a printer: operands are strided views checked against their memory, every op is applied to all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adaflex.errors import OptionError
from adaflex.runtime.region import FOLD, REDUCE, Load, Region, evaluate

Array = NDArray[Any]

# How a form lies in memory. numpy has no bf16: its bits are held as uint16, which no other form uses.
STORAGE: Mapping[str, Any] = {
    "f32": np.float32,
    "bf16": np.uint16,
    "f16": np.float16,
    "f64": np.float64,
    "i64": np.int64,
    "i32": np.int32,
    "i16": np.int16,
    "i8": np.int8,
    "u8": np.uint8,
    "bool": np.bool_,
}


def widen(stored: Array, dtype: Any) -> Array:
    """Stored elements as numbers."""
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    made: Array = stored.astype(dtype)
    return made


def bf16_bits(values: Array) -> Array:
    """Numbers rounded to bf16, to nearest even, as bits; a nan stays a nan."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def narrow(values: Array, form: str) -> Array:
    """Numbers as a form stores them."""
    if form == "bf16":
        return bf16_bits(values)
    if form == "bool":
        return np.asarray(values != 0)
    return np.asarray(values.astype(STORAGE[form]))


def round_bf16(values: Array) -> Array:
    """Numbers rounded through bf16."""
    return widen(bf16_bits(values), values.dtype)


def _erf(x: Array) -> Array:
    made: Array = torch.special.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    return made


def _sigmoid(x: Array) -> Array:
    made: Array = 1 / (1 + np.exp(-x))
    return made


def _truth(value: Array, like: Array) -> Array:
    return np.asarray(value).astype(like.dtype)


COMPARE: Mapping[str, Callable[[Array, Array], Array]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
}
UNARY: Mapping[str, Callable[[Array], Array]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "recip": lambda x: 1 / x,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "erf": _erf,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: x * 0.5 * (1 + _erf(x * x.dtype.type(0.5**0.5))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + np.tanh(x.dtype.type((2 / np.pi) ** 0.5) * (x + x.dtype.type(0.044715) * x**3)))
    ),
    "relu": lambda x: np.maximum(x, 0),
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "sign": np.sign,
    "not": lambda x: _truth(x == 0, x),
    "square": np.square,
    "bf16": round_bf16,
}
BINARY: Mapping[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
    "pow": np.power,
    "mod": np.mod,
    "floordiv": np.floor_divide,
}
REDUCTIONS: Mapping[str, Callable[..., Array]] = {
    "sum": np.sum,
    "rmax": np.max,
    "rmin": np.min,
    "fold_sum": np.sum,
    "fold_max": np.max,
    "fold_min": np.min,
}


def evaluate_region(
    region: Region,
    arrays: Mapping[int, Array],
    symbols: Mapping[str, int],
    dtype: Any = np.float32,
    acc: Array | None = None,
) -> list[Array]:
    """One array [rows, columns or 1] of ``dtype`` per store.

    ``arrays``: the flat elements of each slot that is read, bf16 as uint16. ``dtype``: float32, or float64 for an
    oracle. ``acc``: the template's result [rows, columns], where the region is an epilogue. Raises ``OptionError``
    where an index picks a row that its table does not have, IndexError where a load leaves its slot.
    """
    space = _Space(region, symbols)
    values: list[Array] = []
    with np.errstate(all="ignore"):
        for op in region.ops:
            args = [] if op.name == "load" else [values[a] for a in op.args]
            if op.name == "load":
                values.append(widen(_load(region, region.loads[op.args[0]], arrays, space), dtype))
            elif op.name == "acc":
                assert acc is not None, "the region needs the result of a product"
                values.append(np.asarray(acc, dtype).reshape(*space.dims, 1, space.columns))
            elif op.name in REDUCE:
                values.append(_reduce(op.name, args[0], -1, space.columns))
            elif op.name in FOLD:
                values.append(_reduce(op.name, args[0], -2, space.inner))
            else:
                values.append(_apply(op.name, args, op.value, space, dtype))
    return [space.rows_of(values[store.value]) for store in region.stores]


class _Space:
    """The sizes of a region: every value is an array over (dims..., inner, columns), size 1 where it is constant."""

    def __init__(self, region: Region, symbols: Mapping[str, int]) -> None:
        self.symbols = symbols
        self.dims = tuple(evaluate(size, symbols) for size in region.dims)
        self.inner, self.columns = evaluate(region.inner, symbols), evaluate(region.columns, symbols)
        self.shape = (*self.dims, self.inner, self.columns)

    def rows_of(self, value: Array) -> Array:
        """A value that no longer depends on the inner axis as rows."""
        columns = value.shape[-1]
        return np.broadcast_to(value[..., 0, :], (*self.dims, columns)).reshape(-1, columns)


def _apply(name: str, args: list[Array], constant: float, space: _Space, dtype: Any) -> Array:
    if name == "const":
        return _number(np.float32(constant), space, dtype)  # a constant of generated code is fp32
    if name == "width":
        return _number(space.columns, space, dtype)
    if name == "depth":
        return _number(space.inner, space, dtype)
    if name == "column":
        return np.arange(space.columns, dtype=dtype).reshape(*[1] * (len(space.dims) + 1), -1)
    if name == "select":
        return np.where(args[0] != 0, args[1], args[2])
    if name in COMPARE:
        return _truth(COMPARE[name](args[0], args[1]), args[0])
    return UNARY[name](args[0]) if name in UNARY else BINARY[name](args[0], args[1])


def _number(value: Any, space: _Space, dtype: Any) -> Array:
    return np.full([1] * len(space.shape), value, dtype)


def _reduce(name: str, value: Array, axis: int, size: int) -> Array:
    shape = list(value.shape)
    shape[axis] = size
    whole = np.broadcast_to(value, shape)
    if name.endswith("sum"):
        return np.asarray(np.sum(whole, axis=axis, keepdims=True, dtype=value.dtype))
    start = -np.inf if name.endswith("max") else np.inf
    return np.asarray(REDUCTIONS[name](whole, axis=axis, keepdims=True, initial=start))


def _load(region: Region, load: Load, arrays: Mapping[int, Array], space: _Space) -> Array:
    flat = arrays[load.slot]
    if load.form:
        flat = flat.view(STORAGE[load.form])
    walk = (*load.strides, load.inner, load.column)
    strides = [evaluate(stride, space.symbols) for stride in walk]
    offset = evaluate(load.offset, space.symbols)
    if load.gather < 0:
        return strided(flat, space.shape, strides, offset)
    index = region.loads[load.gather]
    row = [*(evaluate(stride, space.symbols) for stride in index.strides), 0, 0]
    picked = strided(arrays[index.slot], space.shape, row, evaluate(index.offset, space.symbols))
    pitch, number = evaluate(load.pitch, space.symbols), picked.astype(np.int64)
    start = number * pitch if not load.panel else number // 32 * pitch + number % 32 * load.panel
    return _gather(flat, number, start + offset, (space.shape, strides, load.panel))


def _gather(flat: Array, picked: Array, start: Array, walk: tuple[tuple[int, ...], list[int], int]) -> Array:
    shape, strides, panel = walk
    address = start
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if stride:
            steps = np.arange(size, dtype=np.int64) * stride
            if panel and axis == len(shape) - 1:
                steps = steps // panel * (32 * panel) + steps % panel
            address = address + steps.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    if address.size and (picked.min() < 0 or address.max() >= len(flat)):
        raise OptionError(f"an index of {int(picked.min())} to {int(picked.max())} picks a row that its table lacks")
    return np.asarray(flat[address])


def strided(flat: Array, shape: tuple[int, ...], strides: list[int], offset: int) -> Array:
    """A view of ``flat``, in elements; axes of stride 0 get size 1. Raises IndexError where it leaves its memory."""
    if 0 in shape:
        return np.zeros(shape, flat.dtype)
    sizes = [size if stride else 1 for size, stride in zip(shape, strides, strict=True)]
    spans = [(size - 1) * stride for size, stride in zip(sizes, strides, strict=True)]
    low = offset + sum(span for span in spans if span < 0)
    high = offset + sum(span for span in spans if span > 0)
    if low < 0 or high >= len(flat):
        raise IndexError(f"elements {low} to {high} of a slot that has {len(flat)}")
    item = flat.itemsize
    return np.lib.stride_tricks.as_strided(flat[offset:], sizes, [stride * item for stride in strides])
