"""From a traced graph and the tensors behind its placeholders to a ``Capture``: clean, fold, sort, describe.

In: a functional ATen graph, and for each placeholder what it is (``Argument``). Out: ``Capture`` and the model's own
tensors in the order of ``Capture.sources``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, fx

from adaflex.errors import CaptureError
from adaflex.passes.capture import Capture, Constant, Input, Mutation, Origin, Output, Symbol
from adaflex.passes.clean import clean
from adaflex.passes.clean.fold import ancestors, bytes_of, folds
from adaflex.passes.clean.remove import root
from adaflex.passes.clean.tools import is_constant
from adaflex.passes.sizes import Size, size_of
from adaflex.passes.windows import WINDOWS

log = logging.getLogger("adaflex.passes")


@dataclass(frozen=True)
class Argument:
    """What a placeholder of the traced graph is."""

    role: Literal["source", "literal", "input", "state", "skip"]
    name: str
    names: tuple[str, ...] = ()  # all qualified names
    tensor: Tensor | None = None  # of a source, literal or state
    is_parameter: bool = False
    path: tuple[str | int, ...] = ()


@dataclass
class Traced:
    """A traced graph on its way to a Capture."""

    graph: fx.Graph
    arguments: Mapping[str, Argument]  # by placeholder name
    mutations: Mapping[int, str]  # output position -> placeholder that it is written back to
    door: Literal["export", "dynamo"]
    name: str = "graph"
    out_spec: Any = None
    order: list[str] = field(default_factory=list)  # placeholders that are inputs, in the order of a call
    ranges: Mapping[str, Any] = field(default_factory=dict)  # symbol -> range, where the door knows better


def assemble(traced: Traced) -> tuple[Capture, tuple[Tensor, ...]]:
    """Clean the graph, fold what calls cannot change, and describe the result."""
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            role = traced.arguments[node.name].role
            node.meta["role"] = "input" if role == "state" else role
    clean(traced.graph, traced.name)
    _refuse_foreign(traced.graph)
    roots = folds(traced.graph)
    graph, constants, inputs = _main_graph(traced, roots)
    used = _used(traced, [*constants, *roots])
    sources = [name for name in used if traced.arguments[name].role == "source"]
    literals = [name for name in used if traced.arguments[name].role == "literal"]
    prologue = _prologue(traced.graph, constants, sources + literals)
    describe = _Describer(traced, {traced.arguments[node.name].name for node in constants if is_constant(node)})
    names = _symbol_names(inputs)
    outputs, mutations = _outputs(graph, traced, len(constants), names)
    capture = Capture(
        graph=fx.GraphModule({}, graph),
        constants=tuple(describe.constant(old, new) for old, new in constants.items()),
        inputs=tuple(_input(traced, old, new, names) for old, new in inputs.items()),
        outputs=outputs,
        symbols=_symbols(list(inputs.values()), names, traced.ranges),
        mutations=mutations,
        sources=tuple(describe.source(name, name) for name in sources),
        prologue=prologue,
        literals=tuple(_tensor(traced, name) for name in literals),
        provenance={node.name: _origin(node) for node in graph.nodes if node.op == "call_function"},
        door=traced.door,
        out_spec=traced.out_spec,
        symbol_names=names,
    )
    log.debug("captured %d nodes, %d constants, %d folded", len(graph.nodes), len(constants), len(roots))
    return capture, tuple(_tensor(traced, name) for name in sources)


def _refuse_foreign(graph: fx.Graph) -> None:
    """Operators that a library registered run only where that library is loaded: no program can hold them."""
    for node in graph.nodes:
        if node.target is WINDOWS or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target.namespace not in ("aten", "prims"):
            raise CaptureError(
                f"operator '{node.target}' is neither ATen nor known here; use a form of the model that is written in "
                "PyTorch's own operators"
            )


def _tensor(traced: Traced, name: str) -> Tensor:
    tensor = traced.arguments[name].tensor
    if tensor is None:
        raise CaptureError(f"the value of '{name}' was not found in the model; report the model")
    return tensor


# --- the two graphs ----------------------------------------------------------------------------------------------

Nodes = dict[fx.Node, fx.Node]  # of the traced graph -> of the new graph


def _main_graph(traced: Traced, roots: Sequence[fx.Node]) -> tuple[fx.Graph, Nodes, Nodes]:
    """The graph that calls run: constants first, folded values among them, then the inputs in the call's order."""
    old, new = traced.graph, fx.Graph()
    moved: Nodes = {}
    taken = set(roots)
    alive = _alive(old, taken)
    placeholders = {node.name: node for node in old.nodes if node.op == "placeholder"}
    kept = [node for node in placeholders.values() if is_constant(node) and node in alive]
    constants = {node: _placeholder(new, node, moved) for node in [*kept, *roots]}
    inputs = {placeholders[name]: _placeholder(new, placeholders[name], moved) for name in traced.order}
    for node in old.nodes:
        if node.op != "placeholder" and node in alive and node not in taken:
            moved[node] = new.node_copy(node, lambda each: moved[each])
    return new, constants, inputs


