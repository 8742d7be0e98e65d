"""Small helpers of the clean-up passes: asking about nodes, making and replacing them, matching patterns.

In: an ``fx.Graph`` of ATen ops whose nodes carry ``meta["val"]``. Out: the same graph, edited in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from adaflex.passes.torch_compat import fake_mode_of

aten = torch.ops.aten
Pass: TypeAlias = Callable[[fx.Graph], int]
"""Edits a graph in place, returns how many places it changed."""

COPIED = ("stack_trace", "nn_module_stack", "source_fn_stack", "original_aten")


def is_op(node: object, *targets: object) -> bool:
    """Whether the argument is a call of one of these operators."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def tensor_of(node: object) -> Tensor | None:
    """The node's fake tensor; None where it is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def shape_of(node: object) -> tuple[Any, ...]:
    """The node's shape (ints and SymInts); () where it is no tensor."""
    value = tensor_of(node)
    return tuple(value.shape) if value is not None else ()


def same_shape(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal, symbolic sizes compared as expressions."""
    return len(one) == len(other) and all(same_size(a, b) for a, b in zip(one, other, strict=True))


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal; no guard is added."""
    if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt):
        if isinstance(a, int) or isinstance(b, int):
            return False
        return bool(a.node.expr == b.node.expr)
    return bool(a == b)


def fixed_size(size: Any) -> int | None:
    """A size that no call can change, also one that tracing wrote as a symbol first; None for others."""
    if isinstance(size, torch.SymInt):
        value = size.node.expr
        return int(value) if value.is_number else None
    return int(size)


def is_constant(node: object) -> bool:
    """Whether the node is a placeholder of the model's own tensor or of one the trace made."""
    return isinstance(node, fx.Node) and node.op == "placeholder" and node.meta.get("role") in ("source", "literal")


def fixed_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose value no call can change: constants, and pure ops of fixed nodes and numbers only."""
    fixed: set[fx.Node] = set()
    for node in graph.nodes:
        if is_constant(node) or (
            node.op == "call_function" and pure(node) and all(each in fixed for each in node.all_input_nodes)
        ):
            fixed.add(node)
    return fixed


def pure(node: fx.Node) -> bool:
    """Whether the node computes the same result from the same arguments and touches nothing else."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target.__module__ in ("_operator", "operator", "math", "torch") if callable(node.target) else False
    tags = node.target.tags
    return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in tags


def arg(node: fx.Node, index: int, name: str = "", default: Any = None) -> Any:
    """A positional argument, or the keyword of that name, or the default."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def users(node: fx.Node) -> Iterator[fx.Node]:
    """Its users except the output node."""
    return (user for user in node.users if user.op != "output")


def is_output(node: fx.Node) -> bool:
    """Whether the graph returns the node."""
    return any(user.op == "output" for user in node.users)


def emit(graph: fx.Graph, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], like: fx.Node) -> fx.Node:
    """A new call where the graph's insertion point is, with its fake value and the origin of ``like``.

    Raises whatever the operator raises for these shapes (a view that strides do not allow, for instance).
    """
    fake_args, fake_kwargs = fx.node.map_arg((args, dict(kwargs)), lambda node: node.meta["val"])
    value = compute(target, fake_args, fake_kwargs, fake_mode_of(tensor_of(like)))
    node = graph.call_function(target, args, dict(kwargs))
    node.meta.update({key: like.meta[key] for key in COPIED if key in like.meta})
    node.meta["val"] = value
    return node


def compute(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], mode: Any) -> Any:
    """The operator's result on fake arguments: shapes, strides and dtype without data."""
    if mode is None:
        mode = next((fake_mode_of(each) for each in args if fake_mode_of(each) is not None), None)
    if mode is None:
        return target(*args, **kwargs)
    with mode, torch.no_grad():
        return target(*args, **kwargs)


def replace(node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> fx.Node:
    """Put a call of ``target`` in the node's place and erase the node."""
    graph = node.graph
    with graph.inserting_before(node):
        new = emit(graph, target, args, kwargs or {}, node)
    return swap(node, new)


def swap(node: fx.Node, new: fx.Node) -> fx.Node:
    """Let every user of ``node`` use ``new``; erase ``node``."""
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new


# --- patterns ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """Matches any argument and binds it; the same name twice must bind the same node."""

    name: str
    where: Callable[[Any], bool] = lambda _: True


@dataclass(frozen=True)
class Op:
    """Matches a call of one of the operators. ``swaps``: the first two arguments may stand in either order."""

    targets: tuple[Any, ...]
    args: tuple[Any, ...]
    swaps: bool = False


def add(a: Any, b: Any) -> Op:
    return Op((aten.add.Tensor,), (a, b), swaps=True)


def mul(a: Any, b: Any) -> Op:
    return Op((aten.mul.Tensor,), (a, b), swaps=True)


Bound: TypeAlias = dict[str, Any]


def match(pattern: Any, value: Any, bound: Bound | None = None) -> Bound | None:
    """What the pattern's names stand for in ``value``, or None. Numbers match within one part in 10 000."""
    return next(_matches(pattern, value, bound or {}), None)


def _matches(pattern: Any, value: Any, bound: Bound) -> Iterator[Bound]:
    if isinstance(pattern, Slot):
        if pattern.name in bound:
            if bound[pattern.name] is value:
                yield bound
        elif pattern.where(value):
            yield {**bound, pattern.name: value}
    elif isinstance(pattern, tuple):
        for choice in pattern:
            yield from _matches(choice, value, bound)
    elif isinstance(pattern, Op):
        if is_op(value, *pattern.targets) and len(value.args) >= len(pattern.args) and not _alpha(value):
            yield from _all(pattern.args, value.args, bound)
            if pattern.swaps:
                yield from _all((pattern.args[1], pattern.args[0]), value.args, bound)
    elif isinstance(pattern, float | int) and not isinstance(pattern, bool):
        number = number_of(value)
        if number is not None and abs(number - pattern) <= 1e-4 * abs(pattern):
            yield bound
    elif pattern == value:
        yield bound


def _all(patterns: Sequence[Any], values: Sequence[Any], bound: Bound) -> Iterator[Bound]:
    if not patterns:
        yield bound
        return
    for first in _matches(patterns[0], values[0], bound):
        yield from _all(patterns[1:], values[1:], first)


def _alpha(node: fx.Node) -> bool:
    return bool(node.kwargs.get("alpha", 1) != 1)


def number_of(value: Any) -> float | None:
    """A Python number, or the value of a one-element ``full``; None for anything else."""
    if isinstance(value, float | int):
        return float(value)
    if is_op(value, aten.full.default) and not arg(value, 0) and isinstance(value.args[1], float | int):
        return float(value.args[1])
    return None
