"""Folding: what constants and static sizes alone decide is computed once for each set of weights, not at each call.

In: a cleaned ``fx.Graph`` whose placeholders have roles. Out: the nodes whose value becomes a constant of its own.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import fx

from adaflex.passes.clean.tools import aten, fixed_nodes, is_constant, is_op, is_output, tensor_of

BARRIERS = (aten.embedding.default,)  # tables that are sites: looked up at each call, not copied per graph
SPLATS = (aten.full.default, aten.expand.default)  # free where they are: folding would store what they repeat
SPARE_BYTES = 1 << 20  # a folded value may be this much larger than twice what it is computed from


def folds(graph: fx.Graph) -> list[fx.Node]:
    """The nodes to compute once, in graph order: each is used by a node that calls do change, or is too large to go on.

    Returned values and ``aten.t`` of a constant stay in the graph; so does anything that would grow the weights by
    more than ``SPARE_BYTES`` plus their own size.
    """
    fixed = _without_barriers(graph)
    kept: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node in fixed and _leaves(node, fixed) and _stays(node):
            kept.add(node)
            fixed.discard(node)
    return [node for node in graph.nodes if node in fixed and not is_constant(node) and _leaves(node, fixed)]


def _without_barriers(graph: fx.Graph) -> set[fx.Node]:
    """Fixed nodes, a table look-up and everything after it left out."""
    candidates = fixed_nodes(graph)
    fixed: set[fx.Node] = set()
    for node in graph.nodes:
        if node in candidates and not is_op(node, *BARRIERS) and all(each in fixed for each in node.all_input_nodes):
            fixed.add(node)
    return fixed


def _leaves(node: fx.Node, fixed: set[fx.Node]) -> bool:
    """Whether something outside the fixed part uses the node."""
    return any(user not in fixed for user in node.users)


def _stays(node: fx.Node) -> bool:
    if is_constant(node):
        return False
    value = tensor_of(node)
    if value is None or is_output(node) or is_op(node, *SPLATS):
        return True
    if is_op(node, aten.t.default) and _is_weight(node.args[0]):
        return True
    return bytes_of(node) > 2 * sum(bytes_of(each) for each in ancestors(node)) + SPARE_BYTES


def _is_weight(node: Any) -> bool:
    """A constant as it is, or in another dtype."""
    return is_constant(node) or (is_op(node, aten._to_copy.default) and is_constant(node.args[0]))


def bytes_of(node: fx.Node) -> int:
    """Bytes of the node's tensor; 0 where a size is not a number."""
    value = tensor_of(node)
    if value is None or not all(isinstance(size, int) for size in value.shape):
        return 0
    return int(prod(value.shape)) * value.element_size()


def ancestors(node: fx.Node) -> list[fx.Node]:
    """The constants that the node is computed from, in graph order of first meeting."""
    found: dict[fx.Node, None] = {}
    todo: list[Any] = [node]
    seen: set[fx.Node] = set()
    while todo:
        each = todo.pop()
        if each in seen:
            continue
        seen.add(each)
        if is_constant(each):
            found[each] = None
        todo.extend(reversed(each.all_input_nodes))
    return list(found)
