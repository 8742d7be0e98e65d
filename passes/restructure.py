"""The captured model without what a plan leaves out: skipped blocks, removed neurons, and what only they needed.

In: a ``Capture``, its ``Sites``, a ``Decision``. Out: ``Restructured``: a Capture and Sites of what is left, which
lowering takes as it takes any other. Inputs, symbols and the number of outputs stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, fx

from adaflex.passes.assemble import output_of
from adaflex.passes.capture import Capture, Constant, Output, Weights, evaluate
from adaflex.passes.clean.remove import dead_code
from adaflex.passes.decision import Decision
from adaflex.passes.residuals import Block, bypass
from adaflex.passes.sites import Sites
from adaflex.passes.widths import Mlp, kept_of, shape_of


@dataclass(frozen=True, eq=False)
class Restructured:
    """A smaller model, and where its constants stand in the one it was made of."""

    capture: Capture
    sites: Sites
    places: tuple[int, ...]  # for each constant its index in the original
    cut: Mapping[str, str] = field(default_factory=dict)  # node of a bias -> site that says which neurons are kept

    def weights(self, weights: Weights, kept: Mapping[str, Tensor] | None = None) -> Weights:
        """The tensors of the constants that are left; ``kept``: neurons by site, where there are biases to cut.

        Weights of sites are as they were: what ships of them is encoded.
        """
        found = []
        for place, constant in zip(self.places, self.capture.constants, strict=True):
            site = self.cut.get(constant.node)
            found.append(weights[place] if site is None else weights[place][(kept or {})[site]])
        return tuple(found)


def restructure(capture: Capture, sites: Sites, decision: Decision) -> Restructured:
    """The model as the decision shapes it. KeyError for an unknown block."""
    small = Restructured(capture, sites, tuple(range(len(capture.constants))))
    if decision.skipped:
        small = without(capture, sites, decision.skipped)
    narrow = [mlp for mlp in small.sites.mlps if _kept(mlp, decision) is not None]
    return narrowed(small, narrow, decision) if narrow else small


def without(capture: Capture, sites: Sites, skipped: Collection[str]) -> Restructured:
    """The model without these blocks: their adds give what goes around, and what nothing reads any more is dropped."""
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(capture.graph.graph, made))
    by_name = {old.name: new for old, new in made.items()}
    bypass(by_name, sites.blocks, skipped)
    places = _drop_constants(capture, graph, by_name)
    small = _described(capture, graph, places, by_name)
    return Restructured(small, _sites(sites, skipped, places, by_name), places)


def _kept(mlp: Mlp, decision: Decision) -> int | None:
    """How many neurons a decision keeps; ValueError where the mlp's sites do not agree."""
    found = {kept_of(decision.encodings[site]) if site in decision.encodings else None for site in mlp.sites}
    if len(found) > 1:
        raise ValueError(f"the sites of {mlp.id} keep {found} neurons; they must keep the same ones")
    return found.pop()


def narrowed(given: Restructured, mlps: Sequence[Mlp], decision: Decision) -> Restructured:
    """With fewer neurons in these mlps: every shape between their projections shrinks."""
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(given.capture.graph.graph, made))
    by_name = {old.name: new for old, new in made.items()}
    cut: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for mlp in mlps:
        kept = _kept(mlp, decision)
        assert kept is not None
        nodes = [by_name[given.sites.uses[site][0]] for site in mlp.sites]
        for node in [*nodes[:-1], *(by_name[name] for name in mlp.inner)]:
            _resize(node, -1, kept)
        for site, node in zip(mlp.sites, nodes, strict=True):
            _resize_weight(node, 1 if site == mlp.down else 0, kept)
        for name in mlp.biases:
            _resize(by_name[name], 0, kept)
            cut[by_name[name].name] = mlp.ups[0]  # any of them: all keep the same
        shapes |= {s.id: shape_of(mlp, s.id, s.shape, kept) for s in given.sites.sites if s.id in mlp.sites}
    everything = tuple(range(len(given.capture.constants)))
    capture = _described(given.capture, graph, everything, by_name)
    constants = tuple(_resized(each, by_name[each.node]) for each in capture.constants)
    sites = _sites(given.sites, (), everything, by_name)
    sites = replace(sites, sites=tuple(replace(s, shape=shapes.get(s.id, s.shape)) for s in sites.sites))
    return Restructured(replace(capture, constants=constants), sites, given.places, cut)


def _resize(node: fx.Node, axis: int, size: int) -> None:
    """Give the node's fake tensor another size along one axis."""
    value = node.meta["val"]
    shape = list(value.shape)
    shape[axis] = size
    node.meta["val"] = value.new_empty(shape)


def _resize_weight(linear: fx.Node, axis: int, size: int) -> None:
    """The weight of a linear, seen as [out, in], and the constant that it is the transpose of."""
    weight = linear.args[1]
    assert isinstance(weight, fx.Node)
    _resize(weight, axis, size)
    if weight.op != "placeholder":
        _resize(weight.all_input_nodes[0], 1 - axis, size)


