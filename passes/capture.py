"""The captured model: one graph of whole ATen ops, its constants held apart, and what is known of sizes and aliases.

In: made by passes/export_door.py (``from_export``) or passes/dynamo_door.py (``capture_dynamo``). Out: ``Capture``,
read by scoring, rewriting and codegen. No tensor of the model hangs on it: one Capture serves several sets of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx

from adaflex.passes.sizes import OPERATORS, RELATIONS, Guard, Size, evaluate, size_of, symbols_in

__all__ = [
    "OPERATORS",
    "Capture",
    "Constant",
    "Fixed",
    "Input",
    "Mutation",
    "Origin",
    "Output",
    "Size",
    "Symbol",
    "Weights",
    "broken",
    "draws",
    "evaluate",
    "loosen",
    "size_of",
    "sizes",
    "symbols_in",
]

Weights: TypeAlias = tuple[Tensor, ...]
"""One tensor per entry of ``Capture.constants``, in that order: what ``Capture.bind`` returns."""


@dataclass(frozen=True)
class Constant:
    """A tensor that does not change between calls: the model's own, or computed from those by the prologue."""

    node: str  # name of the placeholder
    name: str  # first qualified name; "constant:<n>" for a tensor that the trace itself made
    aliases: tuple[str, ...]  # all qualified names, the first included (tied weights have several)
    storage: int  # identity of the storage: constants that share memory share this number
    size_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    is_parameter: bool
    derived: tuple[str, ...] = ()  # names it is computed from by the prologue; (): the model's own tensor
    item_bytes: int = 0  # of an element as the model holds it, where that is less than ``dtype`` takes; else 0

    @property
    def original_bytes(self) -> int:
        """Bytes as the model itself holds it."""
        return self.size_bytes // self.dtype.itemsize * self.item_bytes if self.item_bytes else self.size_bytes


@dataclass(frozen=True)
class Input:
    """An argument of each call: a tensor, a symbolic int, or a buffer that the model itself changes."""

    node: str
    name: str  # path in the call: "input_ids", "cache.0.1"; a changed buffer's qualified name
    dtype: torch.dtype | None  # None where it is an int
    shape: tuple[Size, ...]  # () where it is an int
    is_symbol: bool = False  # a plain int, its value the symbol ``shape`` cannot give: see ``Symbol.source``
    is_state: bool = False  # a buffer of the model that a call writes back to
    path: tuple[str | int, ...] = ()  # argument name, then keys and indices; () where unknown


@dataclass(frozen=True)
class Fixed:
    """An argument that is no tensor: the graph holds for this value alone."""

    path: tuple[str | int, ...]
    value: Any  # None, bool, int, float or str
    needed: bool  # left out, it would be another value


@dataclass(frozen=True)
class Symbol:
    """A size that may differ from call to call."""

    name: str  # "s0", "s1", ...: as in ``Size``
    low: int | None
    high: int | None  # None: unlimited
    hint: int | None  # its value in the call that was traced
    source: tuple[int, int | None] | None = None  # (input index, dimension); dimension None: the input is the int


@dataclass(frozen=True)
class Output:
    """How one output of the graph arises, mutations included (they come first)."""

    node: str  # "" for a plain value
    kind: Literal["fresh", "alias", "input", "constant", "mutation", "value", "size"]
    index: int | None = None  # of the input or constant it is, aliases or is written back to
    value: Any = None  # None, int, float, bool or str where kind is "value"; the ``Size`` where it is "size"
    shape: tuple[Size, ...] = ()
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Mutation:
    """The value that a call leaves in one of its inputs: ``outputs[output]`` is copied into ``inputs[input]``."""

    node: str
    output: int
    input: int


@dataclass(frozen=True)
class Origin:
    """Where a node comes from: the module's path ("encoder.layer.0.attention") and the user's source line."""

    module: str
    line: str


