"""Recompute every node's fake value after edits, and put a clone before a view that the new strides do not allow.

In: an ``fx.Graph`` with some values out of date. Out: the same graph with ``meta["val"]`` right everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from adaflex.passes.clean.tools import aten, compute, emit, is_op, same_shape, tensor_of
from adaflex.passes.torch_compat import fake_mode_of


def values(graph: fx.Graph) -> int:
    """Run the graph on its fake inputs. Graphs with sizes that depend on data keep the values they have."""
    mode = next((fake_mode_of(tensor_of(node)) for node in graph.nodes if fake_mode_of(tensor_of(node))), None)
    if mode is None or any(_depends_on_data(node.meta.get("val")) for node in graph.nodes):
        return 0
    count = 0
    for node in list(graph.nodes):
        if node.op == "call_function":
            count += _refresh(node, mode)
    return count


def _refresh(node: fx.Node, mode: Any) -> int:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    try:
        _renew(node, compute(node.target, args, kwargs, mode))
    except Exception:
        # some composites cannot run on symbolic sizes outside of a trace; only a view's strides matter here
        if is_op(node, aten.view.default):
            _clone_first(node, args, kwargs, mode)
            return 1
    return 0


def _clone_first(node: fx.Node, args: Any, kwargs: Any, mode: Any) -> None:
    with node.graph.inserting_before(node):
        whole = emit(node.graph, aten.clone.default, node.args[:1], _CONTIGUOUS, node)
    node.update_arg(0, whole)
    _renew(node, compute(node.target, (whole.meta["val"], *args[1:]), kwargs, mode))


def _renew(node: fx.Node, value: Any) -> None:
    """Take the new value where its shape is the old one: edits keep shapes, what differs was decided by a hint."""
    old = tensor_of(node)
    if old is None or (isinstance(value, torch.Tensor) and same_shape(old.shape, value.shape)):
        node.meta["val"] = value


_CONTIGUOUS = {"memory_format": torch.contiguous_format}


def _depends_on_data(value: Any) -> bool:
    sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
    symbolic = [size for size in sizes if isinstance(size, torch.SymInt)]
    return any(str(symbol).startswith("u") for size in symbolic for symbol in size.node.expr.free_symbols)
