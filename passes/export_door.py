"""The offline door: a module and example arguments, through ``torch.export``, to a Capture.

In: ``nn.Module`` in eval mode, arguments of one call, sizes that may vary. Out: ``Capture`` and its ``Weights``.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.overrides import TorchFunctionMode

from adaflex.errors import CaptureError
from adaflex.passes.arguments import place_of, positional_names
from adaflex.passes.assemble import Argument, Traced, assemble, storage_key
from adaflex.passes.capture import Capture, Fixed, Weights
from adaflex.passes.sizes import Guard, guard_of, size_of, symbols_in
from adaflex.passes.small_sizes import small_guards
from adaflex.passes.torch_compat import leaf_paths

aten = torch.ops.aten
DEEPEST, MOST_GUARDS = 24, 1000  # of guards: deeper ones say nothing that a caller could read, nor a file hold
LONGEST = 64  # operations in one size
SQUEEZES = (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)


def from_export(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> tuple[Capture, Weights]:
    """Capture ``model`` as one graph for calls like ``model(*args, **kwargs)``.

    ``dynamic_shapes`` is torch.export's: per argument, which dimensions may vary and between which sizes. Weights are
    the model's own tensors, shared, except those the prologue computed. Raises CaptureError where torch cannot trace
    the model, with torch's first line.
    """
    given, named = _apart((tuple(args), dict(kwargs or {})), set())
    capture, tensors, spec = _traced(model, given, named, dynamic_shapes)
    weights = capture.bind(tensors)
    leaves = dict(zip(_paths(model, given, named), spec.flatten_up_to((given, named)), strict=True))
    small = small_guards(capture, weights, model, spec, leaves)
    return replace(capture, guards=tuple(dict.fromkeys(capture.guards + small))), weights


def _traced(
    model: nn.Module, given: tuple[Any, ...], named: dict[str, Any], dynamic_shapes: Any
) -> tuple[Capture, tuple[Tensor, ...], Any]:
    """The capture, the model's own tensors, and torch's nesting of the arguments."""
    program = _export(model, given, named, dynamic_shapes)
    _refuse_submodules(program.graph_module)
    arguments = _arguments(program, model, given, named)
    graph = program.graph_module.graph
    _merge_tied(graph, arguments)
    mutations = _mutations(program)
    order = [name for name, each in arguments.items() if each.role == "input"]
    order += [name for name, each in arguments.items() if each.role == "state"]
    spec = program.call_spec.out_spec
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    dropped = _dropped(graph)
    capture, tensors = assemble(
        Traced(graph, arguments, mutations, "export", type(model).__name__, spec, order, ranges)
    )
    fixed = _fixed(program, model, given, named)
    guards = _guards(graph, capture.symbol_names)
    guards += tuple(("!=", size_of(size, capture.symbol_names), 1) for size in dropped)
    capture = replace(capture, positional=positional_names(model), fixed=fixed, guards=guards)
    return capture, tensors, program.call_spec.in_spec


def _dropped(graph: fx.Graph) -> list[Any]:
    """Sizes that vary and that a ``squeeze`` would drop at 1."""
    found: list[Any] = []
    for node in graph.nodes:
        if node.op == "call_function" and node.target in SQUEEZES:
            shape = node.args[0].meta["val"].shape
            axes = node.args[1] if len(node.args) > 1 else range(len(shape))
            axes = [axes] if isinstance(axes, int) else axes
            found += [shape[axis] for axis in axes if isinstance(shape[axis], torch.SymInt)]
    return found


def _guards(graph: fx.Graph, names: Mapping[str, str]) -> tuple[Guard, ...]:
    """What tracing took for granted of the sizes that may vary: where the model asks for them, it went one way."""
    values = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    sizes: list[Any] = [size for value in values if isinstance(value, Tensor) for size in value.shape]
    found = next((size.node.shape_env for size in sizes if isinstance(size, torch.SymInt)), None)
    if found is None:
        return ()
    known = [guard_of(guard.expr.xreplace(found.replacements), names) for guard in found.guards]
    mine = set(names.values())
    kept = [each for each in known if each and symbols_in(each[1]) | symbols_in(each[2]) <= mine]
    return tuple(dict.fromkeys(each for each in kept if _depth(each[1:]) <= DEEPEST))[:MOST_GUARDS]


def _depth(size: Any) -> int:
    return 1 + max(map(_depth, size), default=0) if isinstance(size, tuple) else 0


def any_sizes(
    args: Sequence[Any], kwargs: Mapping[str, Any] | None, model: nn.Module, axes: int = sys.maxsize
) -> dict[str, Any]:
    """``dynamic_shapes`` that let the sizes of tensor arguments vary where the model allows, of the first ``axes``."""
    try:  # as torch.export names them
        values = inspect.signature(model.forward).bind(*args, **dict(kwargs or {})).arguments
    except TypeError as fault:
        raise CaptureError(f"the arguments do not fit {type(model).__name__}.forward: {fault}") from fault
    return {name: _any_size(value, axes) for name, value in values.items()}


def _any_size(value: Any, axes: int) -> Any:
    if isinstance(value, Tensor):
        return dict.fromkeys(range(min(axes, value.dim())), Dim.AUTO)
    if type(value) in (list, tuple):
        return type(value)(_any_size(each, axes) for each in value)
    if type(value) is dict:
        return {key: _any_size(each, axes) for key, each in value.items()}
    return None


def _apart(value: Any, seen: set[int]) -> Any:
    """The arguments, each a tensor of its own: torch traces one given twice as one input, and leaves marks on them."""
    if isinstance(value, Tensor):
        known = id(value) in seen
        seen.add(id(value))
        return value.clone() if known else value.detach()
    if type(value) in (list, tuple):
        return type(value)(_apart(each, seen) for each in value)
    if type(value) is dict:
        return {key: _apart(each, seen) for key, each in value.items()}
    return value


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> ExportedProgram:
    try:
        with torch.no_grad(), warnings.catch_warnings(), written_out(), ShortSizes():
            warnings.simplefilter("ignore")  # torch's own deprecations, not the user's
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            decomposed: ExportedProgram = program.run_decompositions({})
            return decomposed
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CaptureError(
            f"torch.export could not capture {type(model).__name__} ({type(error).__name__}: {first}); "
            "run torch.export.export on it to see the place, or compile a submodule"
        ) from error


class ShortSizes(TorchFunctionMode):
    """Within it a trace ends where a size becomes so long an expression that torch reasons about it for minutes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        sizes = found.shape if isinstance(found, Tensor) else ()
        if any(isinstance(size, torch.SymInt) and size.node.expr.count_ops() > LONGEST for size in sizes):
            name = getattr(function, "__name__", str(function))
            raise CaptureError(f"a size in '{name}' depends on the inputs' sizes in more than {LONGEST} operations")
        return found


