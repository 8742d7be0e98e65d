"""What the passes over images share: where windows lie, and the permutations between channels first and last.

In: nodes of ATen ops on images [N, C, H, W] or rows of samples [N, C, L]. Out: nodes that are channels last.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

from adaflex.passes.clean.tools import aten, emit, fixed_size, is_op, shape_of, tensor_of
from adaflex.passes.windows import WINDOWS

FIRST = {3: [0, 2, 1], 4: [0, 3, 1, 2]}  # from channels last to channels first, by rank
LAST = {3: [0, 2, 1], 4: [0, 2, 3, 1]}
MOST_TAPS = 1 << 16  # of a window: more are no program's
MARK = "images"  # of permutations to channels first that are ours to move

Geometry = tuple[list[int], list[int], list[int], list[int]]  # kernel, stride, padding, dilation: see windows.py
Sides = list[tuple[int, int]]  # per axis: padding before the first element and after the last


def channels_first(made: fx.Node, like: fx.Node) -> fx.Node:
    """The permutation to channels first of what was computed channels last."""
    turned = emit(like.graph, aten.permute.default, (made, FIRST[len(shape_of(made))]), {}, like)
    turned.meta[MARK] = True
    return turned


def is_ours(node: Any) -> bool:
    """Whether the node is a permutation that ``channels_first`` made."""
    return isinstance(node, fx.Node) and MARK in node.meta and is_op(node, aten.permute.default)


def images(x: Any, like: fx.Node) -> fx.Node:
    """``x`` channels last: what a permutation of ours was made from, else a permutation."""
    if is_ours(x):
        source = x.args[0]
        assert isinstance(source, fx.Node)
        return source
    return emit(like.graph, aten.permute.default, (x, LAST[len(shape_of(x))]), {}, like)


def windows_of(x: fx.Node, weight: fx.Node | None, kind: str, how: Geometry, like: fx.Node) -> fx.Node:
    """Windows over images [N, H, W, C], or over rows [N, L, C] as images of height 1."""
    graph, flat = like.graph, len(shape_of(x)) == 3
    if flat:
        x = emit(graph, aten.unsqueeze.default, (x, 1), {}, like)
    made = emit(graph, WINDOWS, (x, weight, kind, *how), {}, like)
    return emit(graph, aten.squeeze.dim, (made, 1), {}, like) if flat else made


def in_plane(kernel: list[int], stride: list[int], padding: Sides, dilation: list[int]) -> Geometry:
    """Parameters for height and width; along one axis the height is 1."""
    if len(kernel) == 1:
        kernel, stride, padding, dilation = [1, *kernel], [1, *stride], [(0, 0), *padding], [1, *dilation]
    return kernel, stride, [before for before, _ in padding] + [after for _, after in padding], dilation


def each_axis(given: Any, count: int) -> list[int] | None:
    """A parameter per axis; None where it is no plain numbers."""
    entries = list(given) if isinstance(given, list | tuple) else [given]
    if not all(isinstance(entry, int) for entry in entries):
        return None
    return entries * count if len(entries) == 1 else entries


def served(node: fx.Node, kernel: list[int]) -> bool:
    """Whether windows of ``kernel`` over the node's first argument are ours: fp32, fixed channels, nothing empty."""
    x = tensor_of(node.args[0])
    if x is None or x.dtype != torch.float32 or fixed_size(x.shape[1]) is None or prod(kernel) > MOST_TAPS:
        return False
    return all(not isinstance(size, int) or size > 0 for size in (*shape_of(node), *x.shape))