@dataclass(frozen=True, eq=False)
class Capture:
    """One model as one graph. Placeholders: ``constants`` in order, then ``inputs`` in order.

    Every node keeps ``meta["val"]`` (a fake tensor, symbolic sizes as SymInt). ``prologue`` computes the constants
    from ``sources`` (the model's own tensors) and ``literals`` (small tensors the trace made); its placeholders are
    sources then literals, its outputs the constants. It runs once for each set of weights: see ``bind``.
    """

    graph: fx.GraphModule
    constants: tuple[Constant, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    symbols: tuple[Symbol, ...]
    mutations: tuple[Mutation, ...]
    sources: tuple[Constant, ...]
    prologue: fx.GraphModule
    literals: tuple[Tensor, ...] = ()
    provenance: Mapping[str, Origin] = field(default_factory=dict)
    door: Literal["export", "dynamo"] = "export"
    out_spec: Any = None  # pytree of the outputs after the mutations (export door)
    symbol_names: Mapping[str, str] = field(default_factory=dict)  # torch's symbol -> ours
    positional: tuple[str, ...] = ()  # names of a call's positional arguments; a last "*name" takes the rest
    fixed: tuple[Fixed, ...] = ()  # plain values among the arguments (export door)
    guards: tuple[Guard, ...] = ()  # what sizes must satisfy for the graph to hold (export door)

    def bind(self, tensors: Sequence[Tensor]) -> Weights:
        """The graph's constants for one set of the model's own tensors (aligned with ``sources``): folds are run.

        A constant that is not folded is the very tensor passed in.
        """
        with torch.no_grad():
            return tuple(self.prologue(*tensors, *self.literals))

    def run(self, weights: Weights, inputs: Sequence[Any]) -> list[Any]:
        """All outputs of the graph, mutations first, computed by torch: the reference that others are held against."""
        with torch.no_grad():
            return list(self._loose(*weights, *inputs))

    def run_by(self, interpreter: type[fx.Interpreter], weights: Weights, inputs: Sequence[Any]) -> list[Any]:
        """The same, node by node, by an interpreter that may compute some otherwise."""
        with torch.no_grad():
            return list(interpreter(self._loose).run(*weights, *inputs))

    @cached_property
    def _loose(self) -> fx.GraphModule:
        """The graph with views that work on any strides: arguments and other kernels' results may come transposed."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph.graph, {}))
        return fx.GraphModule({}, loosen(graph))

    def sizes(self, node: fx.Node) -> tuple[Size, ...]:
        """The shape of a node's tensor, symbolic sizes as expressions over ``symbols``."""
        return sizes(node, self.symbol_names)

    def bind_symbols(self, inputs: Sequence[Any]) -> dict[str, int]:
        """Every symbol's value in a call with these inputs."""
        values = {}
        for symbol in self.symbols:
            if symbol.source is not None:
                index, dimension = symbol.source
                given = inputs[index]
                values[symbol.name] = int(given if dimension is None else given.shape[dimension])
        return values


def draws(node: fx.Node) -> bool:
    """Does the node draw random numbers: dropout in training, a sample?"""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    names = [argument.name for argument in target._schema.arguments]
    given = {argument.name: argument.default_value for argument in target._schema.arguments}
    given |= dict(zip(names, node.args, strict=False)) | node.kwargs
    if "dropout_p" in given:
        return bool(given["dropout_p"])
    return given.get("train", given.get("training", True)) is not False


def broken(capture: Capture, inputs: Sequence[Any]) -> Guard | None:
    """The first guard that these inputs' sizes break."""
    values = capture.bind_symbols(inputs) if capture.guards else {}
    for word, left, right in capture.guards:
        if not RELATIONS[word](evaluate(left, values), evaluate(right, values)):
            return word, left, right
    return None


def loosen(graph: fx.Graph) -> fx.Graph:
    """Let every strict ``view`` of the graph become a ``reshape``, in place: for running it with other kernels."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    return graph


def sizes(node: fx.Node, names: Mapping[str, str] | None = None) -> tuple[Size, ...]:
    """The shape of ``node.meta["val"]``; ``names`` is ``Capture.symbol_names`` (``Capture.sizes`` passes it)."""
    return tuple(size_of(size, names) for size in node.meta["val"].shape)