@contextmanager
def written_out() -> Iterator[None]:
    """Within it torch's attention modules are traced as the ops they are made of, not as one fused call."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _refuse_submodules(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op == "get_attr":
            users = ", ".join(str(user.target) for user in node.users)
            raise CaptureError(f"operator {users} holds a graph of its own, which is not supported: use torch.where")


# --- placeholders -------------------------------------------------------------------------------------------------


def _arguments(
    program: ExportedProgram, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Argument]:
    """What each placeholder is, in the graph's order."""
    mutated = set(program.graph_signature.buffers_to_mutate.values())
    names = qualified_names(model)
    paths = iter(_paths(model, args, kwargs))
    arguments: dict[str, Argument] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            path = next(paths)
            role = "skip" if isinstance(spec.arg, ConstantArgument) else "input"
            arguments[spec.arg.name] = Argument(role, ".".join(map(str, path)), path=path)  # type: ignore[arg-type]
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            assert spec.target is not None
            tensor = _value(program, spec.target)
            known = names.get(id(tensor), (spec.target,))
            state = spec.target in mutated
            arguments[spec.arg.name] = Argument(
                "state" if state else "source", known[0], known, tensor, spec.kind == InputKind.PARAMETER
            )
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            assert spec.target is not None
            tensor = _value(program, spec.target)
            known = names.get(id(tensor), ())
            count = sum(each.role == "literal" for each in arguments.values())
            arguments[spec.arg.name] = (
                Argument("source", known[0], known, tensor)
                if known
                else Argument("literal", f"constant:{count}", (), tensor)
            )
        else:
            raise CaptureError(f"an input of kind {spec.kind.name} ({spec.arg}) is not supported: pass tensors")
    return arguments


