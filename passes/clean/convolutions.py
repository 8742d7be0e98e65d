"""Convolutions become linears over patches, or weighted windows where each channel has a filter of its own.

In: an ``fx.Graph`` of ATen ops. Out: the same graph; a dense convolution is ``linear(windows(x, "patches"), w)``, so
that its weight is decided like any linear's, and a permutation to channels first follows, which channels.py moves on.
Grouped and transposed convolutions and those in three dimensions stay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from adaflex.passes.clean.images import (
    LAST,
    Geometry,
    Sides,
    channels_first,
    each_axis,
    images,
    in_plane,
    served,
    windows_of,
)
from adaflex.passes.clean.tools import arg, aten, emit, fixed_nodes, is_op, shape_of, swap, tensor_of

CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding)


def convolutions(graph: fx.Graph) -> int:
    """Convolutions with fixed weights: dense ones become linears, those of one filter per channel weighted windows."""
    fixed = fixed_nodes(graph)
    count = 0
    for node in list(graph.nodes):
        placed = _placed(node, fixed) if is_op(node, *CONVOLUTIONS) else None
        if placed is None:
            continue
        with graph.inserting_before(node):
            x = images(placed[0], node)
            swap(node, (_dense if arg(node, 6, "groups", 1) == 1 else _depthwise)(x, node, placed[1]))
        count += 1
    return count


def _placed(node: fx.Node, fixed: set[fx.Node]) -> tuple[Any, Geometry] | None:
    """The images and how the windows of a convolution lie on them; None where it stays as it is."""
    x, weight, bias = arg(node, 0), node.args[1], arg(node, 2, "bias")
    shape, value, groups = shape_of(weight), tensor_of(x), arg(node, 6, "groups", 1)
    kernel = list(shape[2:])
    if value is None or value.dim() != len(shape) or not served(node, kernel):
        return None
    if weight not in fixed or (bias is not None and bias not in fixed):
        return None
    if groups != 1 and not (groups == shape[0] == value.shape[1] and shape[1] == 1):
        return None
    stride, dilation = (each_axis(arg(node, k, name, 1), len(kernel)) for k, name in ((3, "stride"), (5, "dilation")))
    padding = _padding(arg(node, 4, "padding", 0), kernel, dilation)
    if stride is None or dilation is None or padding is None:
        return None
    own = _zero_padding(x, len(kernel))
    if own is not None:
        padding = [(a + c, b + d) for (a, b), (c, d) in zip(padding, own, strict=True)]
        x = arg(x, 0)
    return x, in_plane(kernel, stride, padding, dilation)


def _padding(given: Any, kernel: list[int], dilation: list[int] | None) -> Sides | None:
    """Padding per axis and side, also where it is said in a word: "same" puts what is odd behind."""
    if not isinstance(given, str) or dilation is None:
        equal = each_axis(given, len(kernel))
        return None if equal is None else [(each, each) for each in equal]
    both = [step * (size - 1) if given == "same" else 0 for size, step in zip(kernel, dilation, strict=True)]
    return [(each // 2, each - each // 2) for each in both]


def _zero_padding(node: Any, axes: int) -> Sides | None:
    """What a padding with zeros around the images alone adds."""
    if not is_op(node, aten.constant_pad_nd.default) or arg(node, 2, default=0) != 0:
        return None
    widths: Any = node.args[1]
    if len(widths) > 2 * axes or not all(isinstance(each, int) and each >= 0 for each in widths):
        return None
    sides = [*zip(widths[::2], widths[1::2], strict=True)][::-1]  # given from the last axis on
    return [(0, 0)] * (axes - len(sides)) + sides


def _dense(rows: fx.Node, node: fx.Node, how: Geometry) -> fx.Node:
    graph, weight, bias = node.graph, node.args[1], arg(node, 2, "bias")
    assert isinstance(weight, fx.Node)
    rank, (outs, ins) = len(shape_of(weight)), shape_of(weight)[:2]
    kernel, stride, padding, _ = how
    if kernel == [1, 1] and not any(padding):
        flat = emit(graph, aten.reshape.default, (weight, [outs, ins]), {}, weight)
        for axis, step in zip((1, 2) if rank == 4 else (0, 1), stride, strict=True):
            if step > 1:
                rows = emit(graph, aten.slice.Tensor, (rows, axis, 0, 2**63 - 1, step), {}, node)
    else:
        turned = emit(graph, aten.permute.default, (weight, LAST[rank]), {}, weight)
        flat = emit(graph, aten.reshape.default, (turned, [outs, ins * kernel[0] * kernel[1]]), {}, weight)
        rows = windows_of(rows, None, "patches", how, node)
    made = emit(graph, aten.linear.default, (rows, flat, *([] if bias is None else [bias])), {}, node)
    return channels_first(made, node)


def _depthwise(x: fx.Node, node: fx.Node, how: Geometry) -> fx.Node:
    graph, weight, bias = node.graph, node.args[1], arg(node, 2, "bias")
    assert isinstance(weight, fx.Node)
    channels = shape_of(weight)[0]
    flat = emit(graph, aten.reshape.default, (weight, [channels, how[0][0] * how[0][1]]), {}, weight)
    taps = emit(graph, aten.permute.default, (flat, [1, 0]), {}, weight)
    taps = emit(graph, aten.clone.default, (taps,), {"memory_format": torch.contiguous_format}, weight)
    made = windows_of(x, taps, "depthwise", how, node)
    if bias is not None:
        made = emit(graph, aten.add.Tensor, (made, bias), {}, node)
    return channels_first(made, node)
