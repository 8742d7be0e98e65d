"""Activations written out become one op: tanh and erf GELU, SiLU.

In: an ``fx.Graph`` of ATen ops. Out: the same graph with ``aten.gelu`` and ``aten.silu``.
"""

from __future__ import annotations

import math

from torch import fx

from adaflex.passes.clean.tools import Op, Slot, add, aten, is_op, match, mul, replace, tensor_of

_X = Slot("x", lambda each: tensor_of(each) is not None)
_CUBE = (
    Op((aten.pow.Tensor_Scalar,), (_X, 3)),
    mul(mul(_X, _X), _X),
)
_INNER = (mul(add(_X, mul(_CUBE, 0.044715)), math.sqrt(2 / math.pi)),)
_TANH = (add(Op((aten.tanh.default,), _INNER), 1),)
_ERF_ARGUMENT = (mul(_X, math.sqrt(0.5)), Op((aten.div.Tensor,), (_X, math.sqrt(2))))
_ERF = (add(Op((aten.erf.default,), (_ERF_ARGUMENT,)), 1),)


def _half_times(gate: object) -> tuple[Op, ...]:
    return (mul(mul(_X, 0.5), gate), mul(mul(_X, gate), 0.5), mul(_X, mul(gate, 0.5)))


TANH_GELU = _half_times(_TANH)
ERF_GELU = _half_times(_ERF)
SILU = mul(_X, Op((aten.sigmoid.default,), (_X,)))


def activations(graph: fx.Graph) -> int:
    """Gaussian error linear units (Hendrycks and Gimpel 2016) in both forms, and x·sigmoid(x)."""
    count = 0
    for node in list(graph.nodes):
        if not is_op(node, aten.mul.Tensor):
            continue
        if found := match(TANH_GELU, node):
            replace(node, aten.gelu.default, (found["x"],), {"approximate": "tanh"})
        elif found := match(ERF_GELU, node):
            replace(node, aten.gelu.default, (found["x"],))
        elif found := match(SILU, node):
            replace(node, aten.silu.default, (found["x"],))
        else:
            continue
        count += 1
    return count
