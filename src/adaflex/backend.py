"""The torch.compile door: ``torch.compile(model, backend="adaflex", options={...})``.

In: graphs from Dynamo. Out: callables that plan on their first run and execute the planned program afterwards.
"""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from adaflex.calls import Part
from adaflex.compiled import CompiledGraph, Planner, Runnable, Scope
from adaflex.errors import CaptureError, OptionError
from adaflex.options import Options, parse
from adaflex.passes.calibration import calibration
from adaflex.passes.dynamo_door import capture_dynamo
from adaflex.passes.torch_compat import (
    CallFrame,
    broke_the_graph,
    call_frame,
    recompile_limit,
    scope_of,
    through_dynamo,
    trace_recurrent_modules,
)

log = logging.getLogger("adaflex")


class Backend:
    """A backend for torch.compile around a planner; ``compile_graph`` is the one that the name "adaflex" means."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.lock = threading.Lock()
        self.scopes: weakref.WeakKeyDictionary[object, Scope] = weakref.WeakKeyDictionary()
        self.made: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # graphs per code object

    def compile_graph(
        self, module: fx.GraphModule, example_inputs: Sequence[Any], *, options: Any = None, mode: str | None = None
    ) -> Callable[..., Any]:
        """Capture one graph. It is planned when it first runs: real tensors are at hand then, errors pass plainly."""
        checked = _checked(options, mode)
        frame = call_frame()
        scope = self._scope(frame, checked)
        if torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in example_inputs):
            return _original(module, scope, GRAD, "grad")
        try:
            root = frame.root if frame is not None else None
            captured = capture_dynamo(module, example_inputs, root, type(root).__name__ if root else "graph")
        except CaptureError as error:
            return _original(module, scope, f"{error}; the original runs in its place", str(error))
        whole = not broke_the_graph(module) and (frame is None or frame.outermost)
        self._count(frame)
        return captured.make_callable(CompiledGraph(scope, captured, whole))

    def programs(self, compiled: object) -> list[Runnable]:
        """The planned programs behind a compiled module or function, none before its first call."""
        key = scope_of(compiled)
        scope = self.scopes.get(key) if key is not None else None
        if scope is None:
            return []
        with scope.lock:
            found = {
                id(bound.runnable): bound.runnable
                for graph in scope.graphs
                for bound in graph.bound.values()
                if bound.planned
            }
        return list(found.values())

    def _scope(self, frame: CallFrame | None, options: Options) -> Scope:
        """The scope of the running ``torch.compile``; without a call frame each graph is one of its own."""
        if frame is None:
            return Scope(self.planner, options)
        with self.lock:
            found = self.scopes.get(frame.scope)
            if found is None:
                found = self.scopes[frame.scope] = Scope(self.planner, options)
            return found

    def _count(self, frame: CallFrame | None) -> None:
        """Say it when torch is about to stop compiling: it runs the original from then on, without a word."""
        if frame is None or frame.root is None or not frame.outermost:
            return
        code = type(frame.root).forward.__code__
        with self.lock:
            count = self.made[code] = self.made.get(code, 0) + 1
        if count == recompile_limit():
            log.warning(
                "%d graphs were made of %s.forward, torch's limit: further ones run the original, unplanned. Mark "
                "varying sizes with torch._dynamo.mark_dynamic, or give each model its own graphs with "
                "torch.compile(..., isolate_recompiles=True)",
                count,
                type(frame.root).__qualname__,
            )


GRAD = (
    "gradients are enabled and a weight or input requires them, so the original runs: call the model under "
    "torch.no_grad() or torch.inference_mode(), or call model.requires_grad_(False) first"
)


def _checked(options: Any, mode: str | None) -> Options:
    """The options, checked before anything is traced; calibration data in them is put into its holder."""
    try:
        if mode is not None:
            raise OptionError(
                f"mode={mode!r} is Inductor's; AdaFlex takes options={{...}}, for example memory and loss"
            )
        if options is not None and not isinstance(options, dict):
            raise OptionError(f"options is a {type(options).__name__}; it takes a dict, for example {{'loss': 0.03}}")
        if options and options.get("calibration") is not None:
            # in the user's own dict: torch compares options with ==, which lists of tensors do not survive
            options["calibration"] = calibration(options["calibration"])
        checked = parse(options, on_broken="warn")
        if checked.device != "cpu":
            raise OptionError(
                f"device='{checked.device}' is planned by adaflex.compile(model, inputs, device='{checked.device}'); "
                "torch.compile with this backend runs on the CPU"
            )
        return checked
    except OptionError as error:
        raise through_dynamo(error) from None


def _original(module: fx.GraphModule, scope: Scope, message: str, topic: str) -> Callable[..., Any]:
    """The original graph, after saying why once; under ``strict`` an error instead."""
    if scope.options.strict:
        raise through_dynamo(CaptureError(f"{message}; strict=True asks for an error"))
    scope.say_once(topic, "%s", message)
    return module.forward


class ApiPlanner:
    """Plans through ``adaflex.api``, loaded when first needed."""

    def plan(self, parts: Sequence[Part], options: Options) -> Sequence[Runnable]:
        """A whole call's graph: ``api.plan_capture``. Pieces of one call: ``api.plan_captures``."""
        from adaflex.api import plan_capture, plan_captures

        if len(parts) == 1 and parts[0].call.whole:
            return [plan_capture(parts[0].capture, parts[0].weights, parts[0].call, options)]
        return plan_captures(parts, options)

    def extend(self, part: Part, options: Options, earlier: Sequence[Runnable]) -> Runnable:
        """A later graph over known weights: ``api.extend_plan``."""
        from adaflex.api import Planning, extend_plan

        known = [each for each in earlier if isinstance(each, Planning)]
        return extend_plan(part.capture, part.weights, part.call, options, known)


@functools.cache
def default_backend() -> Backend:
    """The process's one backend of that name."""
    return Backend(ApiPlanner())


def compile_graph(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, options: Any = None, mode: str | None = None
) -> Callable[..., Any]:
    """Entry point of ``backend="adaflex"``; ``options`` are the keywords of ``adaflex.compile``."""
    return default_backend().compile_graph(module, example_inputs, options=options, mode=mode)


def programs(compiled: object) -> list[Runnable]:
    """The planned programs behind what ``torch.compile(model, backend="adaflex")`` returned, in their order."""
    return default_backend().programs(compiled)


trace_recurrent_modules(
    lambda given: (
        getattr(given, "__func__", given) in (compile_graph, Backend.compile_graph)
    )  # also a Backend of one's own
)
