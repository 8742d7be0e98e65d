"""What each pointwise and row-reducing ATen op is in region ops.

In: the values of an op's arguments. Out: the value of its result, appended to the region's body.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from adaflex.runtime.region import Op


class Writer:
    """The growing body of a region: SSA values by number, equal ones only once."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self._seen: dict[Op, int] = {}

    def emit(self, name: str, *args: int, value: float = 0.0) -> int:
        """The number of the value ``name(args)``."""
        op = Op(name, args, value)
        if op not in self._seen:
            self._seen[op] = len(self.ops)
            self.ops.append(op)
        return self._seen[op]

    def const(self, value: float) -> int:
        """The number of a constant."""
        return self.emit("const", value=float(value))

    def mean(self, value: int) -> int:
        """Sum over the columns divided by their number."""
        return self.emit("div", self.emit("sum", value), self.emit("width"))


# An argument is a value's number (int wrapped in Value) or a plain Python number.
class Value(int):
    """Number of a value, told apart from a plain integer argument."""


def number_of(w: Writer, argument: Any) -> int:
    """The value of an argument: itself, or a constant."""
    return int(argument) if isinstance(argument, Value) else w.const(float(argument))


Build = Callable[[Writer, Sequence[Any], dict[str, Any]], int]


def _unary(name: str) -> Build:
    return lambda w, a, k: w.emit(name, number_of(w, a[0]))


def _binary(name: str) -> Build:
    return lambda w, a, k: w.emit(name, number_of(w, a[0]), number_of(w, a[1]))


def _scaled(name: str) -> Build:
    """add and sub: the second operand times alpha."""

    def build(w: Writer, a: Sequence[Any], k: dict[str, Any]) -> int:
        second = number_of(w, a[1])
        if k.get("alpha", 1) != 1:
            second = w.emit("mul", second, w.const(k["alpha"]))
        return w.emit(name, number_of(w, a[0]), second)

    return build


def _gelu(w: Writer, a: Sequence[Any], k: dict[str, Any]) -> int:
    form = k.get("approximate", a[1] if len(a) > 1 else "none")
    return w.emit("gelu_tanh" if form == "tanh" else "gelu", number_of(w, a[0]))


def _clamp(w: Writer, a: Sequence[Any], k: dict[str, Any]) -> int:
    value = number_of(w, a[0])
    low = a[1] if len(a) > 1 else k.get("min")
    high = a[2] if len(a) > 2 else k.get("max")
    if low is not None:
        value = w.emit("max", value, number_of(w, low))
    return value if high is None else w.emit("min", value, number_of(w, high))


def _pow(w: Writer, a: Sequence[Any], k: dict[str, Any]) -> int:
    base = number_of(w, a[0])
    known = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "recip"}
    if not isinstance(a[1], Value):
        if a[1] in known:
            return w.emit(known[a[1]], base)
        if a[1] == 3:
            return w.emit("mul", w.emit("square", base), base)
    return w.emit("pow", base, number_of(w, a[1]))


def _where(w: Writer, a: Sequence[Any], k: dict[str, Any]) -> int:
    return w.emit("select", *(number_of(w, part) for part in a[:3]))


def _masked_fill(w: Writer, a: Sequence[Any], k: dict[str, Any]) -> int:
    return w.emit("select", number_of(w, a[1]), number_of(w, a[2]), number_of(w, a[0]))


def _rsub(w: Writer, a: Sequence[Any], k: dict[str, Any]) -> int:
    return w.emit("sub", number_of(w, a[1]), number_of(w, a[0]))


def _hardtanh(w: Writer, a: Sequence[Any], k: dict[str, Any]) -> int:
    low, high = [*a[1:], *(-1.0, 1.0)[len(a) - 1 :]][:2]
    return _clamp(w, (a[0], low, high), {})


def _hardsigmoid_of(w: Writer, x: int) -> int:
    shifted = w.emit("add", x, w.const(3.0))
    return w.emit("div", _clamp(w, (Value(shifted), 0.0, 6.0), {}), w.const(6.0))


def _hardswish(w: Writer, a: Sequence[Any], k: dict[str, Any]) -> int:
    x = number_of(w, a[0])
    return w.emit("mul", x, _hardsigmoid_of(w, x))