def _resized(constant: Constant, node: fx.Node) -> Constant:
    """The constant with its node's shape."""
    shape = tuple(int(size) for size in node.meta["val"].shape)
    return replace(constant, shape=shape, size_bytes=math.prod(shape) * constant.dtype.itemsize)


def _drop_constants(capture: Capture, graph: fx.Graph, by_name: dict[str, fx.Node]) -> tuple[int, ...]:
    """Erase the placeholders of constants that nothing reads; the indices of the others."""
    kept = []
    for index, constant in enumerate(capture.constants):
        node = by_name[constant.node]
        if node.users:
            kept.append(index)
        else:
            graph.erase_node(node)
    return tuple(kept)


def _described(capture: Capture, graph: fx.Graph, places: tuple[int, ...], by_name: dict[str, fx.Node]) -> Capture:
    """The Capture of a changed copy of a captured graph; ``by_name`` maps the old graph's names to its nodes."""
    alive = {node: node.name for node in graph.nodes}
    outputs = _outputs(capture, graph, places)
    return replace(
        capture,
        graph=fx.GraphModule({}, graph),
        constants=tuple(replace(capture.constants[k], node=by_name[capture.constants[k].node].name) for k in places),
        inputs=tuple(replace(entry, node=by_name[entry.node].name) for entry in capture.inputs),
        outputs=outputs,
        mutations=tuple(replace(each, node=outputs[each.output].node) for each in capture.mutations),
        prologue=_prologue(capture, places),
        provenance={alive[by_name[old]]: origin for old, origin in capture.provenance.items() if by_name[old] in alive},
    )


def _outputs(capture: Capture, graph: fx.Graph, places: tuple[int, ...]) -> tuple[Output, ...]:
    """How each output arises now: one that was a skipped add may have become an input."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    place = {node: index for index, node in enumerate(placeholders)}
    found = []
    (values,) = graph.output_node().args
    assert isinstance(values, list | tuple)
    for old, value in zip(capture.outputs, values, strict=True):
        if old.kind == "mutation":
            assert isinstance(value, fx.Node)
            found.append(replace(old, node=value.name))
        else:
            found.append(output_of(value, place, len(places), capture.symbol_names))
    return tuple(found)


def _prologue(capture: Capture, places: tuple[int, ...]) -> fx.GraphModule:
    """The prologue that computes only the constants that are left, from the same sources."""
    graph = fx.Graph()
    values = graph.graph_copy(capture.prologue.graph, {})
    assert isinstance(values, list | tuple)
    graph.output(tuple(values[place] for place in places))
    dead_code(graph)
    return fx.GraphModule({}, graph)


def _sites(sites: Sites, skipped: Collection[str], places: tuple[int, ...], by_name: dict[str, fx.Node]) -> Sites:
    """The sites that are left, and the blocks of which something is."""
    gone = {site for block in sites.blocks if block.id in set(skipped) for site in block.sites}
    new_place = {old: new for new, old in enumerate(places)}
    left = [site.id for site in sites.sites if site.id not in gone]
    siblings = (tuple(name for name in group if name not in gone) for group in sites.siblings)
    return replace(
        sites,
        sites=tuple(site for site in sites.sites if site.id not in gone),
        offers={name: sites.offers[name] for name in left},
        uses={name: tuple(by_name[use].name for use in sites.uses[name]) for name in left},
        blocks=tuple(_moved(block, by_name) for block in sites.blocks if not gone & set(block.sites)),
        keep={name: sites.keep[name] for name in left},
        source={name: (new_place[sites.source[name][0]], sites.source[name][1]) for name in left},
        siblings=tuple(group for group in siblings if len(group) > 1),
        mlps=tuple(_renamed(mlp, by_name) for mlp in sites.mlps if not gone & set(mlp.sites)),
    )


def _renamed(mlp: Mlp, by_name: dict[str, fx.Node]) -> Mlp:
    inner, biases = (tuple(by_name[name].name for name in names) for names in (mlp.inner, mlp.biases))
    return replace(mlp, inner=inner, biases=biases)


def _moved(block: Block, by_name: dict[str, fx.Node]) -> Block:
    return replace(block, adds=tuple((by_name[add].name, by_name[kept].name) for add, kept in block.adds))


def work_of(capture: Capture, sites: Sites, block: Block, values: Mapping[str, int]) -> int:
    """Elements that the block's own ops write, its sites' left out, at sizes ``values`` of the symbols."""
    left = {node.name for node in without(capture, sites, (block.id,)).capture.graph.graph.nodes}
    own = {use for site in block.sites for use in sites.uses[site]}
    gone = [n for n in capture.graph.graph.nodes if n.op == "call_function" and n.name not in left | own]
    tensors = [node for node in gone if isinstance(node.meta.get("val"), Tensor)]
    return sum(math.prod(evaluate(size, values) for size in capture.sizes(node)) for node in tensors)