def _placeholder(graph: fx.Graph, node: fx.Node, moved: Nodes) -> fx.Node:
    moved[node] = graph.placeholder(node.name)
    moved[node].meta.update(node.meta)
    return moved[node]


def _alive(graph: fx.Graph, roots: set[fx.Node]) -> set[fx.Node]:
    """Nodes that the output needs when the roots are given."""
    alive: set[fx.Node] = set()
    todo = [graph.output_node()]
    while todo:
        node = todo.pop()
        if node not in alive:
            alive.add(node)
            if node not in roots:
                todo.extend(node.all_input_nodes)
    return alive


def _used(traced: Traced, nodes: Sequence[fx.Node]) -> list[str]:
    """Names of the constant placeholders that the nodes are computed from, in the traced order."""
    needed = {each.name for node in nodes for each in ancestors(node)}
    return [node.name for node in traced.graph.nodes if node.op == "placeholder" and node.name in needed]


def _prologue(old: fx.Graph, constants: Nodes, placeholders: Sequence[str]) -> fx.GraphModule:
    """The graph that computes the constants from the model's own tensors and the literals."""
    new = fx.Graph()
    moved: Nodes = {}
    by_name = {node.name: node for node in old.nodes if node.op == "placeholder"}
    for name in placeholders:
        _placeholder(new, by_name[name], moved)
    needed: set[fx.Node] = set()
    todo = list(constants)
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo.extend(node.all_input_nodes)
    for node in old.nodes:
        if node in needed and node.op != "placeholder":
            moved[node] = new.node_copy(node, lambda each: moved[each])
    new.output(tuple(moved[node] for node in constants))
    return fx.GraphModule({}, new)


# --- descriptions ------------------------------------------------------------------------------------------------


@dataclass
class _Describer:
    """Numbers storages, and gives each constant a name of its own."""

    traced: Traced
    taken: set[str]  # names of constants that are read as they are
    storages: dict[Any, int] = field(default_factory=dict)
    folded: int = 0

    def source(self, name: str, node: str) -> Constant:
        """A tensor as the model holds it."""
        argument, tensor = self.traced.arguments[name], _tensor(self.traced, name)
        storage = self.storages.setdefault(storage_key(tensor), len(self.storages))
        size = tensor.numel() * tensor.element_size()
        names, shape = argument.names or (argument.name,), tuple(tensor.shape)
        return Constant(node, names[0], names, storage, size, tensor.dtype, shape, argument.is_parameter)

    def constant(self, old: fx.Node, new: fx.Node) -> Constant:
        """A tensor as the graph reads it: the model's own, or folded; a folded weight keeps the weight's name."""
        if is_constant(old):
            return self.source(old.name, new.name)
        made_of = [self.source(each.name, each.name) for each in ancestors(old)]
        value = old.meta["val"]
        given = [each for each in made_of if each.is_parameter]
        like = [each for each in given if each.shape == tuple(value.shape)]
        if not like and value.dim() > 1:  # a weight rearranged: a convolution's as that of a linear
            like = [each for each in given if prod(each.shape) == value.numel()]
        main = like[0] if len(like) == 1 or (like and old.meta["val"].dim() > 1) else None
        name = self._name(main, made_of)
        viewed = root(old)
        storage = self.source(viewed.name, viewed.name).storage if is_constant(viewed) else self._new_storage(old)
        derived = tuple(each.name for each in made_of) or (name,)
        names = main.aliases if main and main.name == name else (name,)
        shape = tuple(value.shape)
        items = max((each.dtype.itemsize for each in made_of), default=0)
        narrow = items if items < value.dtype.itemsize else 0
        return Constant(new.name, name, names, storage, bytes_of(old), value.dtype, shape, bool(main), derived, narrow)

    def _name(self, main: Constant | None, made_of: Sequence[Constant]) -> str:
        """The weight's name while it is free, else that of what it is made of and a number."""
        if main is not None and main.name not in self.taken:
            self.taken.add(main.name)
            return main.name
        self.folded += 1
        return f"{made_of[0].name if made_of else 'folded'}:{self.folded - 1}"

    def _new_storage(self, node: fx.Node) -> int:
        return self.storages.setdefault(node, len(self.storages))


def storage_key(tensor: Tensor) -> Any:
    """What two tensors have in common when they share memory."""
    storage = tensor.untyped_storage()
    return (str(tensor.device), storage.data_ptr()) if storage.data_ptr() else id(tensor)


def _input(traced: Traced, old: fx.Node, new: fx.Node, names: Mapping[str, str]) -> Input:
    argument, value = traced.arguments[old.name], old.meta.get("val")
    if isinstance(value, Tensor):
        shape = tuple(size_of(size, names) for size in value.shape)
        return Input(new.name, argument.name, value.dtype, shape, False, argument.role == "state", argument.path)
    return Input(new.name, argument.name, None, (), True, False, argument.path)


