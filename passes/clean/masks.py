"""Attention masks as transformers builds them, by indexing with ranges, become broadcasts of the mask that was given.

In: an ``fx.Graph`` of ATen ops. Out: the same graph with unsqueezes for gathers and without masks that allow all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from adaflex.passes.clean.tools import (
    arg,
    aten,
    emit,
    is_op,
    number_of,
    same_shape,
    same_size,
    shape_of,
    swap,
    tensor_of,
)


def range_axis(node: Any) -> tuple[Any, int] | None:
    """(size, axis) where the node is 0, 1, … along one axis and has one row elsewhere; None for anything else."""
    if is_op(node, aten.arange.default):
        return shape_of(node)[0], 0
    if is_op(node, aten.arange.start_step, aten.arange.start) and node.args[0] == 0 and arg(node, 2, default=1) == 1:
        return shape_of(node)[0], 0
    if is_op(node, aten.add.Tensor) and number_of(node.args[1]) == 0 and "alpha" not in node.kwargs:
        return range_axis(node.args[0])
    if is_op(node, aten.unsqueeze.default):
        inner, axis = range_axis(node.args[0]), node.args[1] % len(shape_of(node))
        return None if inner is None else (inner[0], inner[1] + (axis <= inner[1]))
    return None


def gathers(graph: fx.Graph) -> int:
    """``x[range over rows, range over columns]`` with each range on an axis of its own is a broadcast of ``x``."""
    count = 0
    for node in list(graph.nodes):
        new = _broadcast(graph, node) if is_op(node, aten.index.Tensor) else None
        if new is not None:
            swap(node, new)
            count += 1
    return count


def _broadcast(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    source, indices = node.args
    shape, rank = shape_of(source), len(shape_of(node))
    if not isinstance(indices, list | tuple) or len(indices) != len(shape):
        return None
    ranges = [range_axis(index) for index in indices]
    if any(each is None or not same_size(each[0], size) for each, size in zip(ranges, shape, strict=True)):
        return None
    # a range counted from the left of its own index sits as far from the right in the result
    axes = [
        each[1] + rank - len(shape_of(index)) for each, index in zip(ranges, indices, strict=True) if each is not None
    ]
    if sorted(set(axes)) != axes:
        return None
    with graph.inserting_before(node):
        for axis in range(rank):
            if axis not in axes:
                source = emit(graph, aten.unsqueeze.default, (source, axis), {}, node)
    return source if isinstance(source, fx.Node) and same_shape(shape_of(source), shape_of(node)) else None


def attention_masks(graph: fx.Graph) -> int:
    """Attention's mask is not expanded (it broadcasts by itself), and left out where it allows everything."""
    count = 0
    for node in graph.nodes:
        if not is_op(node, aten.scaled_dot_product_attention.default) or len(node.args) < 4:
            continue
        mask = node.args[3]
        if always_true(mask):
            node.update_arg(3, None)
            count += 1
        elif is_op(mask, aten.expand.default) and len(shape_of(mask.args[0])) == len(shape_of(mask)):
            node.update_arg(3, mask.args[0])
            count += 1
    return count


def _fits(mask: Any, node: fx.Node) -> bool:
    if same_shape(shape_of(mask), shape_of(node)):
        return True
    return len(shape_of(mask)) == len(shape_of(node)) and _only_masks(node)


def _only_masks(node: fx.Node) -> bool:
    """Whether every use is as an attention mask, which broadcasts by itself."""
    return all(is_op(user, aten.scaled_dot_product_attention.default) and user.args[3] is node for user in node.users)


def always_true(node: Any) -> bool:
    """Whether a boolean tensor is known to be true everywhere: filled so, a range compared with 0, or of such."""
    if is_op(node, aten.full.default):
        return node.args[1] is True
    if is_op(node, aten.ge.Scalar):
        return number_of(node.args[1]) == 0 and range_axis(node.args[0]) is not None
    if is_op(node, aten.bitwise_and.Tensor):
        return always_true(node.args[0]) and always_true(node.args[1])
    if is_op(node, aten.expand.default, aten.view.default, aten.unsqueeze.default, aten.alias.default):
        return always_true(node.args[0])
    return False


def open_masks(graph: fx.Graph) -> int:
    """``mask & (true everywhere)`` is ``mask`` where shapes agree or only attention, which broadcasts, uses it."""
    count = 0
    for node in list(graph.nodes):
        value = tensor_of(node)
        if not is_op(node, aten.bitwise_and.Tensor) or value is None or value.dtype != torch.bool:
            continue
        for mask, other in ((node.args[0], node.args[1]), (node.args[1], node.args[0])):
            if (
                len(shape_of(mask)) == len(shape_of(node))
                and always_true(other)
                and (same_shape(shape_of(mask), shape_of(node)) or _only_masks(node))
            ):
                swap(node, mask)
                count += 1
                break
    return count
