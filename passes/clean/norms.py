"""RMS norm written out becomes ``aten.rms_norm``; batch norm in eval goes into the convolution before it.

In: an ``fx.Graph`` of ATen ops. Out: the same graph; what depends on constants alone is left for folding.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from adaflex.passes.clean.tools import (
    Op,
    Slot,
    add,
    arg,
    aten,
    emit,
    fixed_nodes,
    is_op,
    match,
    mul,
    replace,
    shape_of,
    swap,
    tensor_of,
)

_X = Slot("x")
_SCALED = mul(
    _X,
    Op(
        (aten.rsqrt.default,),
        (
            add(
                Op((aten.mean.dim,), (Op((aten.pow.Tensor_Scalar,), (_X, 2)), Slot("axes"), True)),
                Slot("eps", lambda each: isinstance(each, float | int)),
            ),
        ),
    ),
)


def _scaled(node: Any) -> dict[str, Any] | None:
    """The match of ``x * rsqrt(mean(x²) + eps)``, seen through a cast back to the model's own type."""
    return match(_SCALED, node.args[0] if is_op(node, aten._to_copy.default) else node)


_WEIGHTED = mul(Slot("weight"), Slot("scaled", lambda each: _scaled(each) is not None))


def rms_norms(graph: fx.Graph) -> int:
    """``w * (x * rsqrt(mean(x², -1) + eps))`` becomes ``rms_norm(x, [d], w, eps)`` (Zhang and Sennrich 2019)."""
    count = 0
    for node in list(graph.nodes):
        found = match(_WEIGHTED, node)
        if found is None or not isinstance(found["weight"], fx.Node):
            continue
        inner = _scaled(found["scaled"])
        assert inner is not None
        x, width = inner["x"], shape_of(inner["x"])[-1]
        if is_op(x, aten._to_copy.default) and is_op(found["scaled"], aten._to_copy.default):
            x = x.args[0]  # half precision, computed in single as the op itself does
        alike = tensor_of(x).dtype == tensor_of(node).dtype  # type: ignore[union-attr]
        if alike and shape_of(found["weight"]) == (width,) and _last_axis(inner["axes"], shape_of(x)):
            replace(node, aten.rms_norm.default, (x, [width], found["weight"], inner["eps"]))
            count += 1
    return count


def _last_axis(axes: Any, shape: tuple[Any, ...]) -> bool:
    return [axis % len(shape) for axis in axes] == [len(shape) - 1]


BATCH_NORMS = (
    aten._native_batch_norm_legit_no_training.default,
    aten.batch_norm.default,
    aten.cudnn_batch_norm.default,
)


def batch_norms(graph: fx.Graph) -> int:
    """Batch norm with fixed statistics: weights of the convolution before it change, or it becomes x·scale + shift."""
    fixed = fixed_nodes(graph)
    count = 0
    for node in list(graph.nodes):
        if not is_op(node, *BATCH_NORMS[:1]):
            continue
        x, weight, bias, mean, variance, _, eps = node.args
        given = [each for each in (weight, bias, mean, variance) if each is not None]
        results = [user for user in node.users if is_op(user, operator.getitem) and user.args[1] == 0]
        if len(results) != len(node.users) or not all(each in fixed for each in given):
            continue
        with graph.inserting_before(node):
            scale, shift = _affine(graph, node, eps)
            new = _into_convolution(graph, x, scale, shift, fixed) or _pointwise(graph, x, scale, shift, node)
        for user in results:
            swap(user, new)
        graph.erase_node(node)
        count += 1
    return count


def _affine(graph: fx.Graph, node: fx.Node, eps: Any) -> tuple[fx.Node, fx.Node]:
    """scale = weight / sqrt(variance + eps), shift = bias - mean · scale; both [channels]."""
    _, weight, bias, mean, variance = node.args[:5]

    def call(target: Any, *args: Any) -> fx.Node:
        return emit(graph, target, args, {}, variance)  # type: ignore[arg-type]

    scale = call(aten.rsqrt.default, call(aten.add.Tensor, variance, eps))
    scale = scale if weight is None else call(aten.mul.Tensor, scale, weight)
    shift = call(aten.neg.default, call(aten.mul.Tensor, mean, scale))
    return scale, shift if bias is None else call(aten.add.Tensor, shift, bias)


def _into_convolution(graph: fx.Graph, x: Any, scale: fx.Node, shift: fx.Node, fixed: set[fx.Node]) -> fx.Node | None:
    """The convolution with the scale in its weights and the shift in its bias; None where ``x`` is none of ours."""
    if not is_op(x, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default) or len(x.users) != 1:
        return None
    weight, bias = x.args[1], arg(x, 2)
    if weight not in fixed or (bias is not None and bias not in fixed):
        return None
    rank = len(shape_of(weight))
    column = emit(graph, aten.view.default, (scale, [-1] + [1] * (rank - 1)), {}, weight)
    scaled = emit(graph, aten.mul.Tensor, (weight, column), {}, weight)
    if bias is not None:
        shift = emit(graph, aten.add.Tensor, (shift, emit(graph, aten.mul.Tensor, (bias, scale), {}, bias)), {}, bias)
    return emit(graph, x.target, (x.args[0], scaled, shift, *x.args[3:]), dict(x.kwargs), x)


def _pointwise(graph: fx.Graph, x: Any, scale: fx.Node, shift: fx.Node, node: fx.Node) -> fx.Node:
    shape = [-1] + [1] * (len(shape_of(x)) - 2)
    rows = [emit(graph, aten.view.default, (each, shape), {}, node) for each in (scale, shift)]
    product = emit(graph, aten.mul.Tensor, (x, rows[0]), {}, node)
    return emit(graph, aten.add.Tensor, (product, rows[1]), {}, node)
