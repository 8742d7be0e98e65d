"""What there is to decide about in a captured model: its weights, and its residual blocks.

In: a Capture, one set of weights, the menu of kernel families and the machine. Out: ``Sites``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from adaflex.passes.capture import Capture, Constant, Weights
from adaflex.passes.menu import TIED, Machine, Menu
from adaflex.passes.residuals import Block, find_blocks
from adaflex.passes.widths import Mlp, find_mlps, kept_of, shape_of, widths, with_width
from adaflex.solver.table import Encoding, Site

aten = torch.ops.aten
OPS = {aten.linear.default: "linear", aten.embedding.default: "embedding"}


@dataclass(frozen=True)
class Sites:
    """The decisions of one model, in the order in which the model meets them."""

    sites: tuple[Site, ...]
    offers: Mapping[str, tuple[Encoding, ...]]  # site id -> encodings for which a kernel serves every use
    uses: Mapping[str, tuple[str, ...]]  # site id -> names of the graph's nodes
    blocks: tuple[Block, ...] = ()  # what can be skipped
    keep: Mapping[str, Encoding] = field(default_factory=dict)  # site id -> the offer that changes nothing
    source: Mapping[str, tuple[int, bool]] = field(default_factory=dict)  # -> (constant, stored as [in, out])
    siblings: tuple[tuple[str, ...], ...] = ()  # linears that read the same input
    mlps: tuple[Mlp, ...] = ()  # sites whose neurons can be removed together
    notes: tuple[tuple[str, str], ...] = ()  # (site, why it is not offered something)

    def weight(self, weights: Weights, site: str) -> Tensor:
        """The site's weight as [out, in] (or [rows, width]), as the model stores it."""
        constant, turned = self.source[site]
        return weights[constant].t() if turned else weights[constant]

    def mlp(self, site: str) -> Mlp | None:
        """The pair of projections that the site is part of."""
        return next((mlp for mlp in self.mlps if site in mlp.sites), None)

    def shape(self, site: Site, encoding: Encoding) -> tuple[int, ...]:
        """What [out, in] is stored and computed with in this encoding: removed neurons are not."""
        kept, mlp = kept_of(encoding), self.mlp(site.id)
        return site.shape if kept is None or mlp is None else shape_of(mlp, site.id, site.shape, kept)


@dataclass(frozen=True)
class _Use:
    node: fx.Node
    op: str
    constant: int
    turned: bool


def find_sites(capture: Capture, weights: Weights, menu: Menu, machine: Machine) -> Sites:
    """All weights that some family can store differently, and what each is offered; then blocks and siblings.

    Tied weights (one storage) are one site with several uses, offered only what serves every use. A weight with NaN or
    Inf keeps its form, and so does one that the graph also uses otherwise; ``notes`` names both.
    """
    groups, notes = _by_storage(capture, weights)
    made: dict[str, tuple[Site, list[_Use]]] = {}
    offered = {}
    for uses in groups:
        site = _site(capture, uses, made)
        offered[site.id] = _offers(site, menu, machine)
        if any(encoding.bits >= 16 for encoding in offered[site.id]):
            made[site.id] = (site, uses)
        else:
            notes.append((site.id, f"no kernel family serves {site.op}"))
    offers, keep = {}, {}
    for site, uses in made.values():
        found = offered[site.id]
        keep[site.id] = next(encoding for encoding in found if encoding.bits >= 16)
        if not bool(weights[uses[0].constant].isfinite().all()):
            notes.append((site.id, "holds NaN or Inf: it keeps its form"))
            found = (keep[site.id],)
        offers[site.id] = found
    nodes = {name: tuple(use.node.name for use in uses) for name, (_, uses) in made.items()}
    blocks, mlps = find_blocks(capture, nodes), find_mlps(capture, nodes)
    mlps = tuple(mlp for mlp in mlps if all(len(offers[name]) > 1 for name in mlp.sites))
    return Sites(
        sites=tuple(_in_block(site, blocks) for site, _ in made.values()),
        offers=offers,
        uses=nodes,
        blocks=blocks,
        keep=keep,
        source={name: (uses[0].constant, uses[0].turned) for name, (_, uses) in made.items()},
        siblings=_siblings(made),
        mlps=mlps,
        notes=tuple(notes),
    )


def with_widths(sites: Sites, menu: Menu, machine: Machine) -> Sites:
    """The sites with what each is offered with fewer neurons as well: a choice that all sites of an mlp share."""
    offers = dict(sites.offers)
    for site in sites.sites:
        mlp = sites.mlp(site.id)
        if mlp is not None:
            offers[site.id] += _narrower(site, mlp, menu, machine)
    return replace(sites, offers=offers)


