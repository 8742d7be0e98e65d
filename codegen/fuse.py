"""Groups the nodes of a captured graph into units of work: one region, template or library op each.

In: a ``Capture``'s graph with its constants marked. Out: ``Unit``s in an order in which they can run.

A pointwise node joins the unit of one of its arguments when both walk the same rows and columns and nothing else it
needs depends on that unit. Row reductions join row units; products and attention are units of their own, and what is
pointwise after a product becomes its epilogue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import fx

from adaflex.codegen.classify import SPLITS, kind_of, linear_of, op_name
from adaflex.codegen.sizes import same
from adaflex.runtime.region import Size

Sizes = Callable[[fx.Node], tuple[Size, ...]]


@dataclass
class Unit:
    """A region in the making. ``space`` is the shape it walks: rows are all but the last axis."""

    number: int
    kind: str  # "rows", "fold", "linear", "attention", "window", "library", "copy"
    space: tuple[Size, ...]
    nodes: list[fx.Node]
    needs: set[int] = field(default_factory=set)


class Fuser:
    """Walks the graph once, front to back."""

    def __init__(self, graph: fx.Graph, sizes: Sizes, base_of: Callable[[fx.Node], fx.Node]) -> None:
        self.sizes, self.base_of = sizes, base_of
        self.kinds = {node: kind_of(node) for node in graph.nodes}
        self.units: list[Unit] = []
        self.unit_of: dict[fx.Node, Unit] = {}
        self.graph = graph

    def run(self) -> list[Unit]:
        """All units, in an order in which they can run."""
        for node in self.graph.nodes:
            kind = self.kinds[node]
            if kind in ("linear", "attention", "window", "library"):
                self._open(kind, node, self.sizes(node) if kind == "linear" else ())
            elif kind in ("view", "split") and self.base_of(node) is node and op_name(node) not in SPLITS:
                self._open("copy", node, ())
            elif kind == "fold":
                self._fold(node)
            elif kind in ("point", "reduce", "embedding"):
                self._place(node, kind)
        return self._ordered()

    def _open(self, kind: str, node: fx.Node, space: tuple[Size, ...]) -> Unit:
        unit = Unit(len(self.units), kind, space, [])
        self.units.append(unit)
        self._join(unit, node)
        return unit

    def _join(self, unit: Unit, node: fx.Node) -> None:
        unit.nodes.append(node)
        self.unit_of[node] = unit
        unit.needs |= {other.number for other in self._sources(node) if other is not unit}

    def _sources(self, node: fx.Node) -> list[Unit]:
        """The units whose results ``node`` reads."""
        inputs = _inputs(node, self.kinds[node])
        bases = [self.base_of(argument) for argument in inputs]
        return [self.unit_of[base] for base in bases if base in self.unit_of]

    def _place(self, node: fx.Node, kind: str) -> None:
        if kind != "embedding":
            for unit in sorted(self._direct(node), key=lambda unit: -unit.number):
                if self._fits(node, kind, unit):
                    self._join(unit, node)
                    return
        argument = node.args[0]
        space = self.sizes(argument) if kind == "reduce" and isinstance(argument, fx.Node) else self.sizes(node)
        self._open("rows", node, space)

    def _direct(self, node: fx.Node) -> list[Unit]:
        """Units that hold an argument of ``node`` itself, not behind a view."""
        return list({id(u): u for u in (self.unit_of.get(a) for a in node.all_input_nodes) if u is not None}.values())

    def _fits(self, node: fx.Node, kind: str, unit: Unit) -> bool:
        if unit.kind not in ("rows", "linear") or (unit.kind == "linear" and kind == "reduce"):
            return False
        inside = [a for a in node.all_input_nodes if self.unit_of.get(a) is unit]
        if not all(self._is_spread_row(a, unit) for a in node.all_input_nodes if self._looks_into(a, unit)):
            return False
        shape = self.sizes(node)
        if kind == "reduce":
            first = node.args[0]
            if not isinstance(first, fx.Node) or first not in inside or not _equal(self.sizes(first), unit.space):
                return False
        elif not _equal(shape, unit.space) and not (unit.kind == "rows" and _per_row(shape, unit.space)):
            return False
        if any(not _equal(self.sizes(a), unit.space) and not _per_row(self.sizes(a), unit.space) for a in inside):
            return False
        if (
            kind != "reduce"
            and not _equal(shape, unit.space)
            and any(_equal(self.sizes(a), unit.space) for a in inside)
        ):
            return False
        return not any(self._depends(other, unit) for other in self._sources(node) if other is not unit)

    def _looks_into(self, argument: fx.Node, unit: Unit) -> bool:
        """Is the argument a view of something that the unit computes?"""
        return argument not in self.unit_of and self.unit_of.get(self.base_of(argument)) is unit

    def _is_spread_row(self, argument: fx.Node, unit: Unit) -> bool:
        """Is the view one value per row, expanded over the columns? That is the value itself inside the region."""
        base = self.base_of(argument)
        expands = op_name(argument) == "expand" and argument.args[0] is base
        return expands and _per_row(self.sizes(base), unit.space) and _equal(self.sizes(argument), unit.space)

    def _depends(self, unit: Unit, on: Unit) -> bool:
        stack, seen = [unit.number], set()
        while stack:
            number = stack.pop()
            if number == on.number:
                return True
            if number not in seen:
                seen.add(number)
                stack.extend(self.units[number].needs)
        return False

    def _fold(self, node: fx.Node) -> None:
        """A reduction over an axis that is not the last; a pointwise node that only feeds it is computed on the way."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        own = self.unit_of.get(source)
        alone = own is not None and own.kind == "rows" and own.nodes == [source] and len(source.users) == 1
        if alone and own is not None and self.kinds[source] == "point" and _equal(self.sizes(source), own.space):
            own.kind = "fold"
            self._join(own, node)
        else:
            self._open("fold", node, self.sizes(source))

    def _ordered(self) -> list[Unit]:
        place = {node: k for k, node in enumerate(self.graph.nodes)}
        rank = {unit.number: max(place[node] for node in unit.nodes) for unit in self.units}
        done: set[int] = set()
        order: list[Unit] = []

        def visit(unit: Unit) -> None:
            stack = [unit]
            while stack:
                top = stack[-1]
                open_needs = [self.units[n] for n in sorted(top.needs, key=rank.__getitem__) if n not in done]
                if top.number in done or not open_needs:
                    stack.pop()
                    if top.number not in done:
                        done.add(top.number)
                        order.append(top)
                else:
                    stack.append(open_needs[0])

        for unit in sorted(self.units, key=lambda unit: rank[unit.number]):
            visit(unit)
        return order


def _inputs(node: fx.Node, kind: str) -> Iterable[fx.Node]:
    """The tensors a node reads; the weight of a linear is packed, not read."""
    parts = linear_of(node) if kind == "linear" else None
    if parts is None:
        return node.all_input_nodes
    return [parts.x] if parts.bias is None else [parts.x, parts.bias]


def _equal(left: tuple[Size, ...], right: tuple[Size, ...]) -> bool:
    return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))


def _per_row(shape: tuple[Size, ...], space: tuple[Size, ...]) -> bool:
    """One value per row of ``space``: the last axis is 1."""
    return len(shape) == len(space) and len(shape) > 0 and shape[-1] == 1 and _equal(shape[:-1], space[:-1])