def _leaky_relu(w: Writer, a: Sequence[Any], k: dict[str, Any]) -> int:
    x, slope = number_of(w, a[0]), a[1] if len(a) > 1 else 0.01
    return w.emit("select", w.emit("gt", x, w.const(0.0)), x, w.emit("mul", x, w.const(slope)))


def _same(w: Writer, a: Sequence[Any], k: dict[str, Any]) -> int:
    return number_of(w, a[0])


def _to_bool(w: Writer, value: int) -> int:
    return w.emit("ne", value, w.const(0.0))


def convert(w: Writer, value: int, form: str) -> int:
    """A conversion to another dtype as far as the value changes: to bool, or rounding through bf16."""
    if form == "bool":
        return _to_bool(w, value)
    return w.emit("bf16", value) if form == "bf16" else value


POINTWISE: dict[str, Build] = {
    **{name: _unary(name) for name in ("neg", "abs", "sqrt", "rsqrt", "exp", "exp2", "log", "log2", "log1p", "tanh")},
    **{name: _unary(name) for name in ("erf", "sigmoid", "silu", "relu", "sin", "cos", "floor", "ceil", "round")},
    **{name: _unary(name) for name in ("trunc", "sign", "square", "expm1")},
    **{name: _binary(name) for name in ("mul", "div", "lt", "le", "gt", "ge", "eq", "ne")},
    "reciprocal": _unary("recip"),
    "logical_not": _unary("not"),
    "maximum": _binary("max"),
    "minimum": _binary("min"),
    "logical_and": _binary("and"),
    "logical_or": _binary("or"),
    "add": _scaled("add"),
    "sub": _scaled("sub"),
    "rsub": _rsub,
    "gelu": _gelu,
    "clamp": _clamp,
    "clamp_min": lambda w, a, k: _clamp(w, (a[0], a[1], None), {}),
    "clamp_max": lambda w, a, k: _clamp(w, (a[0], None, a[1]), {}),
    "hardtanh": _hardtanh,
    "relu6": lambda w, a, k: _clamp(w, (a[0], 0.0, 6.0), {}),
    "hardswish": _hardswish,
    "hardsigmoid": lambda w, a, k: _hardsigmoid_of(w, number_of(w, a[0])),
    "leaky_relu": _leaky_relu,
    "pow": _pow,
    "where": _where,
    "masked_fill": _masked_fill,
    "_to_copy": _same,
    "clone": _same,
    "contiguous": _same,
    "bitwise_not": _unary("not"),
    "bitwise_and": _binary("and"),
    "bitwise_or": _binary("or"),
}
BOOL_ONLY = {"bitwise_not", "bitwise_and", "bitwise_or"}  # offered for bool tensors alone


def softmax(w: Writer, x: int) -> int:
    """exp(x - max) / sum, over the columns."""
    shifted = w.emit("exp", w.emit("sub", x, w.emit("rmax", x)))
    return w.emit("div", shifted, w.emit("sum", shifted))


def layer_norm(w: Writer, x: int, weight: int | None, bias: int | None, eps: float) -> int:
    """(x - mean) / sqrt(variance + eps) * weight + bias; the variance from the centred values, in a second pass."""
    centred = w.emit("sub", x, w.mean(x))
    variance = w.mean(w.emit("square", centred))
    value = w.emit("mul", centred, w.emit("rsqrt", w.emit("add", variance, w.const(eps))))
    if weight is not None:
        value = w.emit("mul", value, weight)
    return value if bias is None else w.emit("add", value, bias)


def rms_norm(w: Writer, x: int, weight: int | None, eps: float) -> int:
    """x / sqrt(mean(x²) + eps) * weight."""
    square = w.mean(w.emit("square", x))
    value = w.emit("mul", x, w.emit("rsqrt", w.emit("add", square, w.const(eps))))
    return value if weight is None else w.emit("mul", value, weight)


def vector_norm(w: Writer, x: int, order: float) -> int:
    """The p-norm over the columns for p in {1, 2, inf}; ValueError for another."""
    if order == 2:
        return w.emit("sqrt", w.emit("sum", w.emit("square", x)))
    if order == 1:
        return w.emit("sum", w.emit("abs", x))
    if math.isinf(order) and order > 0:
        return w.emit("rmax", w.emit("abs", x))
    raise ValueError(f"no row reduction for the norm of order {order}")
