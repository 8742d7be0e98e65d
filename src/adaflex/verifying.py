"""Assembles a plan and measures what it promised.

In: a plan, its table, the model. Out: ``Attempt`` with a ``Verdict``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from adaflex.assembly import Assembled, assemble, executor
from adaflex.errors import PromiseError
from adaflex.measuring import latency_of, loss_of, stall
from adaflex.options import Options
from adaflex.passes.decision import Decision
from adaflex.passes.menu import Machine
from adaflex.passes.score import Scores
from adaflex.passes.sites import Sites
from adaflex.runtime.execute import Executor
from adaflex.runtime.verdict import Promise, Verdict, stall_promise
from adaflex.skipping import block_of
from adaflex.solver.check import stall_ns
from adaflex.solver.plan import Plan
from adaflex.solver.table import Budget, CostTable
from adaflex.tabling import Model, kind_of, most_live, provider_of

log = logging.getLogger("adaflex")


@dataclass(frozen=True, eq=False)
class Setting:
    """What every attempt at a plan of one model shares."""

    model: Model
    sites: Sites
    scores: Scores
    options: Options
    here: Machine


@dataclass(frozen=True, eq=False)
class Attempt:
    """A plan as it was assembled and measured."""

    table: CostTable  # that the plan was made from
    plan: Plan
    assembled: Assembled
    executor: Executor
    verdict: Verdict


def decision_of(table: CostTable, plan: Plan) -> Decision:
    """What a plan decides, in the model's own names."""
    by_id = {choice.id: choice for choice in table.choices}
    taken = [(site, by_id[choice]) for site, choice in plan.choices]
    return Decision(
        {site: choice.encoding for site, choice in taken if choice.encoding is not None},
        tuple(dict.fromkeys(block_of(choice) for _, choice in taken if choice.axis == "skip")),
        {site: choice.tier for site, choice in taken if choice.tier != table.tiers[0].name},
    )


def attempted(setting: Setting, table: CostTable, plan: Plan, asked: Budget, most_loss: float | None) -> Attempt:
    """Assemble a plan and measure it; ``most_loss``: the loss that was asked for or implied."""
    model, scores, here = setting.model, setting.scores, setting.here
    decision = decision_of(table, plan)
    made = assemble(model.capture, model.weights, setting.sites, decision, provider_of(scores, decision))
    runs = executor(made, here, setting.options.max_concurrency)
    held = model.data.held or model.data.fit
    loss = loss_of(runs, model.capture, model.weights, model.data, held, kind_of(setting.options))
    taken, spread = latency_of(runs, model.timed)
    memory = runs.memory(model.timed)["weights"] + most_live(runs, model)
    totals = plan.totals
    assert totals is not None
    most_ns = asked.latency_ns[0] if asked.latency_ns else None
    promises = (
        Promise("memory", "bytes", asked.memory_bytes, totals.peak_bytes, memory),
        Promise("latency", "ns", most_ns, totals.time_ns[0], taken, spread * taken),
        Promise("loss", table.loss_kind, most_loss, totals.loss, loss),
        *_bits(made, setting.sites, asked, totals.bits_milli),
        *_stall(runs, table, plan, model),
    )
    return Attempt(table, plan, made, runs, Verdict(promises, model.same_data, here_text(here)))


def _bits(made: Assembled, sites: Sites, asked: Budget, planned: int) -> tuple[Promise, ...]:
    """The promise on bits per weight, where one was asked for: stored bytes against original weights."""
    if asked.bits_milli is None:
        return ()
    names = {site.id for site in sites.sites}
    stored = sum(constant.size_bytes for constant in made.program.constants if constant.name in names)
    measured = 8 * stored / max(sum(site.weight_count for site in sites.sites), 1)
    return (Promise("bits", "bits per weight", asked.bits_milli / 1000, planned / 1000, measured),)


def _stall(runs: Executor, table: CostTable, plan: Plan, model: Model) -> tuple[Promise, ...]:
    """How long a call waits for the disk, the page cache cold: stated by the table, and measured."""
    if runs.staging is None:
        return ()
    stated = stall_ns(table, plan.choices)[0]
    return (stall_promise(stated, stall(runs, lambda: runs(*model.timed))),)


def judge(verdict: Verdict, options: Options) -> None:
    """``PromiseError``, or a warning, where a promise did not hold."""
    if verdict.held:
        return
    said = verdict.sentence()
    if options.on_broken == "error":
        raise PromiseError(said)
    log.warning("%s", said)


def here_text(here: Machine) -> str:
    """One line that names the machine."""
    return f"{here.name}, {here.threads} threads, {here.isa}"
