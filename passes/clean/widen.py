"""Models kept in half precision: the graph computes in fp32, and what it returns has the dtype it had.

In: a graph as traced, some of its weights bf16 or fp16. Out: the same graph with one cast behind every half-precision
placeholder and one before every half-precision output. Values are those of the weights as stored, computed without the
roundings in between: what the kernels can plan, and nearer to the model that was trained than its own dtype comes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from adaflex.passes.clean.remove import root
from adaflex.passes.clean.tools import aten, compute, emit, is_op, tensor_of
from adaflex.passes.torch_compat import fake_mode_of

HALF = (torch.bfloat16, torch.float16)
REINTERPRETED = (aten.view.dtype, aten.view_as_complex.default, aten.view_as_real.default)


def half_models(graph: fx.Graph) -> int:
    """Let a model whose weight matrices are in half precision compute in fp32."""
    narrow = [node for node in graph.nodes if node.op == "placeholder" and _is_half(node)]
    matrices = [node for node in narrow if node.meta.get("role") == "source" and node.meta["val"].dim() > 1]
    if not matrices or any(is_op(node, *REINTERPRETED) for node in graph.nodes):
        return 0
    returned = graph.output_node()
    wanted = {node: node.meta["val"].dtype for node in returned.all_input_nodes if _is_half(node)}
    aliases = {node for node in wanted if root(node).op == "placeholder"}
    own = {node: _same_view(node) for node in aliases}
    for node in narrow:
        _cast_behind(node, {copy for chain in own.values() for copy in chain})
    kept = {each for chain in own.values() for each in chain}
    for node in list(graph.nodes):
        if node.op == "call_function" and node not in kept and not node.meta.pop("widened", False):
            _retype(node)
    for node, dtype in wanted.items():
        _cast_before(returned, node, own[node][-1] if node in own else None, dtype)
    return len(narrow)


def _is_half(node: fx.Node) -> bool:
    value = tensor_of(node)
    return value is not None and value.dtype in HALF


def _same_view(node: fx.Node) -> list[fx.Node]:
    """The views from a placeholder to ``node`` once more, for the caller, who gets the placeholder's own memory."""
    chain, base = [node], root(node)
    while chain[-1] is not base:
        chain.append(chain[-1].all_input_nodes[0])
    moved = {base: base}
    for each in reversed(chain[:-1]):
        with each.graph.inserting_after(each):
            moved[each] = each.graph.node_copy(each, lambda old: moved.get(old, old))
    return [moved[each] for each in reversed(chain)]


def _cast_behind(node: fx.Node, kept: set[fx.Node]) -> None:
    """One fp32 cast of a placeholder for all who compute with it."""
    readers = [user for user in node.users if user not in kept and user.op != "output"]
    if not readers:
        return
    with node.graph.inserting_before(_first_call(node.graph)):
        wide = emit(node.graph, aten._to_copy.default, (node,), {"dtype": torch.float32}, node)
    wide.meta["widened"] = True
    for user in readers:
        user.replace_input_with(node, wide)


def _first_call(graph: fx.Graph) -> fx.Node:
    found: fx.Node = next(node for node in graph.nodes if node.op != "placeholder")
    return found


def _retype(node: fx.Node) -> None:
    """Ask for fp32 where half precision was asked for; the node's value follows from its arguments."""
    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), _wide)
    node.args, node.kwargs = args, kwargs
    given, named = fx.node.map_arg((args, kwargs), lambda each: each.meta["val"])
    try:
        node.meta["val"] = compute(node.target, given, named, fake_mode_of(tensor_of(node)))
    except Exception:  # a composite that cannot run on symbolic sizes outside of a trace keeps shape and strides
        node.meta["val"] = torch.utils._pytree.tree_map(_widened, node.meta.get("val"))


def _wide(value: Any) -> Any:
    return torch.float32 if value in HALF else value


def _widened(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype not in HALF:
        return value
    return compute(aten._to_copy.default, (value,), {"dtype": torch.float32}, fake_mode_of(value))


def _cast_before(returned: fx.Node, node: fx.Node, own: fx.Node | None, dtype: torch.dtype) -> None:
    """What is returned in the dtype it had: a view of an argument as it is, all else cast."""
    new = own
    if new is None:
        with returned.graph.inserting_before(returned):
            new = emit(returned.graph, aten._to_copy.default, (node,), {"dtype": dtype}, node)
    returned.replace_input_with(node, new)
