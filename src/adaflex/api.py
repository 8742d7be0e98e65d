"""The Python surface: plan a model, compile it, find the programs behind a compiled module.

In: an ``nn.Module`` with example inputs, keywords as in ``options.py``. Out: ``ModelPlan``, ``Program``.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from adaflex import gpu, machine
from adaflex.adopting import UNPACKED, Decided, adopt, site_digests
from adaflex.applying import apply_plan, saved_of
from adaflex.calls import Call, Part
from adaflex.errors import CalibrationError, CaptureError, OptionError
from adaflex.handle import Program, load, manifest_of
from adaflex.options import Options, parse
from adaflex.passes.calibration import Batch, Calibration, calibration, samples, with_state
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.export_door import any_sizes, from_export
from adaflex.passes.menu import Machine
from adaflex.passes.widths import kept_of
from adaflex.planning import Planned, plan_model
from adaflex.progress import Bars
from adaflex.report import text_report
from adaflex.reporting import write_report
from adaflex.runtime.execute import Executor
from adaflex.runtime.signature import Leaf, Signature, structure
from adaflex.runtime.verdict import Verdict
from adaflex.saved import write
from adaflex.solver.plan import Plan
from adaflex.solver.table import CostTable
from adaflex.solver.table_json import encode
from adaflex.verifying import decision_of

__all__ = ["ModelPlan", "Program", "compile", "load", "plan"]

log = logging.getLogger("adaflex")


class ModelPlan:
    """A plan with the model it was made for: read it, explain it, compile it."""

    def __init__(self, planned: Planned, signature: Signature, state: Mapping[str, Tensor]) -> None:
        self.planned, self._signature, self._state = planned, signature, state

    @property
    def table(self) -> Any:
        """The cost table: serves any other budget."""
        return self.planned.table

    def report(self) -> str:
        """The text report."""
        return text_report(self.planned)

    def explain(self, name: str) -> str:
        """Why one site got its choice: every column with its cost, and why it was not taken."""
        from adaflex.report import explain_site

        return explain_site(self.planned, name)

    def pareto(self, over: str = "memory", values: Sequence[float] | int = 10, **keywords: Any) -> list[Plan]:
        """This table's plans as one budget is swept, the others kept: see ``adaflex.solver.pareto.pareto``."""
        from adaflex.solver.pareto import pareto

        return pareto(self.table, self.planned.plan.budget, over, values, **keywords)

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps(encode(self.planned.plan), indent=1)

    def compile(self) -> Program:
        """The program that runs by this plan."""
        return _program(self.planned, self._signature, self._state)


def plan(model: nn.Module, inputs: Any = None, **keywords: Any) -> ModelPlan:
    """Measure a model and decide every layer together under the given budgets.

    ``inputs``: a tensor or tuple is the positional arguments of one call, a dict its keyword arguments, a list several
    calls. Keywords are the options of ``options.py``. Raises ``BudgetError`` where no plan can meet the budgets.
    """
    options = parse(keywords)
    if options.device != "cpu":
        gpu.check(options)
    calls = _calls(inputs, options)
    given = calibration(inputs) if inputs is not None else calls
    if options.device != "cpu":
        model, calls = gpu.on_host(model, calls)
        _, given = gpu.on_host(model, given)
    first, every = given.batches[0], Calibration([*given.batches, *calls.batches])
    capture, weights = _captured(model, first, roomiest(every), options)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    state = {entry.name: buffers[entry.name].detach().clone() for entry in capture.inputs if entry.is_state}
    planned = _planned(capture, weights, with_state(calls, state), options, first)
    return ModelPlan(planned, signature_of(capture), state)


def compile(model: nn.Module, inputs: Any = None, **keywords: Any) -> Program:
    """Plan a model and return the program that runs by the plan."""
    return plan(model, inputs, **keywords).compile()


def _calls(inputs: Any, options: Options) -> Calibration:
    """Calibration calls: the option's, else the inputs themselves."""
    if options.calibration is not None:
        return calibration(options.calibration)
    if inputs is None:
        raise OptionError("no inputs were given; pass example inputs, or calibration=..., so that the model can be run")
    log.warning("no calibration was given: losses are measured on the example inputs alone")
    return calibration(inputs)


