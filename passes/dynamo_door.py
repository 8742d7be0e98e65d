"""The torch.compile door: what Dynamo hands to a backend, traced ahead of time, to a Capture and a way to call it.

In: Dynamo's graph module and real example inputs, inside a backend. Out: ``DynamoCapture``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from adaflex.errors import CaptureError
from adaflex.passes.arguments import call_signature, place_of, positional_names
from adaflex.passes.assemble import Argument, assemble
from adaflex.passes.assemble import Traced as Assembly
from adaflex.passes.capture import Capture
from adaflex.passes.export_door import qualified_names
from adaflex.passes.torch_compat import Source, argument_sources, real_tensors, trace

Run = Callable[[tuple[Tensor, ...], tuple[Any, ...]], Sequence[Any]]
"""(the model's own tensors aligned with ``Capture.sources``, the call's inputs) -> every output of the graph."""


@dataclass(frozen=True, eq=False)
class DynamoCapture:
    """A capture, the tensors it was made with, and the call that Dynamo wants back."""

    capture: Capture
    tensors: tuple[Tensor, ...]  # the model's own, aligned with ``capture.sources``: hold them weakly
    input_sources: tuple[Source, ...]  # where each input of the capture comes from in the user's call
    make_callable: Callable[[Run], Callable[..., Any]]
    """Wraps ``run``: mutations are written back, aliases of inputs rebuilt, a tuple returned."""


def capture_dynamo(
    module: fx.GraphModule, example_inputs: Sequence[Any], root: nn.Module | None = None, name: str = "graph"
) -> DynamoCapture:
    """Capture what Dynamo traced. ``root`` gives the constants their qualified names; else Dynamo's sources do.

    Exceptions of torch pass through untouched: Dynamo uses some of them to start the trace again.
    """
    sources = argument_sources(module)
    slot: list[Callable[[list[Any]], Sequence[Any]]] = []
    compiled, traced = trace(module, example_inputs, lambda arguments: slot[0](arguments))
    placeholders = [node for node in traced.graph.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(example_inputs):
        raise CaptureError(
            f"the traced graph has {len(placeholders)} inputs and the model {len(example_inputs)}: tensor subclasses, "
            "inputs that share memory and are written to, and functions that check their result (torch.linalg.solve) "
            "are not supported; compile the modules around them"
        )
    fixed = set(traced.static) - set(traced.mutated)
    names = {} if root is None else qualified_names(root)
    with real_tensors():
        arguments = {
            node.name: _argument(value, sources[index], index in fixed, names, root)
            for index, (node, value) in enumerate(zip(placeholders, example_inputs, strict=True))
        }
        _read_sizes(traced.graph.graph, arguments)
        _lift_attributes(traced.graph, arguments)
        order = [node.name for node in placeholders if arguments[node.name].role in ("input", "state")]
        mutations = {index: placeholders[at].name for index, at in enumerate(traced.mutated)}
        capture, tensors = assemble(Assembly(traced.graph.graph, arguments, mutations, "dynamo", name, None, order))
        capture = replace(capture, positional=() if root is None else positional_names(root))
    position = {node.name: index for index, node in enumerate(placeholders)}
    pick_tensors = _picker([position[each.node] for each in capture.sources])
    pick_inputs = _picker([position[name] for name in order])

    def make_callable(run: Run) -> Callable[..., Any]:
        slot[:] = [lambda arguments: run(pick_tensors(arguments), pick_inputs(arguments))]
        return compiled

    return DynamoCapture(capture, tensors, tuple(sources[position[name]] for name in order), make_callable)


def _argument(
    value: Any, source: Source, fixed: bool, names: Mapping[int, tuple[str, ...]], root: nn.Module | None
) -> Argument:
    own = names.get(id(value), (source.name(),))
    if isinstance(value, Tensor) and fixed:
        if value.device.type == "meta":
            raise CaptureError(f"'{own[0]}' is on the meta device and has no values: load the weights first")
        return Argument("source", own[0], own, value, isinstance(value, nn.Parameter))
    if id(value) in names:
        return Argument("state", own[0], own, value)
    if isinstance(value, Tensor | torch.SymInt | int):
        path = call_path(source, root)
        return Argument("input", ".".join(map(str, path)) or source.text, path=path)
    raise CaptureError(f"input {source.text} is a {type(value).__name__}: only tensors and ints can be inputs")


def call_path(source: Source, root: nn.Module | None) -> tuple[str | int, ...]:
    """Where a source stands in the user's call: argument name, then keys; () where it is no part of the call.

    Libraries wrap ``forward`` in functions of ``*args`` and ``**kwargs``: those names are looked through.
    """
    path = tuple(key for kind, key in source.steps if kind != "size" and isinstance(key, str | int))
    if (
        not source.steps
        or source.steps[0][0] != "local"
        or len(path) != len([s for s in source.steps if s[0] != "size"])
    ):
        return ()
    if root is None or len(path) < 2:
        return path
    kind = {each.name: each.kind for each in call_signature(root).parameters.values()}.get(str(path[0]))
    if kind == inspect.Parameter.VAR_KEYWORD:
        return path[1:]
    if kind == inspect.Parameter.VAR_POSITIONAL and isinstance(path[1], int):
        own = [each for each in call_signature(root).parameters.values() if each.kind <= each.POSITIONAL_OR_KEYWORD]
        return (*place_of(positional_names(root), len(own) - 1 + path[1]), *path[2:])  # the first is self
    return path


def _read_sizes(graph: fx.Graph, arguments: dict[str, Argument]) -> None:
    """Sizes that Dynamo passes as ints are read from a tensor argument that has them, as in the other door."""
    where: dict[Any, tuple[fx.Node, int]] = {}
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    for node in nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and arguments[node.name].role == "input":
            for axis, length in enumerate(value.shape):
                if isinstance(length, torch.SymInt):
                    where.setdefault(length.node.expr, (node, axis))
    for node in nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) and value.node.expr in where:
            source, axis = where[value.node.expr]
            with graph.inserting_after(nodes[-1]):
                size = graph.call_function(torch.ops.aten.sym_size.int, (source, axis))
            size.meta["val"] = value
            node.replace_all_uses_with(size)
            arguments[node.name] = Argument("skip", arguments[node.name].name)


def _lift_attributes(module: fx.GraphModule, arguments: dict[str, Argument]) -> None:
    """Tensors that tracing attached to the graph (``get_attr``) become placeholders, so that none hangs on it."""
    graph = module.graph
    first = next(iter(graph.nodes))
    for node in [each for each in graph.nodes if each.op == "get_attr"]:
        value = getattr(module, str(node.target), None)
        if not isinstance(value, Tensor):
            users = ", ".join(str(user.target) for user in node.users)
            raise CaptureError(f"operator {users} holds a graph of its own, which is not supported: use torch.where")
        with graph.inserting_before(first):
            lifted = graph.placeholder(f"literal_{len(arguments)}")
        lifted.meta.update(node.meta)
        arguments[lifted.name] = Argument("literal", f"constant:{_literals(arguments)}", (), value)
        node.replace_all_uses_with(lifted)
        graph.erase_node(node)


def _literals(arguments: dict[str, Argument]) -> int:
    return sum(each.role == "literal" for each in arguments.values())


def _picker(positions: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """A fast function that takes these positions out of a list, always as a tuple."""
    if not positions:
        return lambda _: ()
    if len(positions) == 1:
        only = positions[0]
        return lambda values: (values[only],)
    return itemgetter(*positions)
