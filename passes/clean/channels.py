"""Images stay channels last from one convolution to the next.

In: an ``fx.Graph`` in which convolutions.py put permutations to channels first. Out: the same graph; what works on
every element alike, concatenation, pools and means come before them, and the next convolution undoes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from adaflex.passes.clean.images import (
    FIRST,
    LAST,
    channels_first,
    each_axis,
    images,
    in_plane,
    is_ours,
    served,
    windows_of,
)
from adaflex.passes.clean.tools import arg, aten, emit, is_op, shape_of, swap

ALIKE = (aten.hardswish.default, aten.where.ScalarOther, aten.where.ScalarSelf)  # not tagged as pointwise, but they are
COPIES = (aten.clone.default, aten._to_copy.default)  # asked for a layout


def channels_last(graph: fx.Graph) -> int:
    """Front to back, so that a permutation moves on and on; pools over images become windows."""
    count = 0
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        with graph.inserting_before(node):
            made = _alike(node) or _joined(node) or _pool(node) or _mean(node)
        if made is not None:
            swap(node, made)
            count += 1
    return count


def _alike(node: fx.Node) -> fx.Node | None:
    """An op of which every element depends on the elements of its arguments at its own place alone."""
    target, rank = node.target, len(shape_of(node))
    tagged = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    if rank not in FIRST or not (tagged or target in ALIKE) or target in COPIES:
        return None
    if not any(is_ours(each) for each in node.all_input_nodes):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: _aligned(each, rank, node))
    return channels_first(emit(node.graph, target, args, kwargs, node), node)


def _aligned(node: fx.Node, rank: int, like: fx.Node) -> fx.Node:
    """An argument that is broadcast to ``rank`` axes, channels last."""
    if not shape_of(node):
        return node
    while len(shape_of(node)) < rank:
        node = emit(like.graph, aten.unsqueeze.default, (node, 0), {}, like)
    return images(node, like)


def _joined(node: fx.Node) -> fx.Node | None:
    pieces: Any = arg(node, 0)
    rank = len(shape_of(node))
    if not is_op(node, aten.cat.default) or rank not in FIRST or not any(is_ours(each) for each in pieces):
        return None
    if any(len(shape_of(each)) != rank for each in pieces):  # an empty piece may have any shape
        return None
    axis = LAST[rank].index(arg(node, 1, "dim", 0) % rank)
    made = emit(node.graph, aten.cat.default, ([images(each, node) for each in pieces], axis), {}, node)
    return channels_first(made, node)


def _pool(node: fx.Node) -> fx.Node | None:
    """A max or mean pool as windows; None where it rounds sizes that may vary up, divides otherwise or is none."""
    if not is_op(node, aten.max_pool2d.default, aten.avg_pool2d.default) or len(shape_of(node)) != 4:
        return None
    highest = is_op(node, aten.max_pool2d.default)
    kernel = each_axis(node.args[1], 2)
    stride, padding = each_axis(arg(node, 2, "stride") or kernel, 2), each_axis(arg(node, 3, "padding", 0), 2)
    dilation = each_axis(arg(node, 4, "dilation", 1), 2) if highest else [1, 1]
    if kernel is None or stride is None or padding is None or dilation is None or not served(node, kernel):
        return None
    if not highest and (arg(node, 4, "ceil_mode", False) or not _divides_by_all(node, padding)):
        return None
    sides = [(each, each) for each in padding]
    if highest and arg(node, 5, "ceil_mode", False):
        sizes = (*shape_of(node.args[0])[2:], *shape_of(node)[2:])
        if not all(isinstance(size, int) for size in sizes):
            return None
        reach = [(sizes[k + 2] - 1) * stride[k] + dilation[k] * (kernel[k] - 1) + 1 - sizes[k] for k in (0, 1)]
        sides = [(each, max(each, reach[k] - each)) for k, each in enumerate(padding)]
    how = in_plane(kernel, stride, sides, dilation)
    kind = "max" if highest else "mean"
    return channels_first(windows_of(images(node.args[0], node), None, kind, how, node), node)


def _divides_by_all(node: fx.Node, padding: list[int]) -> bool:
    """Whether a mean pool divides by the places of its kernel, those outside of the image included."""
    counts_all = not any(padding) or bool(arg(node, 5, "count_include_pad", True))
    return counts_all and arg(node, 6, "divisor_override") is None


def _mean(node: fx.Node) -> fx.Node | None:
    """The mean over height and width of images that lie channels last."""
    x = arg(node, 0) if node.op == "call_function" else None
    if not isinstance(x, fx.Node) or not is_ours(x) or len(shape_of(x)) != 4 or not _is_whole_mean(node):
        return None
    keeps = is_op(node, aten.adaptive_avg_pool2d.default) or bool(arg(node, 2, "keepdim", False))
    rows = emit(node.graph, aten.flatten.using_ints, (x.args[0], 1, 2), {}, node)
    made = emit(node.graph, aten.mean.dim, (rows, [1]), {}, node)
    if not keeps:
        return made
    for _ in range(2):
        made = emit(node.graph, aten.unsqueeze.default, (made, 1), {}, node)
    return channels_first(made, node)


def _is_whole_mean(node: fx.Node) -> bool:
    if is_op(node, aten.adaptive_avg_pool2d.default):
        return list(node.args[1]) == [1, 1]  # type: ignore[arg-type]
    if not is_op(node, aten.mean.dim) or node.kwargs.get("dtype") is not None:
        return False
    axes = arg(node, 1, "dim")
    return isinstance(axes, list | tuple) and sorted(axis % 4 for axis in axes) == [2, 3]
