"""Every private torch symbol that AdaFlex uses, each behind a function of ours, with a self-test that picks the route.

In: torch 2.13 as installed. Out: plain functions and values; nothing else in AdaFlex names a private torch symbol.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from adaflex.passes.fused import written_out

aten = torch.ops.aten
Route = Literal["whole", "broken", "none"]

WHOLE_OPS = (  # kept whole by the capture: each would otherwise be broken up before any backend sees it
    aten.linear.default,
    aten.matmul.default,
    aten.scaled_dot_product_attention.default,
    aten.layer_norm.default,
    aten.rms_norm.default,
    aten.group_norm.default,
    aten.softmax.int,
    aten.log_softmax.int,
    aten.max_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.lstm.input,
    aten.gru.input,
    aten.one_hot.default,
)


def _not_implemented(*_: object, **__: object) -> object:
    return NotImplemented


@contextmanager
def composites_whole() -> Iterator[None]:
    """Within it, tracing keeps ``WHOLE_OPS`` as they are; without the private hook it changes nothing."""
    with ExitStack() as stack:
        if capture_route() == "whole":
            stack.enter_context(_override(dict.fromkeys(WHOLE_OPS, _not_implemented)))
        yield


def _override(table: dict[Any, Callable[..., object]]) -> AbstractContextManager[None]:
    from torch.export.exported_program import _override_composite_implicit_decomp

    context: AbstractContextManager[None] = _override_composite_implicit_decomp(table)
    return context


# --- ahead-of-time tracing inside a backend ----------------------------------------------------------------------


@dataclass(frozen=True)
class Traced:
    """What ahead-of-time tracing found: the graph, which arguments are fixed, which change, how outputs arise."""

    graph: fx.GraphModule
    static: tuple[int, ...]  # positions of parameters and buffers among the arguments
    mutated: tuple[int, ...]  # positions of arguments that a call writes to


def trace(
    module: fx.GraphModule, example_inputs: Sequence[Any], run: Callable[[list[Any]], Sequence[Any]]
) -> tuple[Callable[..., Any], Traced]:
    """Functional inference graph of ``module`` and a callable around ``run`` that restores mutations and aliases.

    ``run`` gets a list of arguments it may clear and returns the graph's outputs. Exceptions of torch pass through:
    some ask Dynamo to start again (floats that it had made inputs become constants on the second try).
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._guards import TracingContext

    caught: list[Traced] = []

    def catch(graph: fx.GraphModule, fakes: Sequence[Any]) -> Callable[[list[Any]], Sequence[Any]]:
        meta: Any = TracingContext.get().fw_metadata
        caught.append(Traced(graph, tuple(meta.static_input_indices), tuple(meta.mutated_inp_runtime_indices)))

        def boxed(arguments: list[Any]) -> Sequence[Any]:
            return run(arguments)

        boxed._boxed_call = True  # type: ignore[attr-defined]
        return boxed

    with composites_whole():
        backend = aot_autograd(fw_compiler=catch, inference_compiler=catch, decompositions=written_out())
        compiled = backend(module, list(example_inputs))
    return compiled, caught[-1]


@functools.cache
def capture_route() -> Route:
    """Self-test, once per process: "whole" (ops stay whole), "broken" (pattern lifting must reassemble) or "none"."""
    try:
        with _override(dict.fromkeys(WHOLE_OPS, _not_implemented)):
            found = _probe()
        if aten.linear.default in found and aten.layer_norm.default in found:
            return "whole"
    except Exception:
        pass
    try:
        return "broken" if _probe() else "none"
    except Exception:
        return "none"


