"""One spelling for each operation: renamed overloads, whole normalisations, slices for splits, ``full`` for fills.

In: an ``fx.Graph`` of ATen ops from either door. Out: the same graph in the spellings that codegen relies on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from adaflex.passes.clean.tools import arg, aten, emit, is_op, replace, shape_of, swap, tensor_of

RENAMED = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.__xor__.Tensor: aten.bitwise_xor.Tensor,
    aten.logical_and.default: aten.bitwise_and.Tensor,
    aten.logical_or.default: aten.bitwise_or.Tensor,
    aten.logical_not.default: aten.bitwise_not.default,
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
    aten.min.other: aten.minimum.default,
    aten.max.other: aten.maximum.default,
    aten._unsafe_view.default: aten.view.default,
    aten.reshape.default: aten.view.default,
    aten.unflatten.int: aten.view.default,
    aten.flatten.using_ints: aten.view.default,
    aten.view_as.default: aten.view.default,
    aten.numpy_T.default: aten.t.default,
    aten.expand_copy.default: aten.expand.default,
}
BOOLEAN_ONLY = (aten.logical_and.default, aten.logical_or.default, aten.logical_not.default)


def spellings(graph: fx.Graph) -> int:
    """Overloads that mean the same become one; a view that strides do not allow gets a clone before it."""
    count = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in RENAMED:
            continue
        target = RENAMED[node.target]
        if target is aten.view.default:
            as_view(node)
        elif _applies(node, target):
            replace(node, target, node.args, node.kwargs)
        else:
            continue
        count += 1
    return count


def casts(graph: fx.Graph) -> int:
    """``type_as`` becomes the cast that it is, to a dtype that is known."""
    count = 0
    for node in list(graph.nodes):
        value = tensor_of(node)
        if is_op(node, aten.type_as.default) and value is not None:
            replace(node, aten._to_copy.default, node.args[:1], {"dtype": value.dtype})
            count += 1
    return count


def _applies(node: fx.Node, target: Any) -> bool:
    if node.target in BOOLEAN_ONLY:
        return _all_boolean(node)
    return target is not aten.t.default or len(shape_of(node)) == 2


def _all_boolean(node: fx.Node) -> bool:
    values = [tensor_of(each) for each in node.args]
    return all(value is not None and value.dtype == torch.bool for value in values)


def as_view(node: fx.Node) -> fx.Node:
    """Put ``aten.view`` to the node's own shape in its place, after a clone to contiguous where strides ask for it."""
    graph, source = node.graph, node.args[0]
    assert isinstance(source, fx.Node)
    with graph.inserting_before(node):
        target = size_arguments(node)
        try:
            return swap(node, emit(graph, aten.view.default, (source, target), {}, node))
        except (RuntimeError, ValueError):
            whole = emit(graph, aten.clone.default, (source,), {"memory_format": torch.contiguous_format}, node)
            return swap(node, emit(graph, aten.view.default, (whole, target), {}, node))


def size_arguments(node: fx.Node) -> list[Any]:
    """The node's shape as arguments: numbers, nodes that hold a size, and -1 at most once for anything else."""
    shape = shape_of(node)
    given = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], list | tuple) else None
    if given is not None and len(given) == len(shape):
        return [size if isinstance(size, int) else each for size, each in zip(shape, given, strict=True)]
    symbolic = [index for index, size in enumerate(shape) if not isinstance(size, int)]
    if len(symbolic) <= 1:
        return [size if isinstance(size, int) else -1 for size in shape]
    return [size if isinstance(size, int) else _size_node(node, index) for index, size in enumerate(shape)]


def _size_node(node: fx.Node, index: int) -> fx.Node:
    """A node that holds that size of the old node: read from the first argument that has it."""
    wanted = shape_of(node)[index]
    for source in node.all_input_nodes:
        for axis, size in enumerate(shape_of(source)):
            if isinstance(size, torch.SymInt) and size.node.expr == wanted.node.expr:
                return emit(node.graph, aten.sym_size.int, (source, axis), {}, source)
    raise RuntimeError(f"no argument of {node.name} has its size {wanted}")


# --- several results ----------------------------------------------------------------------------------------------


def splits(graph: fx.Graph) -> int:
    """``split``, ``split_with_sizes``, ``chunk`` and ``unbind`` with their getitems become slices and selects."""
    count = 0
    for node in list(graph.nodes):
        if not is_op(node, *SPLITS) or not all(is_op(user, operator.getitem) for user in node.users):
            continue
        for user in list(node.users):
            piece = user.args[1]
            assert isinstance(piece, int)
            with graph.inserting_before(user):
                swap(user, _piece(graph, node, piece, user))
        graph.erase_node(node)
        count += 1
    return count


SPLITS = (
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.split.sizes,
    aten.chunk.default,
    aten.unbind.int,
)


def _piece(graph: fx.Graph, node: fx.Node, index: int, like: fx.Node) -> fx.Node:
    pieces = node.meta["val"]
    source = node.args[0]
    if is_op(node, aten.unbind.int):
        return emit(graph, aten.select.int, (source, arg(node, 1, "dim", 0), index % len(pieces)), {}, like)
    axis = arg(node, 2, "dim", 0) % pieces[0].dim()
    start = sum(piece.shape[axis] for piece in pieces[:index])
    return emit(graph, aten.slice.Tensor, (source, axis, start, start + pieces[index].shape[axis]), {}, like)


