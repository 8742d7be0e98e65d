"""The whole flow for one captured model, top to bottom: sites, scores, prices, table, plan, program, verdict.

In: a ``Capture`` with its weights, calibration calls, ``Options``. Out: ``Planned``.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from adaflex.allowed import check_finite, narrowed, pins_of, refuse_early, uniform_plan
from adaflex.assembly import Assembled, assemble, executor
from adaflex.codegen.kernels.menu import MENU
from adaflex.errors import BudgetError, PromiseError, TimeLimitError
from adaflex.machine import cpu, isa, thread_count
from adaflex.measuring import latency, loss_of
from adaflex.native import cache_folder
from adaflex.options import Options
from adaflex.passes.calibration import Batch, Calibration
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.menu import Machine
from adaflex.passes.score import Scores, score
from adaflex.passes.score_cache import ScoreCache, key_of
from adaflex.passes.sites import Sites, find_sites
from adaflex.runtime.execute import Executor
from adaflex.runtime.verdict import Promise, Verdict
from adaflex.solver.allocate import allocate
from adaflex.solver.pins import Pins
from adaflex.solver.plan import Plan, Status
from adaflex.solver.table import Budget, CostTable, Encoding
from adaflex.tabling import Model, Progress, kind_of, measured_table, model_of, most_live, provider_of, silent

log = logging.getLogger("adaflex")

ROUNDS = 3  # corrections of a promise that did not hold
SAFETY = 0.97  # of what a corrected loss budget would have to be
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
    here = here_for(options)
    model = model_of(capture, weights, data, options, timed)
    sites = sites_of(model, options, here)
    pins = pins_of(sites, options)
    refuse_early(capture, model.data, sites, pins, options)
    deadline = time.monotonic() + options.time_limit if options.time_limit else None
    scores = score(
        capture,
        weights,
        sites,
        MENU,
        data,
        loss=kind_of(options),
        progress=lambda done, total, _: progress("scoring", done, total),
        deadline=deadline,
        cache=cache_of(model, options),
    )
    table = measured_table(model, sites, scores, here, options, progress)
    left = deadline - time.monotonic() if deadline is not None else SECONDS_TO_SOLVE
    solver = Solver(pins, max(1.0, min(SECONDS_TO_SOLVE, left)))
    return _decide(model, sites, scores, table, options, here, solver, start)


@dataclass(frozen=True)
class Solver:
    """How tables are solved: what is pinned, and for how long."""

    pins: Pins | None
    seconds: float

    def best(self, table: CostTable, budget: Budget) -> Plan:
        """The plan of a table."""
        return allocate(table, budget, time_limit_s=self.seconds, pins=self.pins)

    def uniform(self, table: CostTable, budget: Budget) -> Plan:
        """The best uniform plan."""
        return uniform_plan(table, budget, self.pins)


def here_for(options: Options) -> Machine:
    """This machine, as the options want it used."""
    return Machine(isa(), thread_count(options.threads), options.device, cpu()[0])


def sites_of(model: Model, options: Options, here: Machine) -> Sites:
    """What there is to decide on the options' axes; weights that are not finite are said, or refused."""
    sites = narrowed(find_sites(model.capture, model.weights, MENU, here), options.axes)
    check_finite(sites, options.strict)
    return sites


def cache_of(model: Model, options: Options) -> ScoreCache | None:
    """Where this model's scores are kept; nowhere for a loss that only the user's function knows."""
    if callable(options.loss_fn):
        return None
    return ScoreCache(cache_folder("scores").parent, key_of(model.capture, model.weights, model.data, options.loss_fn))


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


@dataclass(frozen=True, eq=False)
class Attempt:
    """A plan as it was assembled and measured."""

    table: CostTable  # that the plan was made from
    plan: Plan
    assembled: Assembled
    executor: Executor
    verdict: Verdict


