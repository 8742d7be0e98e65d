"""The Python surface: plan a model, compile it, find the programs behind a compiled module.

In: an ``nn.Module`` with example inputs, keywords as in ``options.py``. Out: ``ModelPlan``, ``Program``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from adaflex.applying import apply_plan, saved_of
from adaflex.compiled import Call, Part
from adaflex.errors import OptionError
from adaflex.handle import Program, load, manifest_of
from adaflex.options import Options, parse
from adaflex.passes.calibration import Calibration, calibration
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.export_door import from_export
from adaflex.planning import Planned, plan_model
from adaflex.progress import Bars
from adaflex.report import text_report, write_report
from adaflex.runtime.signature import Signature, structure
from adaflex.saved import write
from adaflex.solver.table_json import encode

__all__ = ["ModelPlan", "Program", "compile", "load", "plan", "programs"]

log = logging.getLogger("adaflex")


class ModelPlan:
    """A plan with the model it was made for: read it, explain it, compile it."""

    def __init__(self, planned: Planned, signature: Signature) -> None:
        self.planned, self._signature = planned, signature

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

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps(encode(self.planned.plan), indent=1)

    def compile(self) -> Program:
        """The program that runs by this plan."""
        return _program(self.planned, self._signature)


def plan(model: nn.Module, inputs: Any = None, **keywords: Any) -> ModelPlan:
    """Measure a model and decide every layer together under the given budgets.

    ``inputs``: a tensor or tuple is the positional arguments of one call, a dict its keyword arguments, a list several
    calls. Keywords are the options of ``options.py``. Raises ``BudgetError`` where no plan can meet the budgets.
    """
    options = parse(keywords)
    calls = _calls(inputs, options)
    first = calls.batches[0]
    capture, weights = from_export(model, first.args, first.kwargs, _shapes(options, first.args, first.kwargs))
    planned = _planned(capture, weights, calls, options)
    return ModelPlan(planned, signature_of(capture))


def compile(model: nn.Module, inputs: Any = None, **keywords: Any) -> Program:
    """Plan a model and return the program that runs by the plan."""
    return plan(model, inputs, **keywords).compile()


def programs(compiled: object) -> list[Any]:
    """The programs behind ``torch.compile(model, backend="adaflex")``, in the order they were planned."""
    from adaflex import backend

    return list(backend.programs(compiled))


def _calls(inputs: Any, options: Options) -> Calibration:
    """Calibration calls: the option's, else the inputs themselves."""
    if options.calibration is not None:
        return calibration(options.calibration)
    if inputs is None:
        raise OptionError("no inputs were given; pass example inputs, or calibration=..., so that the model can be run")
    log.warning("no calibration was given: losses are measured on the example inputs alone")
    return calibration(inputs)


def _shapes(options: Options, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """torch.export's dynamic shapes: the user's, else every size free where the model allows it."""
    return options.shapes


def _planned(capture: Capture, weights: Weights, calls: Calibration, options: Options) -> Planned:
    with Bars() as bars:
        if options.plan is not None:
            planned = apply_plan(capture, weights, calls, options)
        else:
            planned = plan_model(capture, weights, calls, options, bars)
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
    count = len(capture.outputs) - len(capture.mutations)
    leaves = list(range(count))
    nested = capture.out_spec.unflatten(leaves) if capture.out_spec is not None else tuple(leaves)
    return Signature(tuple(entry.path for entry in given), structure(nested), len(capture.mutations))


def _program(planned: Planned, signature: Signature) -> Program:
    capture = planned.model.capture
    manifest = manifest_of(signature, encode(planned.plan), planned.verdict)
    states = [entry for entry in capture.inputs if entry.is_state]
    if states:
        raise OptionError("this model writes to its own buffers; use torch.compile(model, backend='adaflex') for it")
    return Program(planned.executor, signature, manifest, planned.verdict)


# ---- the torch.compile door ----


class Planning:
    """A planned graph behind torch.compile: called with the graph's inputs, gives all its outputs."""

    def __init__(self, planned: Planned) -> None:
        self._executor = planned.executor
        self._places = [k for k, output in enumerate(planned.model.capture.outputs) if output.dtype is not None]
        self._values = [output.value for output in planned.model.capture.outputs]
        self.plan, self.table, self.verdict = planned.plan, planned.table, planned.verdict
        self.report = text_report(planned)

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        outputs = list(self._values)
        for place, value in zip(self._places, self._executor(*inputs), strict=True):
            outputs[place] = value
        return outputs


def plan_capture(capture: Capture, weights: Weights, call: Call, options: Options) -> Planning:
    """Plan one graph that Dynamo handed over whole."""
    if options.calibration is not None:
        data = calibration(options.calibration)
    elif call.batch is not None:
        log.warning("no calibration was given: losses are measured on your first call alone")
        data = Calibration([call.batch.given if call.batch.given is not None else (call.batch.args, call.batch.kwargs)])
    else:
        data = Calibration([tuple(call.inputs)])
    return Planning(_planned(capture, weights, data, options))


def plan_captures(parts: Iterable[Part], options: Options) -> list[Planning]:
    """Plan several graphs of one call, one after the other."""
    return [plan_capture(part.capture, part.weights, part.call, options) for part in parts]


def extend_plan(capture: Capture, weights: Weights, call: Call, options: Options, earlier: Sequence[Any]) -> Planning:
    """A later graph over known weights: planned under the same options."""
    return plan_capture(capture, weights, call, options)