def _captured(model: nn.Module, first: Batch, example: Batch, options: Options) -> tuple[Capture, Weights]:
    """The model with the sizes the user left free, else with all free that it allows, with the first axes', or none."""
    if options.shapes is not None:
        return from_export(model, first.args, first.kwargs, options.shapes)
    for axes, kept in ((sys.maxsize, "all but the first sizes"), (1, "all sizes")):
        try:
            shapes = any_sizes(example.args, example.kwargs, model, axes)
            return from_export(model, example.args, example.kwargs, shapes)
        except CaptureError as fault:
            log.info("captured with %s fixed, because with free ones: %s", kept, fault)
    return from_export(model, first.args, first.kwargs)


def _planned(
    capture: Capture, weights: Weights, calls: Calibration, options: Options, timed: Batch | None = None
) -> Planned:
    """Plan (or apply a saved plan), save and report as the options say; ``timed``: the call whose latency counts."""
    with Bars() as bars, torch.no_grad():
        if options.plan is not None:
            planned = apply_plan(capture, weights, calls, options, timed)
        else:
            planned = plan_model(capture, weights, calls, options, bars, timed)
    if options.save_plan:
        write(options.save_plan, saved_of(planned))
    if options.report:
        write_report(planned, options.report)
    else:
        log.info("%s", planned.verdict.sentence())
    return planned


def signature_of(capture: Capture) -> Signature:
    """Argument paths and output nesting of a captured model."""
    given = [entry for entry in capture.inputs if not entry.is_state]
    count = itertools.count()
    leaves = [
        Leaf(next(count)) if output.dtype is not None else output.value
        for output in capture.outputs[len(capture.mutations) :]
    ]
    nested = capture.out_spec.unflatten(leaves) if capture.out_spec is not None else tuple(leaves)
    fixed = tuple((each.path, each.value, each.needed) for each in capture.fixed)
    paths = tuple(entry.path for entry in given)
    writes = tuple((each.output, each.input) for each in capture.mutations if not capture.inputs[each.input].is_state)
    return Signature(paths, structure(nested), len(capture.mutations), capture.positional, fixed, writes)


def _program(planned: Planned, signature: Signature, state: Mapping[str, Tensor]) -> Program:
    """``state``: the buffers that calls write to, as the first call finds them."""
    capture = planned.model.capture
    manifest = manifest_of(signature, encode(planned.plan), planned.verdict)
    places = [place for place, entry in enumerate(capture.inputs) if entry.is_state]
    written = tuple((each.output, places.index(each.input)) for each in capture.mutations if each.input in places)
    own = tuple(state[entry.name].clone() for entry in capture.inputs if entry.is_state)
    return Program(planned.executor, signature, manifest, planned.verdict, own, written)


# ---- the torch.compile door ----


class Planning:
    """A planned graph behind torch.compile: called with the graph's inputs, gives all its outputs."""

    plan: Plan
    table: CostTable
    verdict: Verdict
    report: str

    def __init__(self, capture: Capture, executor: Executor, decided: Decided, source: Planned | Planning) -> None:
        self._executor, self.decided = executor, decided
        self._places = [k for k, output in enumerate(capture.outputs) if output.dtype is not None]
        self._values = [output.value for output in capture.outputs]
        self._orders = orders_of(capture)
        self.plan, self.table, self.verdict = source.plan, source.table, source.verdict
        self.report = text_report(source) if isinstance(source, Planned) else source.report

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        outputs = list(self._values)
        for place, value in zip(self._places, self._executor(*inputs), strict=True):
            order = self._orders[place]
            outputs[place] = value if order is None else laid_out(value, order)
        return outputs


def orders_of(capture: Capture) -> list[tuple[int, ...] | None]:
    """For each computed output that torch would not give row by row, its axes from the longest stride to the shortest.

    What a caller may do without a copy (``view``) depends on it.
    """
    (made,) = next(node for node in reversed(capture.graph.graph.nodes) if node.op == "output").args
    assert isinstance(made, list | tuple)
    return [
        _order(node.meta["val"]) if output.kind == "fresh" and isinstance(node, fx.Node) else None
        for output, node in zip(capture.outputs, made, strict=True)
    ]


