"""Measures a model into the cost table: what is planned, what its kernels cost here, how much it keeps alive.

In: a ``Capture`` with weights and calls, its sites and scores. Out: ``Model``, and its ``CostTable``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import torch

from adaflex.assembly import Provider, assemble, blocks_of, executor, skeleton
from adaflex.codegen.cpp import row_scratch
from adaflex.costing import Baseline, Facts, build_table, shared_specs, specs_of, uniform
from adaflex.machine import fingerprint
from adaflex.measuring import latency, latency_of
from adaflex.native import cache_folder
from adaflex.options import Options
from adaflex.passes.calibration import Batch, Calibration, Inputs, Samples, bind, samples
from adaflex.passes.capture import Capture, Weights, evaluate
from adaflex.passes.decision import Decision
from adaflex.passes.losses import Loss
from adaflex.passes.menu import Machine
from adaflex.passes.score import Scores
from adaflex.passes.sites import Sites
from adaflex.placing import Placement, disk, placed
from adaflex.price_cache import PriceCache
from adaflex.pricing import Price, Spec, price
from adaflex.runtime.execute import Executor
from adaflex.runtime.inputs import sizes_of
from adaflex.runtime.layout import plan_layout
from adaflex.skipping import Meter, measured, with_skips
from adaflex.solver.table import CostTable, Encoding

Progress = Callable[[str, int, int], None]  # (what, done, total)

LEVELS = (  # uniform plans whose arenas are laid out
    ("fp32", "embed32"),
    ("w8a8", "embed8"),
    ("w8a8_grouped", "w4a8", "embed8"),
    ("w8", "embed8"),
)


@dataclass(frozen=True, eq=False)
class Model:
    """What is planned: one graph, its weights and calls."""

    capture: Capture
    weights: Weights
    data: Samples
    timed: Inputs  # the call that latency is measured on
    same_data: bool  # nothing was held out


def kind_of(options: Options) -> Loss:
    """The loss function as scoring takes it."""
    given = options.loss_fn
    return given if callable(given) else "kl" if given == "kl" else "error"


def silent(what: str, done: int, total: int) -> None:
    """Progress that goes nowhere."""


def model_of(
    capture: Capture, weights: Weights, data: Calibration, options: Options, timed: Batch | None = None
) -> Model:
    """What is planned, its calls bound and checked; ``timed``: the call whose latency counts."""
    bound = samples(capture, data, whole=callable(options.loss_fn))
    first = bound.fit[0] if timed is None or any(entry.is_state for entry in capture.inputs) else bind(capture, timed)
    return Model(capture, weights, bound, first, same_data=not bound.held)


def rows_of(model: Model, sites: Sites) -> dict[str, int]:
    """Rows that each site's linears see in the timed call (all uses together), or a table's lookups where it has none.

    What looking up rows of a head's weight takes is part of what no choice changes.
    """
    values = model.capture.bind_symbols(model.timed)
    nodes = {node.name: node for node in model.capture.graph.graph.nodes}
    found = {}
    for site in sites.sites:
        total = 0
        products = [use for use in sites.uses[site.id] if nodes[use].target is torch.ops.aten.linear.default]
        for use in products or sites.uses[site.id]:
            shape = [evaluate(size, values) for size in model.capture.sizes(nodes[use])]
            total += math.prod(shape[:-1])
        found[site.id] = total
    return found


def provider_of(scores: Scores, decision: Decision) -> Provider:
    """The tensors of a plan as they were scored."""
    tensors = scores.tensors(decision.encodings)
    return lambda site, _: tensors[site]


def prices_of(specs: AbstractSet[Spec], here: Machine, progress: Callable[[int, int], None]) -> dict[Spec, Price]:
    """What each kernel costs here: as kept, the rest measured now. What siblings take together is held against what
    they take one by one, so both are measured in the same rounds."""
    kept = PriceCache(cache_folder("prices").parent, here)
    missing = {spec for spec in specs if kept.get(spec) is None}
    missing |= specs & {replace(spec, n=n, others=()) for spec in missing for n in (spec.n, *spec.others)}
    found = price(sorted(missing, key=repr), here, progress)
    kept.put(found)
    return {spec: found.get(spec) or kept.prices[repr(spec)] for spec in specs}


def measured_table(
    model: Model, sites: Sites, scores: Scores, here: Machine, options: Options, progress: Progress
) -> CostTable:
    """Price the kernels, time an assembled uniform plan, and put the table together."""
    rows = rows_of(model, sites)
    specs = {key: spec for key, spec in specs_of(sites, rows).items() if key in scores.loss}
    shared = shared_specs(sites, rows, scores.loss) if here.device == "cpu" else {}
    prices = prices_of({*specs.values(), *shared.values()}, here, lambda done, total: progress("timing", done, total))
    encodings = uniform(sites, ("bf16", "embed16"), scores.loss)
    level = Decision(encodings)
    base = executor(
        assemble(model.capture, model.weights, sites, level, provider_of(scores, level)), here, options.max_concurrency
    )
    memory = base.memory(model.timed)
    taken, _ = latency_of(base, model.timed)
    placement = placement_of(model, sites, options)
    tiers = {site: "disk" for block in placement.blocks for site in block} if placement is not None else {}
    levels = [Decision(uniform(sites, each, scores.loss), tiers=tiers) for each in LEVELS]
    live = max(most_live(base, model), *(_live_of(base, model, sites, each) for each in levels))
    baseline = Baseline(encodings, memory["weights"], live, taken)
    eager, _ = latency(lambda: model.capture.run(model.weights, model.timed), bursts=3)
    facts = Facts(
        default_loss=scores.bf16_loss,
        loss_kind=scores.kind,
        eager_ns=eager,
        machine=fingerprint(here.threads),
        device=here.device,
        notes=tuple(scores.notes),
    )
    table = build_table(sites, scores.loss, rows, prices, baseline, facts, scores.source, shared)
    if scores.skip_loss:
        table = _skipping(model, sites, scores, here, (base, table, encodings))
    return table if placement is None else placed(table, placement)


def placement_of(model: Model, sites: Sites, options: Options) -> Placement | None:
    """What can be streamed from which disk; None where placement is no axis, or nothing can be."""
    if "placement" not in options.axes or options.device != "cpu":
        return None
    blocks = blocks_of(model.capture, sites)
    return Placement(blocks, disk(), options.max_concurrency) if blocks else None


def _skipping(
    model: Model,
    sites: Sites,
    scores: Scores,
    here: Machine,
    level: tuple[Executor, CostTable, dict[str, Encoding]],
) -> CostTable:
    """The table with the model's skips, measured on a uniform plan."""
    base, table, encodings = level
    meter = Meter(
        model.capture,
        model.capture.bind_symbols(model.timed),
        lambda decision: _live_of(base, model, sites, decision),
        lambda decision: _time_of(model, sites, scores, here, decision),
    )
    return with_skips(table, sites, scores.skip_loss, measured(table, sites, encodings, meter))


