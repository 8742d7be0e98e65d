"""Resolves every node of a captured graph to the base node whose memory it looks at.

In: a ``Capture``. Out: for each node its ``View``, for each base how its rows lie in memory.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from adaflex.codegen.classify import SPLITS, SUMS, kind_of, op_name
from adaflex.codegen.views import View, apply, contiguous_strides
from adaflex.passes.capture import Capture, size_of
from adaflex.runtime.region import Size, plus, product, times


class ViewGraph:
    """Views by node, worked out once each."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self._views: dict[fx.Node, View] = {}

    def base_of(self, node: fx.Node) -> fx.Node:
        """The node whose memory ``node`` looks at; itself where it has its own."""
        return self.of(node).node

    def of(self, node: fx.Node) -> View:
        """``node`` as a view of its base."""
        if node not in self._views:
            kind = kind_of(node)
            view = None
            if kind == "view":
                view = self._view(node)
            elif kind == "split":
                view = self._split(node)
            self._views[node] = view or self._own(node, kind)
        return self._views[node]

    def physical(self, base: fx.Node) -> tuple[Size, Size]:
        """Rows and columns of a base's memory."""
        kind = kind_of(base)
        shape = self.capture.sizes(base)
        if kind == "view" and base.args:  # a copy is stored as the view it was made from is walked
            source = base.args[0]
            assert isinstance(source, fx.Node)
            shape = self.of(source).shape
        if kind == "attention":
            batch, heads, length, width = shape
            return times(batch, length), times(heads, width)
        if not shape:
            return 1, 1
        if kind == "reduce" and op_name(base) in SUMS and not _keeps_axis(base):
            return product(shape), 1  # one number for each row of what was reduced
        return product(shape[:-1]), shape[-1]

    def _own(self, node: fx.Node, kind: str) -> View:
        if kind in ("size", "output"):
            return View(node, (), ())
        try:
            shape = self.capture.sizes(node)
        except (KeyError, AttributeError):
            return View(node, (), ())
        if kind == "attention":  # stored token by token: the heads of a token side by side
            _, heads, length, width = shape
            row = times(heads, width)
            return View(node, shape, (times(length, row), width, row, 1))
        return View(node, shape, contiguous_strides(shape))

    def _view(self, node: fx.Node) -> View | None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        args = [self._plain(a) for a in node.args[1:]]
        return apply(op_name(node), self.of(source), args, self.capture.sizes(node))

    def _plain(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return size_of(argument.meta["val"], self.capture.symbol_names)
        if isinstance(argument, list | tuple):
            return [self._plain(a) for a in argument]
        return argument

    def _split(self, node: fx.Node) -> View | None:
        """One piece of a split tensor: a slice of it."""
        if op_name(node) in SPLITS:
            return View(node, (), ())
        pieces, place = node.args
        assert isinstance(pieces, fx.Node) and isinstance(place, int)
        source = pieces.args[0]
        assert isinstance(source, fx.Node)
        view = self.of(source)
        name = op_name(pieces)
        default = 1 if name == "unbind" else 2
        given = pieces.args[default] if len(pieces.args) > default else pieces.kwargs.get("dim", 0)
        axis = int(given) % len(view.shape)  # type: ignore[arg-type]
        if name == "unbind":
            return apply("select", view, (axis, place), ())
        start: Size = 0
        values = pieces.meta["val"]
        for earlier in range(place % len(values)):
            start = plus(start, size_of(values[earlier].shape[axis], self.capture.symbol_names))
        shape = self.capture.sizes(node)
        offset = plus(view.offset, times(start, view.strides[axis]))
        return View(view.node, shape, view.strides, offset)


def _keeps_axis(node: fx.Node) -> bool:
    """Does a sum keep the axis that it sums over, with size 1?"""
    return bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