def _symbol_names(inputs: Nodes) -> dict[str, str]:
    """torch's symbols in order of appearance, named s0, s1, …"""
    names: dict[str, str] = {}
    for node in inputs.values():
        for size in _symbolic_sizes(node):
            for symbol in sorted(map(str, size.node.expr.free_symbols)):
                names.setdefault(symbol, f"s{len(names)}")
    return names


def _symbolic_sizes(node: fx.Node) -> list[Any]:
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, Tensor) else (value,)
    return [size for size in sizes if isinstance(size, torch.SymInt)]


def _symbols(inputs: Sequence[fx.Node], names: Mapping[str, str], ranges: Mapping[str, Any]) -> tuple[Symbol, ...]:
    found: dict[str, Symbol] = {}
    for index, node in enumerate(inputs):
        value = node.meta.get("val")
        sizes = list(enumerate(value.shape)) if isinstance(value, Tensor) else [(None, value)]
        for axis, size in sizes:
            if isinstance(size, torch.SymInt):
                _note(found, size, (index, axis), names, ranges)
    missing = set(names.values()) - {name for name, each in found.items() if each.source is not None}
    if missing:
        raise CaptureError(f"no input has the plain size {sorted(missing)[0]}: mark the sizes themselves as dynamic")
    return tuple(found[name] for name in names.values())


def _note(
    found: dict[str, Symbol],
    size: Any,
    source: tuple[int, int | None],
    names: Mapping[str, str],
    ranges: Mapping[str, Any],
) -> None:
    """Remember a symbol where a size is that symbol alone; tensors are preferred to ints as its source."""
    expression = size.node.expr
    for symbol in expression.free_symbols:
        name = names[str(symbol)]
        plain = bool(expression.is_Symbol)
        known = found.get(name)
        if known is None or (plain and (known.source is None or known.source[1] is None)):
            low, high = _range(size, symbol, ranges)
            hint = _hint(size, symbol)
            found[name] = Symbol(name, low, high, hint, source if plain else None)


def _range(size: Any, symbol: Any, ranges: Mapping[str, Any]) -> tuple[int | None, int | None]:
    bounds = ranges.get(str(symbol)) or size.node.shape_env.var_to_range.get(symbol)
    return (None, None) if bounds is None else (_bound(bounds.lower), _bound(bounds.upper))


def _bound(value: Any) -> int | None:
    number = int(value) if getattr(value, "is_Integer", False) else None
    return None if number is None or abs(number) >= 2**62 else number


def _hint(size: Any, symbol: Any) -> int | None:
    if not size.node.expr.is_Symbol or size.node.hint is None:
        return None
    return int(size.node.hint)


def _outputs(
    graph: fx.Graph, traced: Traced, skip: int, names: Mapping[str, str]
) -> tuple[tuple[Output, ...], tuple[Mutation, ...]]:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    place = {node: index for index, node in enumerate(placeholders)}
    position = {node.name: index for index, node in enumerate(placeholders)}
    outputs, mutations = [], []
    for index, value in enumerate(graph.output_node().args[0]):  # type: ignore[arg-type]
        if index in traced.mutations:
            target = position[traced.mutations[index]] - skip
            mutations.append(Mutation(value.name, index, target))
            outputs.append(Output(value.name, "mutation", target, None, *_form(value, names)))
        else:
            outputs.append(output_of(value, place, skip, names))
    return tuple(outputs), tuple(mutations)


def output_of(value: Any, place: Mapping[fx.Node, int], skip: int, names: Mapping[str, str]) -> Output:
    """How an output arises; ``place`` numbers the placeholders, of which the first ``skip`` are constants."""
    if not isinstance(value, fx.Node):
        return Output("", "value", None, value)
    if isinstance(value.meta.get("val"), torch.SymInt):
        return Output(value.name, "size", None, _readable(value.meta["val"], names))
    form = _form(value, names)
    base = root(value)
    if base not in place:
        return Output(value.name, "fresh", None, None, *form)
    index = place[base]
    if index < skip:
        return Output(value.name, "constant", index, None, *form)
    return Output(value.name, "input" if base is value else "alias", index - skip, None, *form)


def _form(value: fx.Node, names: Mapping[str, str]) -> tuple[tuple[Size, ...], torch.dtype | None]:
    fake = value.meta.get("val")
    if not isinstance(fake, Tensor):
        return (), None
    return tuple(_readable(size, names) for size in fake.shape), fake.dtype


def _readable(size: Any, names: Mapping[str, str]) -> Size:
    """A size; where it depends on data (an unbacked symbol) its own name, which no call can give beforehand."""
    try:
        return size_of(size, names)
    except ValueError:
        return str(size)


def _origin(node: fx.Node) -> Origin:
    """Module path and source line of a node."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    lines = [each.strip() for each in trace if each.strip().strip("^~")]
    line = lines[-1] if lines else ""
    return Origin(tidy(path), line)


def tidy(path: str) -> str:
    """A module's path without the root's own name or torch's dictionaries: "encoder.layer.0.attention"."""
    text = path.replace("L['self']", "").replace("_modules['", "").replace("']", "").replace("['", ".")
    return text.strip(".").removeprefix("self.")
