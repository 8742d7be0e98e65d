"""The whole flow for one captured model, top to bottom: sites, scores, prices, table, plan, program, verdict.

In: a ``Capture`` with its weights, calibration calls, ``Options``. Out: ``Planned``.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from adaflex import gpu
from adaflex.allowed import check_finite, narrowed, pins_of, refuse_early
from adaflex.assembly import Assembled
from adaflex.codegen.kernels.menu import MENU
from adaflex.deciding import Solver, choose, with_bound_of
from adaflex.errors import BudgetError, CalibrationError, TimeLimitError
from adaflex.machine import cpu, isa, thread_count
from adaflex.native import cache_folder
from adaflex.options import Options
from adaflex.passes.calibration import Batch, Calibration
from adaflex.passes.capture import Capture, Weights, draws
from adaflex.passes.encoded_cache import EncodedCache
from adaflex.passes.menu import Machine
from adaflex.passes.score import Scores, score
from adaflex.passes.score_cache import Key, ScoreCache, key_of
from adaflex.passes.sites import Sites, find_sites, with_widths
from adaflex.placing import slower
from adaflex.runtime.execute import Executor
from adaflex.runtime.verdict import Verdict
from adaflex.solver.check import stall_ns
from adaflex.solver.plan import Plan
from adaflex.solver.table import Budget, CostTable
from adaflex.tabling import Model, Progress, kind_of, measured_table, model_of, silent
from adaflex.true_loss import TrueLoss
from adaflex.verifying import Attempt, Setting, attempted, judge

log = logging.getLogger("adaflex")

ROUNDS = 3  # corrections of a promise that did not hold
SLOWEST = 1e4  # times as slow as measured: no disk that answers is slower
SCALE_TOLERANCE = 0.10  # predicted against measured latency
SECONDS_TO_SOLVE = 30.0


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan with everything that made it and came of it."""

    model: Model
    sites: Sites
    scores: Scores
    table: CostTable
    plan: Plan
    assembled: Assembled
    executor: Executor
    verdict: Verdict
    uniform: Plan
    uniform_loss: float | None  # as measured on held-out data; the plan's own totals are the table's
    seconds: float
    machine: Machine


def plan_model(
    capture: Capture,
    weights: Weights,
    data: Calibration,
    options: Options,
    progress: Progress = silent,
    timed: Batch | None = None,
) -> Planned:
    """Plan, assemble and verify; latency is that of the call ``timed`` (None: the first calibration call).

    Raises ``BudgetError`` with the nearest possible wish, ``PromiseError``, ``TimeLimitError``, ``CalibrationError``.
    """
    start = time.perf_counter()
    options = undrawn(capture, options)
    here = here_for(options)
    model = model_of(capture, weights, data, options, timed)
    sites = sites_of(model, options, here)
    pins = pins_of(sites, options)
    refuse_early(capture, model.data, sites, pins, options)
    deadline = time.monotonic() + options.time_limit if options.time_limit else None
    key = key_of_scores(model, options)
    cache = None if key is None else ScoreCache(cache_folder("scores").parent, key)
    scores = score(
        capture,
        weights,
        sites,
        MENU,
        data,
        loss=kind_of(options),
        progress=lambda done, total, _: progress("scoring", done, total),
        deadline=deadline,
        cache=cache,
        store=None if key is None else EncodedCache(cache_folder("encoded").parent, key),
    )
    setting = Setting(model, sites, scores, options, here)
    table = measured_table(model, sites, scores, here, options, progress)
    left = deadline - time.monotonic() if deadline is not None else SECONDS_TO_SOLVE
    solver = Solver(pins, max(1.0, min(SECONDS_TO_SOLVE, left)))
    return _decide(setting, table, solver, TrueLoss(scores, cache, model.data, here), start)


def undrawn(capture: Capture, options: Options) -> Options:
    """The options; for a model that draws random numbers, whose runs differ by themselves, those of a lossless plan."""
    drawn = [node for node in capture.graph.graph.nodes if draws(node)]
    if not drawn:
        return options
    message = (
        f"the model draws random numbers ({drawn[0].name}), so that no loss can be measured: "
        "every layer keeps its form; call model.eval() if that is dropout"
    )
    if options.strict:
        raise CalibrationError(message)
    log.warning("%s", message)
    return replace(options, axes=(), loss=None, loss_fn=lambda output, batch: 0.0)


def here_for(options: Options) -> Machine:
    """This machine, as the options want it used."""
    found = Machine(isa(), thread_count(options.threads), options.device, cpu()[0])
    return found if options.device == "cpu" else replace(found, features=gpu.features())


