"""Blocks that a model can do without: branches between a value and the residual add that joins them again.

In: a Capture and the nodes that use each site. Out: blocks, innermost first. Skipping one replaces its adds by the
value that went around the branch, so the model's own norms stay where they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import fx

from adaflex.passes.capture import Capture

aten = torch.ops.aten
ATTENTION = ("scaled_dot_product_attention", "flash_attention", "softmax")


@dataclass(frozen=True)
class Block:
    """Something that can be skipped, with the sites that are not needed then."""

    id: str  # "<module path>:<kind>", with "#2" and so on where a module has several
    kind: str  # "attention", "mlp", or "layer" for an attention and the mlp after it
    sites: tuple[str, ...]
    adds: tuple[tuple[str, str], ...]  # (add node, the operand it is replaced by)


@dataclass(frozen=True)
class _Branch:
    add: fx.Node
    kept: fx.Node
    nodes: frozenset[fx.Node]


def find_blocks(capture: Capture, uses: Mapping[str, Sequence[str]]) -> tuple[Block, ...]:
    """Branches that hold all uses of at least one site and that nothing else reads; then whole layers."""
    order = list(capture.graph.graph.nodes)
    reach = _Reach(order)
    found: list[Block] = []
    taken: set[str] = set()
    for add in order:
        branch = _branch(add, reach)
        if branch is None:
            continue
        names = {node.name for node in branch.nodes}
        inside = tuple(site for site, users in uses.items() if set(users) <= names)
        partly = any(set(users) & names and not set(users) <= names for users in uses.values())
        if inside and not partly and not taken & set(inside):
            taken |= set(inside)
            found.append(_block(capture, branch, inside, uses))
    return _named_apart([*found, *_layers(found)])


def bypass(by_name: dict[str, fx.Node], blocks: Sequence[Block], skipped: Collection[str]) -> None:
    """Replace the adds of skipped blocks by the operands that go around, in place; KeyError for an unknown block.

    ``by_name`` maps names of the captured graph to nodes, and to what stands for them afterwards. What only the blocks
    computed is erased, random ops (attention with dropout 0) included.
    """
    known = {block.id: block for block in blocks}
    around = dict(pair for name in skipped for pair in known[name].adds)
    for name in [each for each in by_name if each in around]:  # in the graph's order: a kept operand may be an add
        by_name[name].replace_all_uses_with(by_name[around[name]])
        by_name[name] = by_name[around[name]]
    if around:
        graph = next(iter(by_name.values())).graph
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


class _Reach:
    """Which values are computed from which: a bit set over the nodes' order for each. Sizes carry no values."""

    def __init__(self, order: Sequence[fx.Node]) -> None:
        self.order = order
        self.place = {node: index for index, node in enumerate(order)}
        self.below: dict[fx.Node, int] = {}
        for node in reversed(order):
            bits = 1 << self.place[node]
            for user in () if _is_size(node) else node.users:
                bits |= self.below[user]
            self.below[node] = bits

    def leads(self, first: fx.Node, second: fx.Node) -> bool:
        """Whether ``second`` is ``first`` or computed from it."""
        return bool(self.below[first] >> self.place[second] & 1)

    def between(self, first: fx.Node, last: fx.Node) -> frozenset[fx.Node]:
        """Nodes computed from ``first`` that ``last`` is computed from, ``last`` included and ``first`` not; and the
        sizes of these that only they read."""
        span = self.order[self.place[first] + 1 : self.place[last] + 1]
        found = {node for node in span if self.leads(first, node) and self.leads(node, last)}
        for node in reversed(span):
            if _is_size(node) and found >= set(node.users) and found & set(node.all_input_nodes):
                found.add(node)
        return frozenset(found)


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt)


def _branch(add: fx.Node, reach: _Reach) -> _Branch | None:
    """The add as the end of a residual branch: one operand is computed from the other, and by nothing else read."""
    if add.target is not aten.add.Tensor or add.kwargs or len(add.all_input_nodes) != 2 or len(add.args) != 2:
        return None
    first, second = add.all_input_nodes
    for kept, end in ((first, second), (second, first)):
        if not reach.leads(kept, end) or _shape(kept) != _shape(add):
            continue
        inside = reach.between(kept, end)
        if all(user in inside or user is add for node in inside for user in node.users):
            return _Branch(add, kept, inside)
    return None


def _shape(node: fx.Node) -> tuple[str, ...]:
    value = node.meta.get("val")
    return tuple(str(size) for size in value.shape) if isinstance(value, torch.Tensor) else ("?", node.name)


def _block(capture: Capture, branch: _Branch, inside: Sequence[str], uses: Mapping[str, Sequence[str]]) -> Block:
    attends = any(word in str(node.target) for node in branch.nodes for word in ATTENTION)
    kind = "attention" if attends else "mlp"
    modules = [capture.provenance[use].module for site in inside for use in uses[site] if use in capture.provenance]
    return Block(f"{_common(modules)}:{kind}", kind, tuple(inside), ((branch.add.name, branch.kept.name),))


def _named_apart(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Blocks with ids of their own: the second of a module's branches of one kind is "<module path>:<kind>#2"."""
    counts: dict[str, int] = {}
    made = []
    for block in blocks:
        counts[block.id] = number = counts.get(block.id, 0) + 1
        made.append(block if number == 1 else replace(block, id=f"{block.id}#{number}"))
    return tuple(made)


def _common(paths: Sequence[str]) -> str:
    """The module path that all have in common."""
    split = [path.split(".") for path in paths]
    shared = []
    for words in zip(*split, strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    return ".".join(shared)


def _layers(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """An attention and the mlp right after it, skipped together."""
    made = []
    for first, second in pairwise(blocks):
        if (first.kind, second.kind) == ("attention", "mlp"):
            name = _common([first.id.partition(":")[0], second.id.partition(":")[0]])
            made.append(Block(f"{name}:layer", "layer", first.sites + second.sites, first.adds + second.adds))
    return tuple(made)
