"""What stands behind a compiled call: which program serves which weights, when to plan, what was never handed over.

In: captures from the backend, real tensors at each call, a planner. Out: the outputs of the planned program, or of
the captured graph where nothing is planned yet. Weights are held weakly: a deleted model frees its programs.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adaflex.calls import Call, Part, copied, copied_batch
from adaflex.errors import AdaflexError, ArtifactError, CalibrationError
from adaflex.options import Options
from adaflex.passes.calibration import Batch
from adaflex.passes.capture import Capture
from adaflex.passes.dynamo_door import DynamoCapture
from adaflex.passes.sizes import SizeError
from adaflex.passes.torch_compat import CallFrame, call_frame, outside_of_calls, versions

log = logging.getLogger("adaflex")

MOST_EDITS = 3  # plans for weights that change between calls, before the captured graph runs in their place

MOST_POSTPONED = 5  # calls that cannot be planned on, before the captured graph runs in their place

Key = tuple[int, ...]  # identities of the tensors that a graph was called with


class Runnable(Protocol):
    """A planned graph: its inputs in order, all its outputs in order, mutations first."""

    def __call__(self, *inputs: Any) -> Sequence[Any]: ...


class Planner(Protocol):
    """Decides for graphs that belong to one ``torch.compile``."""

    def plan(self, parts: Sequence[Part], options: Options) -> Sequence[Runnable]:
        """Plan all parts together, under one set of budgets; one runnable each."""

    def extend(self, part: Part, options: Options, earlier: Sequence[Runnable]) -> Runnable:
        """A graph that came later and shares weights with ``earlier``: known sites keep their choices."""


@dataclass(eq=False)
class Bound:
    """A runnable and the weights it was made for."""

    runnable: Runnable
    key: Key
    versions: list[int] | None
    signature: str
    planned: bool = True  # False: the captured graph itself, which reads its weights anew at each call
    watches: list[weakref.ref[Tensor]] = field(default_factory=list)

    def current(self, tensors: Sequence[Tensor]) -> bool:
        """Whether no weight was edited in place since; ``.data`` edits cannot be seen."""
        return not self.planned or versions(tensors) == self.versions


class CompiledGraph:
    """One graph that Dynamo handed over: called with the tensors and inputs of each run."""

    def __init__(self, scope: Scope, captured: DynamoCapture, whole: bool) -> None:
        self.capture = captured.capture
        self.scope = scope
        self.whole = whole
        self.bound: dict[Key, Bound] = {}
        self.errors: dict[Key, AdaflexError] = {}
        self.edits: dict[Key, int] = {}
        self.replaced: list[Replaced] = []
        self.autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        shapes = [(each.dtype, each.shape) for each in self.capture.inputs]
        self.signature = f"{self.capture.graph.code}\n{shapes}"

    def __call__(self, tensors: tuple[Tensor, ...], inputs: tuple[Any, ...]) -> Sequence[Any]:
        bound = self.bound.get(tuple(map(id, tensors)))
        if bound is None or not bound.current(tensors):
            bound = self.scope.resolve(self, tensors, inputs)
            if bound is None:
                return self.capture.run(self.capture.bind(tensors), inputs)
        try:
            return bound.runnable(*inputs)
        except ArtifactError:  # before anything ran: torch's guards let pass sizes that its own expressions do not fit
            if self.scope.options.strict:
                raise
            shapes = [tuple(each.shape) if isinstance(each, Tensor) else each for each in inputs]
            self.scope.say_once("sizes", "the program does not hold for sizes like %s, which run unplanned", shapes)
            return self.capture.run(self.capture.bind(tensors), inputs)

    def bind(self, tensors: Sequence[Tensor], runnable: Runnable | None = None) -> Bound:
        """Let ``runnable`` serve these tensors until one of them is deleted or edited; None: the captured graph."""
        key, planned = tuple(map(id, tensors)), runnable is not None
        bound = Bound(runnable or _reference(self.capture, tensors), key, versions(tensors), self.signature, planned)
        own = weakref.ref(self)

        def gone(_: object) -> None:
            graph = own()
            if graph is not None:
                for kept in (graph.bound, graph.errors, graph.edits):
                    kept.pop(key, None)

        replaced = self.replacements(tensors)

        def gone_alone(lost: object) -> None:
            replaced.count += 1
            gone(lost)

        bound.watches = [
            weakref.ref(tensor, gone if source.is_parameter else gone_alone)
            for tensor, source in zip(tensors, self.capture.sources, strict=True)
        ]
        self.bound[key] = bound
        self.scope.bounds.add(bound)
        self.scope.graphs.add(self)
        return bound

    def replacements(self, tensors: Sequence[Tensor]) -> Replaced:
        """How often buffers beside these parameters have gone while the parameters stayed."""
        own = [each for each, source in zip(tensors, self.capture.sources, strict=True) if source.is_parameter]
        self.replaced = [each for each in self.replaced if all(one() is not None for one in each.parameters)]
        for each in self.replaced:
            if len(own) == len(each.parameters) and all(a() is b for a, b in zip(each.parameters, own, strict=True)):
                return each
        self.replaced.append(Replaced([weakref.ref(tensor) for tensor in own]))
        return self.replaced[-1]


@dataclass(eq=False)
class Replaced:
    """Counts buffers that gave way to others between calls."""

    parameters: list[weakref.ref[Tensor]]
    count: int = 0


@dataclass(frozen=True, eq=False)
class Record:
    """A run that happened before planning: which graph, which weights (weakly), with what inputs."""

    graph: CompiledGraph
    tensors: tuple[weakref.ref[Tensor], ...]
    inputs: tuple[Any, ...]

    def alive(self) -> tuple[Tensor, ...] | None:
        """The weights, unless one of them is gone."""
        tensors = tuple(each() for each in self.tensors)
        return None if any(each is None for each in tensors) else tensors  # type: ignore[return-value]


class Scope:
    """Everything that belongs to one ``torch.compile``: its options, its graphs, what was recorded before planning."""

    def __init__(self, planner: Planner, options: Options) -> None:
        self.planner, self.options = planner, options
        self.lock = threading.RLock()
        self.bounds: weakref.WeakSet[Bound] = weakref.WeakSet()
        self.graphs: weakref.WeakSet[CompiledGraph] = weakref.WeakSet()
        self.records: list[Record] = []
        self.kept: FrameType | None = None  # of the call whose graphs are being recorded
        self.batch: Batch | None = None  # and its arguments
        self.said: set[str] = set()
        self.postponed = 0  # calls that could not be planned on

    def say_once(self, topic: str, message: str, *values: object) -> None:
        """A warning, once for each ``torch.compile``."""
        if topic not in self.said:
            self.said.add(topic)
            log.warning(message, *values)

    def resolve(self, graph: CompiledGraph, tensors: tuple[Tensor, ...], inputs: tuple[Any, ...]) -> Bound | None:
        """The program for these weights: known, made now, or None while the call's graphs are being recorded."""
        key = tuple(map(id, tensors))
        with self.lock:
            bound = graph.bound.get(key)
            if bound is not None and bound.current(tensors):
                return bound
            if key in graph.errors:
                raise graph.errors[key]
            if bound is not None and self._edited_often(graph, key, tensors):
                return graph.bind(tensors)
            if bound is None and self._replaced_often(graph, tensors):
                return graph.bind(tensors)
            frame = call_frame()
            try:
                with outside_of_calls():
                    return self._make(graph, tensors, inputs, frame)
            except AdaflexError as error:
                if isinstance(error, SizeError) and not self.options.strict:
                    self.say_once("size", "%s; the captured graph runs unplanned", error)
                    return graph.bind(tensors)
                if self._postpones(error):
                    return None if self.postponed < MOST_POSTPONED else graph.bind(tensors)
                graph.errors[key] = error
                raise

    def _make(
        self, graph: CompiledGraph, tensors: tuple[Tensor, ...], inputs: tuple[Any, ...], frame: CallFrame | None
    ) -> Bound | None:
        record = Record(graph, tuple(map(weakref.ref, tensors)), inputs)
        if not graph.whole and frame is not None and self.kept is not None and frame.frame is not self.kept:
            self._plan_records(frame.root)
            bound = graph.bound.get(tuple(map(id, tensors)))
            if bound is not None:
                return bound
        if not any(each.is_parameter for each in graph.capture.sources):
            return graph.bind(tensors)
        earlier = self._earlier(tensors)
        if earlier:
            return self._extend(record, tensors, earlier, frame)
        if graph.whole or frame is None:
            batch = None if frame is None or not graph.whole else Batch(frame.arguments, frame.keywords)
            return self._plan([record], batch, frame.root if frame else None)[0]
        if self.kept is None:
            self.kept = frame.frame
            self.batch = copied_batch(Batch(frame.arguments, frame.keywords))
        known = {(each.graph, tuple(map(id, each.alive() or ()))) for each in self.records}
        if (graph, tuple(map(id, tensors))) not in known:
            self.records.append(Record(graph, record.tensors, copied(inputs)))
        return None

    def _plan(self, records: Sequence[Record], batch: Batch | None, root: nn.Module | None) -> list[Bound]:
        """Plan the records together and bind them; those whose weights are gone are left out."""
        made: list[tuple[Record, tuple[Tensor, ...], Part]] = []
        for record in records:
            tensors = record.alive()
            if tensors is not None:
                whole = None if batch is None else copied_batch(batch)
                call = Call(copied(record.inputs), whole, root, record.graph.autocast, record.graph.whole)
                made.append((record, tensors, Part(record.graph.capture, record.graph.capture.bind(tensors), call)))
        if not made:
            return []
        runnables = self.planner.plan([part for _, _, part in made], self.options)
        return [
            record.graph.bind(tensors, runnable) for (record, tensors, _), runnable in zip(made, runnables, strict=True)
        ]

    def _extend(
        self, record: Record, tensors: tuple[Tensor, ...], earlier: Sequence[Bound], frame: CallFrame | None
    ) -> Bound:
        """A later graph over known weights: the same program where it is the same graph, else the same choices."""
        graph = record.graph
        for bound in earlier:
            if bound.signature == graph.signature and bound.key == tuple(map(id, tensors)):
                return graph.bind(tensors, bound.runnable)
        call = Call(copied(record.inputs), None, frame.root if frame else None, graph.autocast)
        part = Part(graph.capture, graph.capture.bind(tensors), call)
        return graph.bind(tensors, self.planner.extend(part, self.options, [each.runnable for each in earlier]))

    def _postpones(self, error: AdaflexError) -> bool:
        """Whether planning waits for a later call, because this one, which nobody chose to calibrate on, is unfit."""
        if not isinstance(error, CalibrationError) or self.options.calibration is not None or self.options.strict:
            return False
        self.postponed += 1
        self.say_once("unfit", "this call runs unplanned, a later one is planned on: %s", error)
        return True

    def _earlier(self, tensors: Sequence[Tensor]) -> list[Bound]:
        """Programs of this scope that hold one of these parameters."""
        parameters = {id(tensor) for tensor in tensors if isinstance(tensor, nn.Parameter)}
        return [bound for bound in self.bounds if bound.planned and parameters.intersection(bound.key)]

    def _edited_often(self, graph: CompiledGraph, key: Key, tensors: Sequence[Tensor]) -> bool:
        """Weights were edited: programs that hold one of them are dropped. Whether it is time to give up planning."""
        count = graph.edits[key] = graph.edits.get(key, 0) + 1
        self._forget(tensors)
        if count < MOST_EDITS:
            log.info("weights were edited since they were planned: planning again")
            return False
        self.say_once(
            "edits",
            "weights or buffers (of %s) were edited in place %d times between calls: their graph runs unplanned from "
            "now on; plan when they no longer change",
            ", ".join(each.name for each in graph.capture.sources[:3]),
            count,
        )
        return True

    def _replaced_often(self, graph: CompiledGraph, tensors: Sequence[Tensor]) -> bool:
        """Whether it is time to give up planning: the model puts other tensors in its buffers' places at each call."""
        if graph.replacements(tensors).count < MOST_EDITS:
            return False
        names = [each.name for each in graph.capture.sources if not each.is_parameter]
        self.say_once(
            "replaced",
            "buffers (of %s) were replaced by other tensors between calls, %d times: their graph runs unplanned from "
            "now on; write to them in place (self.buffer.copy_(...)), which is planned once",
            ", ".join(names[:3]),
            MOST_EDITS,
        )
        return True

    def _forget(self, tensors: Sequence[Tensor]) -> None:
        """Drop every program that holds one of these tensors."""
        stale = {id(tensor) for tensor in tensors}
        for graph in list(self.graphs):
            for key in [key for key in graph.bound if stale.intersection(key)]:
                self.bounds.discard(graph.bound.pop(key))

    def _plan_records(self, root: nn.Module | None) -> None:
        """The call whose graphs were recorded has ended: plan them together, and name what was never handed over."""
        records, self.records = self.records, []
        batch, self.batch = self.batch, None
        frame, self.kept = self.kept, None
        self._plan(records, batch, root)
        self.say_once(
            "breaks",
            "graph breaks cut the model: it was captured in %d pieces, planned together after the first call; "
            "fullgraph=True shows where it breaks",
            len(records),
        )
        if root is not None:
            self._name_unseen(root, records)
        if frame is not None:
            try:
                frame.clear()
            except RuntimeError:  # still running in another thread: its locals go when it ends
                log.debug("a recorded call is still running")

    def _name_unseen(self, root: nn.Module, records: Sequence[Record]) -> None:
        seen = {id(tensor) for record in records for tensor in record.alive() or ()}
        unseen = [(name, each) for name, each in root.named_parameters() if id(each) not in seen]
        if unseen:
            count = sum(each.numel() * each.element_size() for _, each in unseen)
            names = ", ".join(name for name, _ in unseen[:5]) + (", ..." if len(unseen) > 5 else "")
            self.say_once(
                "unseen",
                "not planned, because torch never handed them over: %s (%d bytes stay as they are); "
                "fullgraph=True shows why, adaflex.compile(model, inputs) avoids it",
                names,
                count,
            )


def _reference(capture: Capture, tensors: Sequence[Tensor]) -> Callable[..., Sequence[Any]]:
    """The captured graph with the weights of the moment, held weakly."""
    held = [weakref.ref(tensor) for tensor in tensors]

    def run(*inputs: Any) -> Sequence[Any]:
        alive = [each() for each in held]
        return capture.run(capture.bind([each for each in alive if each is not None]), inputs)

    return run
