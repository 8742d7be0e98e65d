"""Applies a saved plan to a model: digests are checked, nothing is scored, what was promised is measured again.

In: a ``Capture`` with its weights, calibration calls, ``Options`` with ``plan``. Out: ``Planned``.
"""

from __future__ import annotations

import time
from dataclasses import replace

from adaflex.allowed import uniform_plan
from adaflex.codegen.kernels.menu import MENU
from adaflex.errors import OptionError
from adaflex.options import AXES, Options
from adaflex.passes.calibration import Batch, Calibration
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.encoder import Encoder
from adaflex.passes.score import Scores
from adaflex.passes.sites import Sites
from adaflex.planning import Planned, budget_of, here_for, planned_of, sites_of
from adaflex.saved import Saved, check, digest_of, read
from adaflex.solver.table import Budget, CostTable
from adaflex.tabling import Model, model_of
from adaflex.verifying import Setting, attempted, decision_of, judge


def apply_plan(
    capture: Capture, weights: Weights, data: Calibration, options: Options, timed: Batch | None = None
) -> Planned:
    """The saved plan on this model; the weights are repaired on the data given. ``OptionError`` where the file belongs
    to another model, ``PromiseError`` where what it promises (or the options ask) does not hold here."""
    start = time.perf_counter()
    assert options.plan is not None
    saved = read(options.plan)
    here = here_for(options)
    model = model_of(capture, weights, data, options, timed)
    sites = sites_of(model, replace(options, axes=AXES), here)
    calls = {str(number): list(inputs) for number, inputs in enumerate(model.data.fit)}
    check(saved, options.plan, weights_digest(model, sites), digest_of(calls), sites.offers)
    _check_blocks(saved, options.plan, sites)
    table, plan = saved.table, saved.plan
    setting = Setting(model, sites, _scores(model, sites, table), options, here)
    promised = plan.budget if saved.asked_loss is None else replace(plan.budget, loss=saved.asked_loss)
    asked = _asked(budget_of(options, table), promised)
    attempt = attempted(setting, table, plan, asked, asked.loss if asked.loss is not None else promised.loss)
    judge(attempt.verdict, options)
    return planned_of(setting, attempt, (uniform_plan(table, plan.budget, None), None), start)


def _check_blocks(saved: Saved, path: str, sites: Sites) -> None:
    """``OptionError`` where the plan leaves out what this model does not have."""
    unknown = set(decision_of(saved.table, saved.plan).skipped) - {block.id for block in sites.blocks}
    if unknown:
        raise OptionError(f"plan='{path}' leaves out '{min(unknown)}', which is no block of this model; plan again")


def _asked(given: Budget, planned: Budget) -> Budget:
    """The options' budgets, or the plan's own where the options have none."""
    limits = (given.memory_bytes, given.loss, given.bits_milli, *given.latency_ns)
    return given if any(limit is not None for limit in limits) else planned


def _scores(model: Model, sites: Sites, table: CostTable) -> Scores:
    """The table's losses in the place of measured ones."""
    encoder = Encoder(model.capture, model.weights, sites, MENU, model.data)
    costs = {
        (site, choice.encoding): choice.cost
        for choice in table.choices
        for site in choice.sites
        if choice.encoding is not None and len(choice.sites) == 1
    }
    losses = {key: cost.loss for key, cost in costs.items()}
    source = {key: str(cost.loss_source) for key, cost in costs.items()}
    return Scores(losses, source, {}, table.default_loss, table.loss_kind, table.notes, encoder)


def weights_digest(model: Model, sites: Sites) -> str:
    """Digest of every decided weight."""
    return digest_of({site.id: sites.weight(model.weights, site.id) for site in sites.sites})


def saved_of(planned: Planned) -> Saved:
    """What is saved of a plan: the same through both doors."""
    calls = {str(number): list(inputs) for number, inputs in enumerate(planned.model.data.fit)}
    weights = weights_digest(planned.model, planned.sites)
    asked = next((promise.asked for promise in planned.verdict.promises if promise.name == "loss"), None)
    return Saved(planned.plan, planned.table, weights, digest_of(calls), asked)