def _decide(
    model: Model,
    sites: Sites,
    scores: Scores,
    table: CostTable,
    options: Options,
    here: Machine,
    solver: Solver,
    start: float,
) -> Planned:
    """Solve, assemble, measure; correct what did not hold, a few times; the best uniform plan is a candidate too."""
    asked = budget_of(options, table)
    budget = asked
    first = solver.best(table, budget)
    plan = first
    attempt: Attempt | None = None
    for _ in range(ROUNDS + 1):
        _refuse(plan)
        attempt = attempted(model, sites, scores, table, plan, options, asked, here)
        corrected = _corrected(budget, table, attempt)
        if corrected is None:
            break
        budget, table = corrected
        following = solver.best(table, budget)
        if following.status not in ("optimal", "feasible") or following.choices == plan.choices:
            break
        plan = following
    assert attempt is not None
    attempt = _with_first_bound(attempt, first)
    level = solver.uniform(table, budget)
    if not attempt.verdict.held and level.choices:
        other = attempted(model, sites, scores, table, level, options, asked, here)
        attempt = other if other.verdict.held else attempt
    judge(attempt.verdict, options)
    return Planned(
        model,
        sites,
        scores,
        attempt.table,
        attempt.plan,
        attempt.assembled,
        attempt.executor,
        attempt.verdict,
        level,
        time.perf_counter() - start,
        here,
    )


def _refuse(plan: Plan) -> None:
    if plan.status == "infeasible":
        raise BudgetError("no plan meets the budgets: " + "; ".join(plan.reasons))
    if plan.status == "unknown":
        raise TimeLimitError("the time limit ended before any plan was found; raise time_limit")


def encodings_of(table: CostTable, plan: Plan) -> dict[str, Encoding]:
    """The encoding of each site under a plan."""
    by_id = {choice.id: choice for choice in table.choices}
    found = {}
    for site, choice in plan.choices:
        encoding = by_id[choice].encoding
        if encoding is not None:
            found[site] = encoding
    return found


def attempted(
    model: Model,
    sites: Sites,
    scores: Scores,
    table: CostTable,
    plan: Plan,
    options: Options,
    asked: Budget,
    here: Machine,
) -> Attempt:
    """Assemble a plan and measure what it promised."""
    encodings = encodings_of(table, plan)
    made = assemble(model.capture, model.weights, sites, encodings, provider_of(scores, encodings))
    runs = executor(made, here, options.max_concurrency)
    held = model.data.held or model.data.fit
    measured_loss = loss_of(runs, model.capture, model.weights, model.data, held, kind_of(options))
    taken, spread = latency(lambda: runs(*model.timed))
    memory = runs.memory(model.timed)["weights"] + most_live(runs, model)
    totals = plan.totals
    assert totals is not None
    limit = asked.loss if asked.loss is not None else plan.budget.loss
    promises = (
        Promise("memory", "bytes", asked.memory_bytes, totals.peak_bytes, memory),
        Promise(
            "latency", "ns", asked.latency_ns[0] if asked.latency_ns else None, totals.time_ns[0], taken, spread * taken
        ),
        Promise("loss", table.loss_kind, limit, totals.loss, measured_loss),
        *_bits(made, sites, asked, totals.bits_milli),
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


def _corrected(budget: Budget, table: CostTable, attempt: Attempt) -> tuple[Budget, CostTable] | None:
    """The budget or table that makes up for what did not hold; None where all held."""
    by_name = {promise.name: promise for promise in attempt.verdict.promises}
    changed = False
    loss, memory, latency_promise = by_name["loss"], by_name["memory"], by_name["latency"]
    if not loss.held and loss.asked and loss.measured:
        now = budget.loss if budget.loss is not None else loss.asked
        budget = replace(budget, loss=now * (loss.asked / loss.measured) * SAFETY)
        changed = True
    if not memory.held and memory.measured is not None and memory.planned is not None:
        excess = max(int(memory.measured - memory.planned), 0)
        cuts = tuple(replace(cut, base_bytes=cut.base_bytes + excess) for cut in table.cuts)
        table, changed = replace(table, cuts=cuts), True
    ratio = (latency_promise.measured or 0) / max(latency_promise.planned or 0, 1)
    if abs(ratio - 1) > SCALE_TOLERANCE and budget.latency_ns:
        scale = table.time_scale[0] / table.time_scale[1] * ratio
        table, changed = replace(table, time_scale=(int(scale * 10_000), 10_000)), True
    return (budget, table) if changed else None


def _with_first_bound(attempt: Attempt, first: Plan) -> Attempt:
    """The bound printed is that of the user's own problem: the first solve, nothing lowered."""
    plan = attempt.plan
    if plan is first or first.bound is None or plan.value is None or plan.objective != first.objective:
        return attempt
    gap = abs(plan.value - first.bound) / max(abs(plan.value), 1e-30)
    status: Status = "optimal" if gap <= 1e-9 else "feasible"
    return replace(attempt, plan=replace(plan, bound=first.bound, gap=gap, status=status))


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
