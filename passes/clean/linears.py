"""Every dense linear with a fixed weight becomes ``aten.linear(x, w, bias?)``, however the model spelled it.

In: an ``fx.Graph`` of ATen ops. Out: the same graph; ``w`` is a constant [out, in], or ``aten.t`` of one stored
[in, out] (GPT-2's Conv1D), or a node computed from constants alone, which folding turns into one.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from adaflex.passes.clean.tools import (
    Slot,
    add,
    arg,
    aten,
    emit,
    fixed_nodes,
    is_constant,
    is_op,
    match,
    replace,
    same_shape,
    shape_of,
    swap,
    tensor_of,
)


def transposed_constants(graph: fx.Graph) -> int:
    """Every spelling of a 2-D constant's transpose becomes ``aten.t(constant)``."""
    count = 0
    for node in list(graph.nodes):
        if not is_op(node, aten.transpose.int, aten.permute.default):
            continue
        source = node.args[0]
        if not is_constant(source) or len(shape_of(source)) != 2:
            continue
        axes = node.args[1:] if is_op(node, aten.transpose.int) else node.args[1]
        if [axis % 2 for axis in axes] in ([0, 1], [1, 0]) and _swaps(node, axes):
            replace(node, aten.t.default, (source,))
            count += 1
    return count


def _swaps(node: fx.Node, axes: Any) -> bool:
    return is_op(node, aten.transpose.int) or [axis % 2 for axis in axes] == [1, 0]


def products(graph: fx.Graph) -> int:
    """``addmm``, ``mm`` and ``matmul`` with a fixed 2-D right side become ``linear``."""
    fixed = fixed_nodes(graph)
    count = 0
    for node in list(graph.nodes):
        bias: Any = None
        if is_op(node, aten.addmm.default):
            bias, x, weight = node.args[:3]
            if node.kwargs or not _is_bias(bias, weight):
                continue
        elif is_op(node, aten.mm.default, aten.matmul.default):
            x, weight = node.args[:2]
        else:
            continue
        if weight not in fixed or x in fixed or len(shape_of(weight)) != 2 or len(shape_of(x)) < 2:
            continue
        with graph.inserting_before(node):
            turned = (
                weight.args[0] if is_op(weight, aten.t.default) else emit(graph, aten.t.default, (weight,), {}, node)
            )
            swap(node, emit(graph, aten.linear.default, (x, turned, *([] if bias is None else [bias])), {}, node))
        count += 1
    return count


def _is_bias(bias: Any, weight: Any) -> bool:
    return len(shape_of(bias)) == 1 and shape_of(bias)[0] == shape_of(weight)[-1]


def added_biases(graph: fx.Graph) -> int:
    """A fixed [out] vector added to a linear without a bias becomes its bias."""
    fixed = fixed_nodes(graph)
    pattern = add(Slot("linear", _bare_linear), Slot("bias", lambda each: each in fixed))
    count = 0
    for node in list(graph.nodes):
        found = match(pattern, node)
        if found is None or shape_of(found["bias"]) != shape_of(node)[-1:]:
            continue
        x, weight = found["linear"].args[:2]
        replace(node, aten.linear.default, (x, weight, found["bias"]))
        count += 1
    return count


def _bare_linear(node: Any) -> bool:
    return is_op(node, aten.linear.default) and arg(node, 2) is None and len(node.users) == 1


def unflattened(graph: fx.Graph) -> int:
    """``view(linear(view(x, [-1, in])), [..., out])`` works on ``x`` itself: leading sizes do not matter to it."""
    count = 0
    for node in list(graph.nodes):
        inner = arg(node, 0)
        if not (is_op(node, aten.view.default) and is_op(inner, aten.linear.default) and len(inner.users) == 1):
            continue
        flat = inner.args[0]
        if not is_op(flat, aten.view.default):
            continue
        x = flat.args[0]
        before, after = shape_of(x), shape_of(node)
        if (
            same_shape(before[:-1], after[:-1])
            and before[-1] == shape_of(flat)[-1]
            and after[-1] == shape_of(inner)[-1]
        ):
            with graph.inserting_before(node):
                swap(node, emit(graph, aten.linear.default, (x, *inner.args[1:]), {}, inner))
            count += 1
    return count


def empty_biases(graph: fx.Graph) -> int:
    """``linear(x, w, None)`` is ``linear(x, w)``."""
    count = 0
    for node in graph.nodes:
        if is_op(node, aten.linear.default) and len(node.args) == 3 and node.args[2] is None:
            node.args = node.args[:2]
            count += 1
    return count


def is_float_linear(node: object) -> bool:
    """Whether the node is a linear on floating-point rows."""
    value = tensor_of(node)
    return is_op(node, aten.linear.default) and value is not None and value.dtype.is_floating_point