def first_results(graph: fx.Graph) -> int:
    """Ops that return what only training needs beside their result become the op that returns the result alone."""
    count = 0
    for node in list(graph.nodes):
        build = FIRST.get(node.target) if node.op == "call_function" else None
        if build is None or not all(is_op(user, operator.getitem) and user.args[1] == 0 for user in node.users):
            continue
        for user in list(node.users):
            target, args, kwargs = build(node)
            replace(user, target, args, kwargs)
        graph.erase_node(node)
        count += 1
    return count


Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def _layer_norm(node: fx.Node) -> Call:
    return aten.layer_norm.default, tuple(node.args[:5]), {}


def _group_norm(node: fx.Node) -> Call:
    x, weight, bias, _, _, _, groups, eps = node.args
    return aten.group_norm.default, (x, groups, weight, bias, eps), {}


def _rms_norm(node: fx.Node) -> Call:
    return aten.rms_norm.default, tuple(node.args[:4]), {}


def _flash(node: fx.Node) -> Call:
    q, k, v = node.args[:3]
    kwargs = {"scale": node.kwargs["scale"]} if node.kwargs.get("scale") is not None else {}
    mask, causal = node.kwargs.get("attn_mask"), arg(node, 4, "is_causal", False)
    return aten.scaled_dot_product_attention.default, (q, k, v, mask, 0.0, causal), kwargs


def _max_pool(node: fx.Node) -> Call:
    return aten.max_pool2d.default, node.args, dict(node.kwargs)


FIRST: dict[Any, Callable[[fx.Node], Call]] = {
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten._fused_rms_norm.default: _rms_norm,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _flash,
    aten.max_pool2d_with_indices.default: _max_pool,
}


def whole_ops(graph: fx.Graph) -> int:
    """``_softmax`` and ``convolution`` become the ops a model is written in; defaults are left out of layer norms."""
    count = 0
    for node in list(graph.nodes):
        if is_op(node, aten._softmax.default) and not node.args[2]:
            replace(node, aten.softmax.int, node.args[:2])
        elif is_op(node, aten.convolution.default) and _plain_convolution(node):
            x, weight, bias, stride, padding, dilation, _, _, groups = node.args
            target = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)[len(shape_of(x)) - 3]
            replace(node, target, (x, weight, bias, stride, padding, dilation, groups))
        elif is_op(node, aten.pad.default) and arg(node, 2, "mode", "constant") == "constant":
            fill = arg(node, 3, "value")
            node.target, node.kwargs = aten.constant_pad_nd.default, {}  # in place: fakes refuse symbolic paddings
            node.args = (*node.args[:2], 0 if fill is None else fill)
        elif is_op(node, aten.layer_norm.default) and len(node.args) > 5:
            node.args = node.args[:5]
        elif is_op(node, aten.embedding.default) and len(node.args) > 2:
            node.args = node.args[:2]
        else:
            continue
        count += 1
    return count


def _plain_convolution(node: fx.Node) -> bool:
    transposed, rank = node.args[6], len(shape_of(node.args[0]))
    return not transposed and 3 <= rank <= 5 and all(isinstance(each, int) for each in node.args[3])  # type: ignore[union-attr]


FILLS: dict[Any, float | int | bool] = {
    aten.zeros.default: 0,
    aten.ones.default: 1,
    aten.zeros_like.default: 0,
    aten.ones_like.default: 1,
    aten.new_zeros.default: 0,
    aten.new_ones.default: 1,
}
GIVEN = (aten.full_like.default, aten.new_full.default, aten.scalar_tensor.default, aten.fill.Scalar)


def fills(graph: fx.Graph) -> int:
    """Every tensor of one value becomes ``aten.full(size, value, dtype=, device=)``, sizes as numbers or size nodes."""
    count = 0
    for node in list(graph.nodes):
        if not is_op(node, *FILLS, *GIVEN):
            continue
        value = FILLS[node.target] if node.target in FILLS else node.args[0 if len(node.args) == 1 else -1]
        if isinstance(value, fx.Node):
            continue
        result = tensor_of(node)
        assert result is not None
        with graph.inserting_before(node):
            sizes = fill_sizes(node)
        if result.dtype == torch.bool:
            value = bool(value)
        replace(node, aten.full.default, (sizes, value), {"dtype": result.dtype, "device": result.device})
        count += 1
    return count


def fill_sizes(node: fx.Node) -> list[Any]:
    """The sizes of a fill: numbers where known, else its own size arguments or sizes of its argument."""
    shape = shape_of(node)
    given: Any = next((each for each in node.args[:2] if isinstance(each, list | tuple)), None)
    sizes: list[Any] = []
    for index, size in enumerate(shape):
        if isinstance(size, int):
            sizes.append(size)
        else:
            sizes.append(given[index] if given is not None else _size_node(node, index))
    return sizes


def scalars(graph: fx.Graph) -> int:
    """``where`` with a filled scalar on one side takes the number itself, where the result's dtype stays the same."""
    count = 0
    for node in list(graph.nodes):
        if not is_op(node, aten.where.self):
            continue
        condition, one, other = node.args
        if is_op(other, aten.full.default) and not shape_of(other):
            target, args = aten.where.ScalarOther, (condition, one, other.args[1])
        elif is_op(one, aten.full.default) and not shape_of(one):
            target, args = aten.where.ScalarSelf, (condition, one.args[1], other)
        else:
            continue
        with graph.inserting_before(node):
            new = emit(graph, target, args, {}, node)
        if new.meta["val"].dtype == node.meta["val"].dtype:
            swap(node, new)
            count += 1
        else:
            graph.erase_node(new)
    return count