def _order(value: Any) -> tuple[int, ...] | None:
    """None for a tensor that lies row by row, or with gaps."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return None
    sizes, strides = ([_hint(each) for each in given] for given in (value.shape, value.stride()))
    order = tuple(sorted(range(len(sizes)), key=lambda axis: -strides[axis]))
    step = 1
    for axis in reversed(order):
        if sizes[axis] != 1 and strides[axis] != step:
            return None
        step *= sizes[axis]
    return None if order == tuple(range(len(order))) else order


def _hint(size: Any) -> int:
    """A size's value in the call that was traced; 0 where it was not known then."""
    return int(size.node.hint or 0) if isinstance(size, torch.SymInt) else int(size)


def laid_out(value: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same tensor with its axes in this order in memory."""
    return value.permute(order).contiguous().permute([order.index(axis) for axis in range(len(order))])


def plan_capture(capture: Capture, weights: Weights, call: Call, options: Options) -> Planning:
    """Plan one graph that Dynamo handed over whole.

    Calibration calls of other sizes than this one's are run on the whole model captured with free sizes.
    """
    if options.calibration is not None:
        data = calibration(options.calibration)
    else:
        if call.whole:
            log.warning("no calibration was given: losses are measured on your first call alone")
        data = Calibration([call.batch if call.batch is not None else Batch(tuple(call.inputs), {}, bound=True)])
    given = zip(capture.inputs, call.inputs, strict=True)
    data = with_state(data, {entry.name: value for entry, value in given if entry.is_state})
    scored = None if fits(capture, data) else replace(call, batch=roomiest(data)).recaptured()
    planned = _planned(*(scored or (capture, weights)), data, options, call.batch)
    decided = decided_of(planned)
    if scored is None:
        return Planning(capture, planned.executor, decided, planned)
    runs = adopt([decided], capture, weights, planned.machine, options.max_concurrency)
    return Planning(capture, runs, decided, planned)


def decided_of(planned: Planned) -> Decided:
    """What a plan decided, for graphs that come later."""
    decision = decision_of(planned.table, planned.plan)
    repaired = {
        site: each
        for site, each in decision.encodings.items()
        if kept_of(each) is not None or each.rounding == "compensated"
    }
    parts = {site: made.parts for site, made in planned.scores.tensors(repaired).items()}
    extra = {site: {name: found[name] for name in UNPACKED if name in found} for site, found in parts.items()}
    digests = site_digests(planned.sites, planned.model.weights)
    return Decided(decision, planned.assembled, digests, extra)


def roomiest(data: Calibration) -> Batch:
    """The call with the fewest sizes of 1: tracing takes a size of 1 for fixed."""

    def ones(batch: Batch) -> int:
        leaves = [*batch.args, *batch.kwargs.values()]
        return sum(size == 1 for leaf in leaves if isinstance(leaf, Tensor) for size in leaf.shape)

    return min(data.batches, key=ones)


def fits(capture: Capture, data: Calibration) -> bool:
    """Can every calibration call run on this graph?"""
    try:
        samples(capture, data)
    except CalibrationError:
        return False
    return True


def plan_captures(parts: Sequence[Part], options: Options) -> list[Planning]:
    """Plan the pieces of a model that graph breaks cut: each by itself, on its share of the loss.

    Raises ``OptionError`` for budgets that only hold for a model as a whole.
    """
    whole = [name for name in ("memory", "latency", "bits") if getattr(options, name) is not None]
    if whole:
        raise OptionError(
            f"{whole[0]} is a budget for the whole model, but graph breaks cut it into {len(parts)} pieces; "
            "mend the breaks (fullgraph=True shows them) or use adaflex.compile(model, inputs)"
        )
    given = "no calibration was given" if options.calibration is None else "calibration is for the whole model"
    log.warning("%s: losses of its pieces are measured on your first call alone", given)
    share = options.loss / math.sqrt(len(parts)) if options.loss is not None else None  # squares add up
    own = replace(options, loss=share, calibration=None)
    return [plan_capture(part.capture, part.weights, replace(part.call, batch=None), own) for part in parts]


def extend_plan(
    capture: Capture, weights: Weights, call: Call, options: Options, earlier: Sequence[Planning]
) -> Planning:
    """A later graph over known weights: known sites keep their choices and their stored bytes."""
    here = Machine(machine.isa(), machine.thread_count(options.threads), options.device)
    decided = [each.decided for each in earlier]
    with torch.no_grad():
        runs = adopt(decided, capture, weights, here, options.max_concurrency)
    return Planning(capture, runs, decided[0], earlier[0])
