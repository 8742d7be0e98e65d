"""Remove what computes nothing: assertions, aliases, clones and casts that change nothing, views of views.

In: an ``fx.Graph`` of ATen ops. Out: the same graph without them; each pass returns how many it removed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from adaflex.passes.clean.tools import (
    arg,
    aten,
    is_op,
    is_output,
    pure,
    same_shape,
    shape_of,
    swap,
    tensor_of,
)

ASSERTS = (
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten._assert_async.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
)
IDENTITIES = (aten.alias.default, aten.detach.default, aten.lift_fresh.default, aten.lift_fresh_copy.default)
COPIES = (aten.clone.default, aten._to_copy.default, aten.contiguous.default, *IDENTITIES)
VIEWS = (
    aten.view.default,
    aten.transpose.int,
    aten.permute.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.t.default,
    aten.alias.default,
    aten.detach.default,
)


def asserts(graph: fx.Graph) -> int:
    """Run-time assertions go: shapes are checked at the door of the compiled program."""
    dead = [node for node in graph.nodes if is_op(node, *ASSERTS) and not node.users]
    for node in dead:
        graph.erase_node(node)
    return len(dead)


def no_ops(graph: fx.Graph) -> int:
    """Ops whose result is their argument: same values, same shape, same strides, same dtype."""
    count = 0
    for node in list(graph.nodes):
        source = arg(node, 0) if node.op == "call_function" else None
        if isinstance(source, fx.Node) and _changes_nothing(node, source) and not _must_stay(node, source):
            swap(node, source)
            count += 1
    return count


def _changes_nothing(node: fx.Node, source: fx.Node) -> bool:
    before, after = tensor_of(source), tensor_of(node)
    if before is None or after is None or before.dtype != after.dtype or before.device != after.device:
        return False
    if not same_shape(before.shape, after.shape):
        return False
    if is_op(node, *IDENTITIES, aten.view.default, aten.expand.default, aten.slice.Tensor):
        return True
    if is_op(node, aten.clone.default, aten._to_copy.default, aten.contiguous.default):
        return node.kwargs.get("memory_format") in (None, torch.preserve_format) or same_layout(before, after)
    if is_op(node, aten.permute.default):
        return list(node.args[1]) == list(range(before.dim()))  # type: ignore[arg-type]
    if is_op(node, aten.dropout.default):
        return bool(node.args[1] == 0 or not node.args[2])
    if is_op(node, aten.constant_pad_nd.default):
        return all(isinstance(each, int) and each == 0 for each in arg(node, 1))
    return _arithmetic_identity(node, before)


def same_layout(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether strides agree wherever a dimension is longer than one."""
    return all(
        a == b or (isinstance(size, int) and size == 1)
        for a, b, size in zip(map(str, before.stride()), map(str, after.stride()), before.shape, strict=True)
    )


def _arithmetic_identity(node: fx.Node, before: torch.Tensor) -> bool:
    other = arg(node, 1)
    if isinstance(other, bool) or not isinstance(other, int | float):
        return False
    if is_op(node, aten.mul.Tensor, aten.div.Tensor):
        return bool(other == 1)
    return is_op(node, aten.add.Tensor, aten.sub.Tensor) and other == 0 and not before.dtype.is_floating_point


def _must_stay(node: fx.Node, source: fx.Node) -> bool:
    """A copy that is returned stays where its source is an argument or is returned too: the caller may write to it."""
    return is_op(node, *COPIES) and is_output(node) and (root(source).op == "placeholder" or is_output(source))


def root(node: fx.Node) -> fx.Node:
    """The node whose memory this one looks at."""
    while is_op(node, *VIEWS) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def views_of_views(graph: fx.Graph) -> int:
    """Chains of view become one; a transposition of its own inverse becomes what was transposed."""
    count = 0
    for node in list(graph.nodes):
        inner = arg(node, 0) if node.op == "call_function" else None
        if not isinstance(inner, fx.Node):
            continue
        if is_op(node, aten.view.default) and is_op(inner, aten.view.default):
            node.update_arg(0, inner.args[0])
            count += 1
        elif _undoes(node, inner):
            swap(node, inner.args[0])  # type: ignore[arg-type]
            count += 1
    return count


def _undoes(node: fx.Node, inner: fx.Node) -> bool:
    if is_op(node, aten.t.default) and is_op(inner, aten.t.default):
        return True
    if is_op(node, aten.transpose.int) and is_op(inner, aten.transpose.int):
        rank = len(shape_of(node))
        return _axes(node, rank) == _axes(inner, rank)
    return False


def permutations(graph: fx.Graph) -> int:
    """A permutation of a permutation is one."""
    count = 0
    for node in list(graph.nodes):
        inner = arg(node, 0) if is_op(node, aten.permute.default) else None
        if is_op(inner, aten.permute.default):
            first: Any = inner.args[1]  # type: ignore[union-attr]
            then: Any = node.args[1]
            node.args = (inner.args[0], [first[axis] for axis in then])  # type: ignore[union-attr]
            count += 1
    return count


def _axes(node: fx.Node, rank: int) -> set[Any]:
    return {node.args[1] % rank, node.args[2] % rank}  # type: ignore[operator]


def common_subexpressions(graph: fx.Graph) -> int:
    """Equal pure calls become one; two that are both returned stay apart, the caller may write to either."""
    seen: dict[Any, fx.Node] = {}
    count = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or not pure(node):
            continue
        key = (node.target, _key(node.args), _key(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node and not (is_output(first) and is_output(node)):
            swap(node, first)
            count += 1
    return count


def _key(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((key, _key(each)) for key, each in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(_key(each) for each in value)
    return (type(value).__name__, repr(value)) if not isinstance(value, fx.Node) else value


def dead_code(graph: fx.Graph) -> int:
    """Pure calls that nothing uses."""
    before = len(graph.nodes)
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users and (node.op == "get_attr" or pure(node)):
            graph.erase_node(node)
    return before - len(graph.nodes)