def _by_storage(capture: Capture, weights: Weights) -> tuple[list[list[_Use]], list[tuple[str, str]]]:
    """Uses grouped by the weight's memory, in graph order; weights that cannot be sites are noted."""
    places = {constant.node: index for index, constant in enumerate(capture.constants)}
    found: dict[tuple[int, ...], list[_Use]] = defaultdict(list)
    notes: list[tuple[str, str]] = []
    for node in capture.graph.graph.nodes:
        use = _use(node, places)
        if use is None:
            continue
        reason = _unserved(node)
        if reason:
            notes.append((capture.constants[use.constant].name, reason))
        else:
            found[_memory(weights[use.constant])].append(use)
    kept = []
    for uses in found.values():
        reason = _unfit(capture, weights, uses, list(found))
        if reason:
            notes.append((capture.constants[uses[0].constant].name, reason))
        else:
            kept.append(uses)
    return kept, notes


def _use(node: fx.Node, places: Mapping[str, int]) -> _Use | None:
    """The node as a use of a constant weight matrix; None where it is something else."""
    if node.op != "call_function" or node.target not in OPS:
        return None
    op = OPS[node.target]
    weight = node.args[0 if op == "embedding" else 1]
    assert isinstance(weight, fx.Node)
    turned = op == "linear" and weight.target is aten.t.default
    if turned:
        weight = weight.all_input_nodes[0]
    if weight.name not in places or len(weight.meta["val"].shape) != 2:
        return None
    return _Use(node, op, places[weight.name], turned)


def _unserved(node: fx.Node) -> str:
    """Why torch runs this use itself, with the weight as it is; "" where kernels are ours."""
    rows, made = node.args[0 if node.target is aten.linear.default else 1], node.meta["val"]
    assert isinstance(rows, fx.Node)
    if made.dtype != torch.float32:
        return f"gives {made.dtype}: kernels give torch.float32"
    if rows.meta["val"].dim() == 0 or any(isinstance(size, int) and size == 0 for size in made.shape):
        return "is used on a single number or on nothing at all"
    return ""


def _memory(tensor: Tensor) -> tuple[int, ...]:
    """Equal for tensors that are the same view of the same memory."""
    return (tensor.data_ptr(), *tensor.shape, *tensor.stride())


def _unfit(capture: Capture, weights: Weights, uses: list[_Use], all_memory: list[tuple[int, ...]]) -> str:
    """Why these uses cannot be one site; "" where they can."""
    if len({use.turned for use in uses}) > 1:
        return "is used both as it is and transposed"
    first = weights[uses[0].constant]
    end = first.data_ptr() + first.numel() * first.element_size()
    own = _memory(first)
    if any(first.data_ptr() <= other[0] < end and other != own for other in all_memory):
        return "overlaps another weight in memory"
    readers = {use.node for use in uses}
    names = {capture.constants[use.constant].node for use in uses}
    for node in capture.graph.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            for user in node.users:
                if user not in readers and not (user.target is aten.t.default and set(user.users) <= readers):
                    return "is also used by " + str(user.target)
    return ""


def _site(capture: Capture, uses: list[_Use], made: Mapping[str, object]) -> Site:
    constant: Constant = capture.constants[uses[0].constant]
    name = constant.name
    while name in made:  # two slices of one parameter
        name += "'"
    counts: dict[tuple[str, str], int] = defaultdict(int)
    identities = []
    for use in uses:
        origin = capture.provenance.get(use.node.name)
        key = (origin.module if origin else "", use.op)
        identities.append(f"{key[0]}:{key[1]}:{counts[key]}")
        counts[key] += 1
    shape = constant.shape[::-1] if uses[0].turned else constant.shape
    op = "+".join(sorted({use.op for use in uses}))
    return Site(name, op, shape[0] * shape[1], constant.original_bytes, tuple(identities), "", tuple(shape))


def _offers(site: Site, menu: Menu, machine: Machine) -> tuple[Encoding, ...]:
    """Every family's offers."""
    if site.op == TIED and machine.device != "cpu":
        return ()  # a device stores a product's weight as its templates read it: no rows can be picked from that
    return tuple(encoding for entry in menu if site.op in entry.ops for encoding in entry.offers(site, machine))


def _narrower(site: Site, mlp: Mlp, menu: Menu, machine: Machine) -> tuple[Encoding, ...]:
    """What the site is offered with fewer neurons."""
    found: list[Encoding] = []
    for kept in widths(mlp.neurons):
        small = replace(site, shape=shape_of(mlp, site.id, site.shape, kept))
        found += [with_width(each, kept, mlp.neurons) for each in _offers(small, menu, machine)]
    return tuple(found)


def _in_block(site: Site, blocks: tuple[Block, ...]) -> Site:
    inside = [block for block in blocks if site.id in block.sites]
    name = min(inside, key=lambda block: len(block.sites)).id if inside else ""
    return Site(site.id, site.op, site.weight_count, site.original_bytes, site.uses, name, site.shape)


def _siblings(made: Mapping[str, tuple[Site, list[_Use]]]) -> tuple[tuple[str, ...], ...]:
    """Sites of one use each that are linears over the same input."""
    readers: dict[object, list[str]] = defaultdict(list)
    for name, (site, uses) in made.items():
        if site.op == "linear" and len(uses) == 1:
            readers[uses[0].node.args[0]].append(name)
    return tuple(tuple(names) for names in readers.values() if len(names) > 1)
