"""The captured graph with some of its layers replaced by what was chosen for them, in plain ATen.

In: a Capture, its Sites, the menu, and what each site is stored as or which blocks are skipped. Out: an fx GraphModule
with the same placeholders and outputs, run as ``run(graph, weights, inputs)``. Scoring, explaining, export and the
fuzz oracle all use this one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from adaflex.passes.capture import Capture, Weights
from adaflex.passes.menu import TIED, Encoded, Family, Machine, Menu, family
from adaflex.passes.residuals import bypass
from adaflex.passes.sites import Sites

__all__ = ["TIED", "Encoded", "Family", "Machine", "Menu", "Reference", "arguments_of", "rewrite", "run"]


class Reference(nn.Module):
    """One use of a site as a family computes it; the stored parts are buffers, so that export sees them."""

    def __init__(self, entry: Family, encoded: Encoded) -> None:
        super().__init__()
        self.entry, self.encoding, self.shape = entry, encoded.encoding, encoded.shape
        self.names = tuple(encoded.parts)
        for name, part in encoded.parts.items():
            self.register_buffer(name, part)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        parts = {name: self.get_buffer(name) for name in self.names}
        if TIED in self.entry.ops and not x.is_floating_point():  # row numbers: the table's use
            return F.embedding(x, self.entry.decode(Encoded(self.encoding, self.shape, parts)))
        if bias is not None and "kept" in parts:  # of the neurons that are left
            bias = bias[parts["kept"]]
        if bias is not None and "shift" in parts:  # what rounding takes from the mean output
            bias = bias + parts["shift"].to(bias.dtype)
        return self.entry.reference(x, Encoded(self.encoding, self.shape, parts), bias)


def arguments_of(node: fx.Node) -> tuple[Any, ...]:
    """What a ``Reference`` of this use is called with: (input, bias) of a linear, (indices,) of an embedding."""
    if node.target is torch.ops.aten.embedding.default:
        return (node.args[1],)
    return (node.args[0], node.args[2] if len(node.args) > 2 else None)


def rewrite(
    capture: Capture, sites: Sites, menu: Menu, chosen: Mapping[str, Encoded], skipped: Collection[str] = ()
) -> fx.GraphModule:
    """Replace each use of a chosen site by its reference, and the residual adds of each skipped block by their input.

    ``chosen`` maps site ids to stored weights, ``skipped`` holds ids of ``sites.blocks``. Sites not named stay as they
    are. KeyError for an unknown site, block or family.
    """
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    graph_output = graph.graph_copy(capture.graph.graph, made)
    graph.output(graph_output)
    by_name = {old.name: new for old, new in made.items()}
    root = fx.GraphModule(capture.graph, graph)
    for number, (site, encoded) in enumerate(chosen.items()):
        target = f"reference_{number}"
        root.add_submodule(target, Reference(family(menu, encoded.encoding.family), encoded))
        for use in sites.uses[site]:
            by_name[use] = _replace(root, by_name[use], target)
    bypass(by_name, sites.blocks, skipped)
    root.graph.eliminate_dead_code()
    root.recompile()
    return root


def _replace(root: fx.GraphModule, node: fx.Node, target: str) -> fx.Node:
    with root.graph.inserting_before(node):
        new = root.graph.call_module(target, arguments_of(node))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    return new


def run(graph: fx.GraphModule, weights: Weights, inputs: Sequence[Any]) -> list[Any]:
    """All outputs for one call, mutations first, as ``Capture.run`` gives them."""
    with torch.no_grad():
        return list(graph(*weights, *inputs))