def _probe() -> set[Any]:
    """The operators left of a linear and a layer norm that ahead-of-time tracing saw; checks order and mutation too."""
    from torch._functorch.aot_autograd import aot_module_simplified
    from torch._guards import TracingContext, tracing

    found: list[fx.GraphModule] = []

    def catch(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        meta: Any = TracingContext.get().fw_metadata
        if tuple(meta.mutated_inp_runtime_indices) != (2,):
            raise RuntimeError("the changed argument was not reported")
        found.append(gm)
        return gm.forward

    with torch.no_grad(), tracing(TracingContext(None)):
        aot_module_simplified(_probe_module(), [torch.ones(2, 4), torch.ones(4, 4), torch.ones(1)], catch)
    return {node.target for node in found[0].graph.nodes if node.op == "call_function"}


def _probe_module() -> fx.GraphModule:
    graph = fx.Graph()
    x, weight, counter = (graph.placeholder(name) for name in ("x", "weight", "counter"))
    graph.call_method("add_", (counter, 1))
    y = graph.call_function(nn.functional.linear, (x, weight))
    y = graph.call_function(nn.functional.layer_norm, (y, (4,)))
    graph.output((graph.call_function(operator.add, (y, counter)),))
    return fx.GraphModule({}, graph)


def real_tensors() -> AbstractContextManager[Any]:
    """Within it real tensors may be touched although a trace is under way."""
    try:
        from torch._subclasses.fake_tensor import unset_fake_temporarily
    except ImportError:
        return nullcontext()
    return unset_fake_temporarily()


@contextmanager
def outside_of_calls() -> Iterator[None]:
    """Within it torch is as outside of a compiled call: no modes that watch it, no inference mode, gradients on."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
        yield


def fake_mode_of(value: Any) -> Any:
    """The fake mode of a fake tensor, which computes shapes without data; None for anything else."""
    return getattr(value, "fake_mode", None)


def no_new_guards(mode: Any) -> AbstractContextManager[Any]:
    """Within it, computing shapes in this fake mode narrows no symbolic size."""
    environment = getattr(mode, "shape_env", None)
    if environment is None:
        return nullcontext()
    context: AbstractContextManager[Any] = environment.suppress_guards()
    return context


# --- what Dynamo knows about an argument -------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where an argument of a Dynamo graph comes from: steps from a name, "local", "global", "attr", "item", "size"."""

    steps: tuple[tuple[str, Any], ...]
    text: str

    def name(self) -> str:
        """The qualified name it spells ("encoder.layer.0.weight"), without the root and torch's own dictionaries."""
        inner = ("_modules", "_parameters", "_buffers")
        parts = [str(key) for kind, key in self.steps[1:] if not (kind == "attr" and key in inner) and kind != "size"]
        return ".".join(parts) or (str(self.steps[0][1]) if self.steps else self.text)


def argument_sources(module: fx.GraphModule) -> list[Source]:
    """The source of each placeholder, in order; read it first thing in a backend, Dynamo removes it afterwards."""
    found = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            argument = node.meta.get("grapharg")
            found.append(_source(getattr(argument, "source", None), str(node.target)))
    return found


def _source(source: Any, fallback: str) -> Source:
    steps: list[tuple[str, Any]] = []
    text = fallback if source is None else str(source.name)
    while source is not None:
        kind = type(source).__name__
        if hasattr(source, "prop") and getattr(source, "idx", None) is not None:
            steps.append(("size", int(source.idx)))
        elif hasattr(source, "index"):
            steps.append(("item", source.index))
        elif hasattr(source, "member"):
            steps.append(("attr", source.member))
        elif hasattr(source, "local_name"):
            steps.append(("local", source.local_name))
        elif hasattr(source, "global_name"):
            steps.append(("global", source.global_name))
        elif not hasattr(source, "base"):
            return Source((("unknown", kind),), text)
        source = getattr(source, "base", None)
    return Source(tuple(reversed(steps)), text)


def broke_the_graph(module: fx.GraphModule) -> bool:
    """Whether Dynamo ended this graph because of a graph break; True where it does not say."""
    reason = getattr(module, "compile_subgraph_reason", None)
    return bool(getattr(reason, "graph_break", True))


# --- the call that is being compiled or run ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CallFrame:
    """The running call of a compiled model: which ``torch.compile`` it belongs to, its module and its arguments."""

    frame: FrameType
    scope: object  # one object per torch.compile, weakly referenceable
    root: nn.Module | None
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outermost: bool  # the graph being compiled belongs to the outermost frame: no nested or resumed function


_INNER_FILES = ("torch/nn/modules/module.py", "torch/_dynamo/external_utils.py")


def call_frame() -> CallFrame | None:
    """The innermost compiled call on this thread's stack; None where torch arranges its frames in another way."""
    frame: FrameType | None = sys._getframe()
    outermost, converting = True, False
    while frame is not None:
        name, path = frame.f_code.co_name, frame.f_code.co_filename.replace("\\", "/")
        if name == "compile_wrapper" and path.endswith("torch/_dynamo/eval_frame.py"):
            names = frame.f_locals
            if not {"self", "fn", "args", "kwargs"} <= names.keys():
                return None
            arguments, keywords = tuple(names["args"]), dict(names["kwargs"])
            root = _root(names["fn"], arguments, frame.f_back)
            return CallFrame(frame, names["self"], root, arguments, keywords, outermost)
        if path.endswith("torch/_dynamo/convert_frame.py"):
            outermost, converting = True, True
        elif converting and not path.endswith(_INNER_FILES):
            outermost = False
        frame = frame.f_back
    return None


def _root(function: Any, arguments: Sequence[Any], caller: FrameType | None) -> nn.Module | None:
    """The module a compiled call belongs to: bound, wrapped, closed over, or its first module argument."""
    candidates: list[Any] = [getattr(function, "__self__", None), function]
    wrapper = caller.f_locals.get("self") if caller is not None and caller.f_code.co_name in _CALLERS else None
    candidates.append(getattr(wrapper, "_orig_mod", None))
    inner = inspect.unwrap(function) if callable(function) else function
    for cell in getattr(inner, "__closure__", None) or ():
        candidates.append(_content(cell))
    candidates.extend(arguments)
    names = getattr(getattr(inner, "__code__", None), "co_names", ())
    candidates.extend(getattr(inner, "__globals__", {}).get(name) for name in names)
    return next((candidate for candidate in candidates if isinstance(candidate, nn.Module)), None)


_CALLERS = ("__call__", "_call_lazy_check", "_call_impl", "_wrapped_call_impl")


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def trace_recurrent_modules(ours: Callable[[Any], bool]) -> None:
    """Let Dynamo trace nn.LSTM, nn.GRU and nn.RNN, which it refuses else, when it compiles for a backend that is
    ``ours``: others would unroll every step."""
    changed: list[bool] = []

    def start(_: object) -> None:
        frame, config = call_frame(), torch._dynamo.config
        if frame is not None and getattr(config, "allow_rnn", True) is False and ours(_backend_of(frame.scope)):
            config.allow_rnn = True
            changed.append(True)

    def end(_: object) -> None:
        if changed:
            torch._dynamo.config.allow_rnn = not changed.pop()

    handler: Any = getattr(torch._dynamo, "callback_handler", None)
    for name, added in (("start_callbacks", start), ("end_callbacks", end)):
        if isinstance(getattr(handler, name, None), list):
            setattr(handler, name, _Kept([added, *getattr(handler, name)]))


class _Kept(list[Any]):
    """Dynamo's callbacks, the first of which stays: ``torch._dynamo.reset`` leaves a process as after its imports."""

    def clear(self) -> None:
        del self[1:]


def _backend_of(context: Any) -> Any:
    """The function that was given to torch.compile, out of what torch wraps around it."""
    wrappers = ("callback", "_torchdynamo_orig_backend", "_torchdynamo_orig_backend", "compiler_fn")
    return functools.reduce(lambda found, name: getattr(found, name, found), wrappers, context)


def leaf_paths(value: Any) -> list[tuple[str | int, ...]]:
    """Keys and indices that lead to each leaf of nested containers, transformers' caches included, in torch's order."""
    from torch.utils._pytree import tree_flatten_with_path

    leaves, _ = tree_flatten_with_path(value)
    return [tuple(_step(key) for key in path) for path, _ in leaves]


def _step(key: Any) -> str | int:
    for attribute in ("idx", "key", "name"):
        if hasattr(key, attribute):
            step = getattr(key, attribute)
            return step if isinstance(step, str | int) else str(step)
    return str(key)


# --- small things ------------------------------------------------------------------------------------------------


def version_of(tensor: Tensor) -> int:
    """torch's count of in-place edits; -1 for a tensor made under inference mode, which has none."""
    return -1 if tensor.is_inference() else int(tensor._version)


def versions(tensors: Sequence[Tensor]) -> list[int] | None:
    """``version_of`` each tensor, quickly; None where one of them has no count."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return None


def through_dynamo(error: Exception) -> Exception:
    """The error as one that Dynamo lets through a backend unwrapped, so that ``except`` of its own class works."""
    try:
        from torch._dynamo.exc import ShortenTraceback
    except ImportError:
        return error

    class Twin(type(error), ShortenTraceback):  # type: ignore[misc]
        def __init__(self, message: str) -> None:
            ShortenTraceback.__init__(self, message, first_useful_frame=None)

    Twin.__name__, Twin.__qualname__ = type(error).__name__, type(error).__qualname__
    Twin.__module__ = type(error).__module__
    twin: Exception = Twin(str(error))
    return twin


def scope_of(compiled: object) -> object | None:
    """The object that ``torch.compile`` made for a compiled module or function; None for anything else."""
    context = getattr(compiled, "dynamo_ctx", None)
    if context is None:
        call = getattr(compiled, "_compiled_call_impl", None) or compiled
        cells = getattr(call, "__closure__", None) or ()
        names = getattr(getattr(call, "__code__", None), "co_freevars", ())
        context = next((_content(cell) for name, cell in zip(names, cells, strict=False) if name == "self"), None)
    return context


def recompile_limit() -> int:
    """How many graphs Dynamo makes of one code object before it runs the original, silently."""
    import torch._dynamo.config as config

    return int(getattr(config, "recompile_limit", 8))