def _value(program: ExportedProgram, target: str) -> Tensor:
    """A parameter or buffer; buffers that are not persistent are kept apart from the state dict."""
    value = program.state_dict.get(target)
    value = program.constants.get(target) if value is None else value
    if not isinstance(value, Tensor):
        raise CaptureError(f"the value of '{target}' was not found in the exported program; report the model")
    if value.device.type == "meta":
        raise CaptureError(f"'{target}' is on the meta device and has no values: load the weights first")
    return value


def qualified_names(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """All qualified names of each parameter and buffer, by identity; tied tensors have several."""
    found: dict[int, tuple[str, ...]] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        found[id(tensor)] = (*found.get(id(tensor), ()), name)
    return found


def _paths(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str | int, ...]]:
    """Where each leaf of (args, kwargs) stands in the call: argument name, then keys and indices."""
    names = positional_names(model)
    found: list[tuple[str | int, ...]] = []
    for index, value in enumerate(args):
        found.extend((*place_of(names, index), *inner) for inner in leaf_paths(value))
    for name, value in kwargs.items():
        found.extend((name, *inner) for inner in leaf_paths(value))
    return found


def _fixed(
    program: ExportedProgram, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Fixed, ...]:
    """What the trace took for fixed: plain values given, and defaults of what was not given."""
    user = [spec.arg for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    pairs = zip(_paths(model, args, kwargs), user, strict=True)
    given = {path: each.value for path, each in pairs if isinstance(each, ConstantArgument)}
    heads = {path[0] for path in _paths(model, args, kwargs)}
    every = list(inspect.signature(type(model).forward).parameters.values())[1:]
    defaults = {each.name: each.default for each in every if each.default is not inspect.Parameter.empty}
    found = [
        Fixed(path, value, defaults.get(str(path[0]), ...) != value) for path, value in given.items() if _plain(value)
    ]
    left = {name: value for name, value in defaults.items() if name not in heads and _plain(value)}
    return (*found, *(Fixed((name,), value, False) for name, value in left.items()))


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _merge_tied(graph: fx.Graph, arguments: Mapping[str, Argument]) -> None:
    """Placeholders of one and the same tensor become one: tied weights are one constant."""
    first: dict[Any, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and arguments[node.name].role == "source":
            tensor = arguments[node.name].tensor
            assert tensor is not None
            key = (storage_key(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            kept = first.setdefault(key, node)
            if kept is not node:
                node.replace_all_uses_with(kept)


def _mutations(program: ExportedProgram) -> dict[int, str]:
    """Output position -> placeholder that the value is written back to."""
    signature = program.graph_signature
    by_buffer = {target: node for node, target in signature.inputs_to_buffers.items()}
    found: dict[int, str] = {}
    for index, spec in enumerate(signature.output_specs):
        if spec.kind == OutputKind.BUFFER_MUTATION:
            found[index] = by_buffer[str(spec.target)]
        elif spec.kind == OutputKind.USER_INPUT_MUTATION:
            found[index] = str(spec.target)
        elif spec.kind == OutputKind.PARAMETER_MUTATION:
            raise CaptureError(
                f"the model writes to its weight '{spec.target}' when called; keep such values in buffers"
            )
    return found