def _time_of(model: Model, sites: Sites, scores: Scores, here: Machine, decision: Decision) -> int:
    """Nanoseconds of the timed call under a decision."""
    runs = executor(assemble(model.capture, model.weights, sites, decision, provider_of(scores, decision)), here)
    return latency_of(runs, model.timed)[0]


def most_live(base: Executor, model: Model) -> int:
    """Most arena, ring and library bytes over all sizes seen in calibration."""
    most = 0
    for inputs in (*model.data.fit, *model.data.held):
        memory = base.memory(inputs)
        most = max(most, memory["arena"] + memory["ring"] + memory["library"])
    return most


def _live_of(base: Executor, model: Model, sites: Sites, decision: Decision) -> int:
    """Most arena and library bytes of another decision, laid out but not built: its rows' scratch, what other steps
    need as in the built one. Of all calls at once."""
    program, _ = skeleton(model.capture, sites, decision)
    whole = getattr(base.kernels, "whole", False)
    most = 0
    for inputs in (*model.data.fit, *model.data.held):
        values = sizes_of(base.program, inputs)
        scratch = base.kernels.scratch_bytes(tuple(values.get(name, 0) for name in program.symbols))
        if not whole:
            scratch = max(scratch, row_scratch(program, values))
        layout = plan_layout(program, values, base.threads, scratch, whole)
        most = max(most, layout.arena_bytes + layout.library_bytes)
    return most * base.max_concurrency
