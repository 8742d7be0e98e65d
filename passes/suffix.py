"""Runs only what follows a changed layer: the values before it are computed once for all changes.

In: a Capture, one set of weights and several calls. Out: ``Cursor``, which stands before a node and holds the values
that are alive there, one set per call; from there it runs to the end with some nodes computed otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.fx.node import map_arg

from adaflex.passes.capture import Capture, Weights
from adaflex.passes.windows import WINDOWS


@dataclass(frozen=True)
class _Later:
    """A call that is made whenever its result is read."""

    target: Callable[..., Any]
    args: tuple[Any, ...]


class Values(dict[fx.Node, Any]):
    """Values by node. Patches are made when they are read: held, they would be as many times their image as a window
    has taps, for every call at once."""

    def __getitem__(self, node: fx.Node) -> Any:
        value = super().__getitem__(node)
        return value.target(*value.args) if isinstance(value, _Later) else value


Change: TypeAlias = Callable[[Values], Any]
"""Computes a node's value from the values alive before it."""


class Cursor:
    """Stands before node ``position`` of the graph, for every call at once."""

    def __init__(self, capture: Capture, weights: Weights, calls: Sequence[Sequence[Any]]) -> None:
        self.module = capture.graph
        self.nodes: list[fx.Node] = list(capture.graph.graph.nodes)
        self.place = {node.name: index for index, node in enumerate(self.nodes)}
        self.position = len(capture.constants) + len(capture.inputs)
        self._dead = _last_uses(self.nodes)
        placeholders = self.nodes[: self.position]
        self.values = [Values(zip(placeholders, (*weights, *call), strict=True)) for call in calls]

    def node(self, name: str) -> fx.Node:
        """The node of that name."""
        return self.nodes[self.place[name]]

    def advance(self, name: str) -> None:
        """Stand before the node of that name; KeyError where it is unknown, ValueError where it lies behind."""
        goal = self.place[name]
        if goal < self.position:
            raise ValueError(f"node {name} lies before the cursor")
        with torch.no_grad():
            for values in self.values:
                for index in range(self.position, goal):
                    self._step(index, values, {})
        self.position = goal

    def ahead(self, name: str) -> list[Values]:
        """The values alive before the node of that name, for every call; the cursor stays where it is."""
        found = [Values(values) for values in self.values]
        with torch.no_grad():
            for values in found:
                for index in range(self.position, self.place[name]):
                    self._step(index, values, {})
        return found

    def run(self, call: int, changes: Mapping[fx.Node, Change]) -> list[Any]:
        """The graph's outputs for one call, with these nodes computed otherwise (none of them behind the cursor)."""
        values = Values(self.values[call])
        with torch.no_grad():
            for index in range(self.position, len(self.nodes) - 1):
                self._step(index, values, changes)
        return [values[each] if isinstance(each, fx.Node) else each for each in _outputs(self.nodes[-1])]

    def _step(self, index: int, values: Values, changes: Mapping[fx.Node, Change]) -> None:
        node = self.nodes[index]
        change = changes.get(node)
        if change is not None:
            values[node] = change(values)
        elif node.target is WINDOWS and node.args[2] == "patches":
            values[node] = _Later(WINDOWS, map_arg(node.args, values.__getitem__))
        else:
            values[node] = evaluate(self.module, node, values)
        for each in self._dead[index]:
            values.pop(each, None)


def evaluate(module: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """One node's value."""
    args = map_arg(node.args, values.__getitem__)
    kwargs = map_arg(node.kwargs, values.__getitem__)
    if node.op == "call_function":
        assert callable(node.target)
        return node.target(*args, **kwargs)
    target: Any = module
    for part in str(node.target).split("."):
        target = getattr(target, part)
    if node.op == "get_attr":
        return target
    return target(*args, **kwargs)


def _outputs(node: fx.Node) -> tuple[Any, ...]:
    (found,) = node.args
    assert isinstance(found, tuple | list)
    return tuple(found)


def _last_uses(nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """For each node, the values that nothing after it reads."""
    last: dict[fx.Node, int] = {}
    for index, node in enumerate(nodes):
        last[node] = index
        for each in node.all_input_nodes:
            last[each] = index
    dead: list[list[fx.Node]] = [[] for _ in nodes]
    for node, index in last.items():
        dead[index].append(node)
    return dead