def sites_of(model: Model, options: Options, here: Machine) -> Sites:
    """What there is to decide on the options' axes; weights that are not finite are said, or refused."""
    sites = find_sites(model.capture, model.weights, MENU, here)
    if "sparsity" in options.axes:
        sites = with_widths(sites, MENU, here)
    sites = narrowed(sites if here.device == "cpu" else gpu.offered(sites), options.axes)
    check_finite(sites, options.strict)
    return sites


def key_of_scores(model: Model, options: Options) -> Key | None:
    """Under what this model's scores are kept; None for a loss that only the user's function knows."""
    if callable(options.loss_fn):
        return None
    return key_of(model.capture, model.weights, model.data, options.loss_fn)


def budget_of(options: Options, table: CostTable) -> Budget:
    """The options' budgets in the table's units."""
    loss = None if options.loss is None else (options.loss**2 if options.loss_fn == "error" else options.loss)
    return Budget(
        memory_bytes=options.memory.resolve(table.baseline_bytes) if options.memory else None,
        latency_ns=(options.latency.resolve(table.baseline_ns[0]),) if options.latency else (),
        loss=loss,
        bits_milli=int(options.bits * 1000) if options.bits else None,
        tier_bytes=options.tiers,
        objective=options.objective,  # type: ignore[arg-type]
    )


def _decide(setting: Setting, table: CostTable, solver: Solver, true_loss: TrueLoss, start: float) -> Planned:
    """Choose by measured loss, assemble, measure everything; correct what did not hold, a few times."""
    asked = budget_of(setting.options, table)
    chosen = choose(table, asked, solver, true_loss)
    first = chosen.first
    attempt = attempted(setting, table, chosen.plan, asked, first.budget.loss)
    for _ in range(ROUNDS):
        changed = _corrected(asked, attempt)
        if changed is None:
            break
        true_loss.learn(attempt.table, attempt.plan, attempt.verdict)
        try:
            following = choose(changed, asked, solver, true_loss)
        except (BudgetError, TimeLimitError):  # no plan makes up for it: the verdict says what does not hold
            break
        same = following.plan.choices == attempt.plan.choices
        if same and _held(attempt, "stall"):
            break
        plan = with_bound_of(first, following.plan) if changed is table else following.plan
        attempt = attempted(setting, changed, plan, asked, first.budget.loss)
        if same:
            break
    judge(attempt.verdict, setting.options)
    return planned_of(setting, attempt, (chosen.uniform, chosen.uniform_loss), start)


def planned_of(setting: Setting, attempt: Attempt, uniform: tuple[Plan, float | None], start: float) -> Planned:
    """Everything about a plan that was attempted and kept; ``uniform``: the best uniform plan and its measured loss.

    ``start``: when planning began.
    """
    return Planned(
        setting.model,
        setting.sites,
        setting.scores,
        attempt.table,
        attempt.plan,
        attempt.assembled,
        attempt.executor,
        attempt.verdict,
        *uniform,
        time.perf_counter() - start,
        setting.here,
    )


def _held(attempt: Attempt, name: str) -> bool:
    return all(promise.held for promise in attempt.verdict.promises if promise.name == name)


def _restated(attempt: Attempt) -> CostTable:
    """The table for a disk that is slow enough to explain the stall that was measured."""
    (measured,) = (promise.measured or 0 for promise in attempt.verdict.promises if promise.name == "stall")
    factor, table = 1.0, attempt.table
    while stall_ns(table, attempt.plan.choices)[0] < measured and factor < SLOWEST:
        factor *= 1.1
        table = slower(attempt.table, factor)
    return table


def _corrected(asked: Budget, attempt: Attempt) -> CostTable | None:
    """The table that explains what was measured where a promise did not hold; None where all held."""
    by_name = {promise.name: promise for promise in attempt.verdict.promises}
    table, memory, latency = attempt.table, by_name["memory"], by_name["latency"]
    changed = not by_name["loss"].held  # the loss is no figure of the table: ``TrueLoss.learn``
    if not memory.held and memory.measured is not None and memory.planned is not None:
        excess = max(int(memory.measured - memory.planned), 0)
        cuts = tuple(replace(cut, base_bytes=cut.base_bytes + excess) for cut in table.cuts)
        table, changed = replace(table, cuts=cuts), True
    ratio = (latency.measured or 0) / max(latency.planned or 0, 1)
    if abs(ratio - 1) > SCALE_TOLERANCE and asked.latency_ns:
        scale = table.time_scale[0] / table.time_scale[1] * ratio
        table, changed = replace(table, time_scale=(int(scale * 10_000), 10_000)), True
    if not _held(attempt, "stall"):
        table, changed = replace(table, choices=_restated(attempt).choices), True
    return table if changed else None
