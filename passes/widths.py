"""Structured width: the neurons between two linears that can be removed, and what is stored of those that stay.

In: a captured graph and its sites; the statistics of a down-projection's input. Out: ``Mlp``s, found by structure
alone: one or two linears over one input, pointwise ops, a linear that alone reads the result. A neuron is a row of the
first ones (and of their biases) and a column of the last; an encoding with sparsity "width:<kept>/<of>" keeps some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor, fx

from adaflex.passes.capture import Capture
from adaflex.passes.repair import Statistics
from adaflex.solver.table import Encoding

SHARES = (Fraction(3, 4), Fraction(1, 2))  # of the neurons, that are offered to be kept
STEP = 32  # neurons: what kernels handle without padding
# How strongly the refit is held to the weights as they were, in mean squares of a neuron. Measured on MiniLM-L6, all
# layers at 3/4 and at 1/2 of their 1,536 neurons, error on texts not fitted on (1,900 rows were): no refit 0.425 /
# 0.645; 0.01: 0.218 / 0.358; 0.03: 0.206 / 0.345; 0.1: 0.199 / 0.340; 0.3: 0.202 / 0.349.
DAMPING = 0.1
PREFIX = "width:"

aten = torch.ops.aten


@dataclass(frozen=True)
class Mlp:
    """Sites whose neurons can be removed together."""

    id: str
    ups: tuple[str, ...]  # one site, or two where one gates the other
    down: str
    neurons: int
    inner: tuple[str, ...]  # nodes between them, each neuron by itself
    biases: tuple[str, ...]  # placeholders of the ups' biases

    @property
    def sites(self) -> tuple[str, ...]:
        """All of them, in graph order."""
        return (*self.ups, self.down)


@dataclass(frozen=True, eq=False)
class Shrunk:
    """What stays of an Mlp."""

    kept: Tensor  # int64, ascending: the neurons
    down: Tensor  # fp32 [out, kept], refitted


def kept_of(encoding: Encoding) -> int | None:
    """How many neurons the encoding keeps; None where it keeps all."""
    text = encoding.sparsity.removeprefix(PREFIX)
    return int(text.partition("/")[0]) if text != encoding.sparsity else None


def dense(encoding: Encoding) -> Encoding:
    """How what is kept is stored."""
    return replace(encoding, sparsity="") if kept_of(encoding) is not None else encoding


def with_width(encoding: Encoding, kept: int, neurons: int) -> Encoding:
    """The encoding of a site that keeps so many neurons."""
    return replace(encoding, sparsity=f"{PREFIX}{kept}/{neurons}")


def widths(neurons: int) -> tuple[int, ...]:
    """The numbers of neurons that are offered to be kept."""
    found = (round(share * neurons / STEP) * STEP for share in SHARES)
    return tuple(dict.fromkeys(kept for kept in found if 0 < kept < neurons))


def shape_of(mlp: Mlp, site: str, shape: Sequence[int], kept: int) -> tuple[int, ...]:
    """The site's [out, in] with so many neurons."""
    return (shape[0], kept) if site == mlp.down else (kept, shape[1])


def shrink(down: Tensor, statistics: Statistics, kept: int) -> Shrunk:
    """Keep the neurons of most energy in the output, E[a²]‖column‖², and refit their columns by least squares.

    ``down`` is [out, in] fp32. The refit minimises ‖A Wᵀ − A_S Vᵀ‖² + λ‖V − W_S‖²: the fewer rows speak for a change,
    the closer V stays to the columns as they were; with too few, or values that are not finite, none is made.
    """
    gram = statistics.gram.double()
    energy = gram.diagonal() * down.double().square().sum(0)
    order = torch.argsort(energy.nan_to_num(0.0), descending=True, stable=True)
    left, gone = order[:kept].sort().values, order[kept:].sort().values
    columns = down[:, left].double()
    if statistics.trusted() and bool(gram.isfinite().all()):
        inner = gram[left][:, left]
        damping = DAMPING * float(inner.diagonal().mean()) + 1e-12
        inner = inner + damping * torch.eye(len(left), dtype=torch.float64)
        missing = down[:, gone].double() @ gram[gone][:, left]
        columns = columns + torch.linalg.solve(inner, missing.T).T
    return Shrunk(left, columns.float())


def find_mlps(capture: Capture, uses: Mapping[str, Sequence[str]]) -> tuple[Mlp, ...]:
    """Every pair of projections that share neurons nothing else reads; a site is in one at most."""
    by_use = {names[0]: site for site, names in uses.items() if len(names) == 1}
    constants = {constant.node for constant in capture.constants}
    found: list[Mlp] = []
    taken: set[str] = set()
    for node in capture.graph.graph.nodes:
        if node.target is aten.linear.default and node.name in by_use:
            mlp = _mlp(node, by_use, constants)
            if mlp is not None and not taken & set(mlp.sites):
                taken |= set(mlp.sites)
                found.append(mlp)
    return tuple(found)


def _mlp(down: fx.Node, by_use: Mapping[str, str], constants: set[str]) -> Mlp | None:
    neurons = _last(down.args[0])
    gathered = _between(down, neurons, by_use)
    if not isinstance(neurons, int) or gathered is None:
        return None
    ups, inner = gathered
    readers = {*inner, down}
    biases = [bias for up in ups if (bias := bias_of(up)) is not None]
    alone = all(set(node.users) <= readers for node in (*ups, *inner))
    own = all(bias.name in constants and len(bias.users) == 1 for bias in biases)
    if not alone or not own or len({up.args[0] for up in ups}) != 1:
        return None
    sites = [by_use[up.name] for up in ups]
    names = (tuple(node.name for node in nodes) for nodes in (inner, biases))
    return Mlp(f"{sites[0]}+{by_use[down.name]}", tuple(sites), by_use[down.name], neurons, *names)


def _between(down: fx.Node, neurons: object, by_use: Mapping[str, str]) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """Linears and pointwise ops that ``down`` reads, in graph order; None where something else has a say."""
    ups: set[fx.Node] = set()
    inner: set[fx.Node] = set()
    todo = [down.args[0]]
    while todo:
        node = todo.pop()
        if not isinstance(node, fx.Node) or node in ups or node in inner:
            continue
        if node.target is aten.linear.default and node.name in by_use and _last(node) == neurons:
            ups.add(node)
        elif _is_pointwise(node) and _last(node) == neurons:
            inner.add(node)
            todo += [each for each in node.all_input_nodes if _last(each) not in (1, None)]
        else:
            return None
    order = [node for node in down.graph.nodes if node in ups or node in inner]
    return [node for node in order if node in ups], [node for node in order if node in inner]


def _is_pointwise(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def bias_of(linear: fx.Node) -> fx.Node | None:
    """The node that a linear adds to its product."""
    bias = linear.args[2] if len(linear.args) > 2 else None
    return bias if isinstance(bias, fx.Node) else None


def _last(node: object) -> object:
    """The last size of a node's tensor; None for scalars and what is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor) or not value.shape:
        return None
    size = value.shape[-1]
    return int(size) if isinstance(size, int) else str(size)
