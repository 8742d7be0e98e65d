"""What the options leave of the choices, settled before anything is scored: axes, pins, and budgets that bytes decide.

In: ``Sites``, ``Options``, the captured model. Out: narrowed ``Sites``, checked ``Pins``; ``OptionError`` for a pattern
that matches nothing, ``BudgetError`` with the least achievable where no plan can be small enough.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adaflex.assembly import skeleton
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.costing import choice_id, uniform
from adaflex.errors import BudgetError, OptionError
from adaflex.options import Options
from adaflex.passes.calibration import Inputs, Samples
from adaflex.passes.capture import Capture
from adaflex.passes.decision import Decision
from adaflex.passes.sites import Sites
from adaflex.passes.widths import dense
from adaflex.runtime.layout import plan_layout
from adaflex.runtime.program import Program
from adaflex.solver.allocate import best_uniform, plan_of
from adaflex.solver.check import totals
from adaflex.solver.decide import Outcome
from adaflex.solver.objective import resolve, value_of, without_loss
from adaflex.solver.pins import Pins, excluded_by, matches
from adaflex.solver.plan import Plan
from adaflex.solver.table import Budget, Choice, Cost, CostTable, Encoding
from adaflex.solver.uniform import uniform_choices
from adaflex.solver.units import show_bytes

log = logging.getLogger("adaflex")

SUFFIX = ".weight"  # of a site's name; patterns may leave it out
NOT_FINITE = "holds NaN or Inf"


def narrowed(sites: Sites, axes: Collection[str]) -> Sites:
    """The sites with only what these axes offer; what changes nothing is always left."""
    offers = {site: _on_axes(sites.keep[site], found, axes) for site, found in sites.offers.items()}
    return replace(sites, offers=offers, blocks=sites.blocks if "skip" in axes else ())


def _on_axes(keep: Encoding, offers: Sequence[Encoding], axes: Collection[str]) -> tuple[Encoding, ...]:
    def allowed(encoding: Encoding) -> bool:
        sparse, dense = bool(encoding.sparsity), replace(encoding, sparsity="") == replace(keep, sparsity="")
        return ("sparsity" in axes or not sparse) and ("precision" in axes or dense)

    return tuple(encoding for encoding in offers if encoding == keep or allowed(encoding))


def check_finite(sites: Sites, strict: bool) -> None:
    """Say which weights are not finite, and so keep their form; under ``strict`` an ``OptionError``."""
    for site, reason in sites.notes:
        if reason.startswith(NOT_FINITE):
            if strict:
                raise OptionError(f"'{site}' holds NaN or Inf and strict=True asks for an error; repair the weights")
            log.warning("'%s' %s", site, reason)


def pins_of(sites: Sites, options: Options) -> Pins | None:
    """The options' pins in the names of sites, checked; None where there are none.

    A pattern meets a site's name with or without ".weight". ``OptionError`` names the nearest site where it meets none.
    """
    if not (options.pin or options.forbid):
        return None
    names = [site.id for site in sites.sites]
    found = Pins(_named(options.pin, names), _named(options.forbid, names))
    if set(options.axes) == {"precision"}:  # other axes add choices that only the whole table knows
        excluded_by(offered(sites), found)
    else:
        excluded_by(offered(sites), Pins(forbid=(*found.pin, *found.forbid)))
    return found


def _named(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((_full(pattern, names), what) for pattern, what in pairs)


def _full(pattern: str, names: Sequence[str]) -> str:
    """The pattern, with the suffix that it leaves out where it meets nothing without."""
    if any(matches(pattern, name) for name in names):
        return pattern
    regular = pattern.startswith("re:")
    longer = f"re:(?:{pattern[3:]}){SUFFIX.replace('.', chr(92) + '.')}" if regular else pattern + SUFFIX
    return longer if any(matches(longer, name) for name in names) else pattern


def offered(sites: Sites) -> CostTable:
    """A table of the offers with their bytes alone: what can be known before scoring."""
    choices = [
        Choice(
            choice_id(site.id, encoding),
            (site.id,),
            Cost(
                kernel(MENU, encoding.family).size_bytes(sites.shape(site, encoding), dense(encoding)),
                (0,),
                0.0,
                source="bound",
            ),
            encoding,
            label=encoding.label(),
        )
        for site in sites.sites
        for encoding in sites.offers[site.id]
    ]
    return CostTable(sites.sites, tuple(choices))


def refuse_early(capture: Capture, data: Samples, sites: Sites, pins: Pins | None, options: Options) -> None:
    """``BudgetError`` where even the smallest choice of every site exceeds ``memory`` or ``bits``."""
    wanted = options.memory is not None or options.bits is not None
    if not wanted or not set(options.axes) <= {"precision", "skip"}:
        return
    table = offered(sites)
    excluded = excluded_by(table, pins) if set(options.axes) == {"precision"} else frozenset()
    least = _least(table, excluded, {site.id for site in sites.sites if site.block and "skip" in options.axes})
    weights = sum(site.weight_count for site in sites.sites)
    if options.bits is not None and weights and 8 * least > options.bits * weights:
        raise BudgetError(
            f"bits={options.bits:g} cannot be met: the smallest choices take {8 * least / weights:.3f} bits per "
            "weight; raise bits, or drop pins that ask for more"
        )
    if options.memory is not None:
        fixed, live = _rest(capture, data, sites, options)
        budget = options.memory.resolve(sum(site.original_bytes for site in sites.sites) + fixed + live)
        if sites.blocks:
            fixed, live = _rest(capture, data, sites, options, [block.id for block in sites.blocks])
        stored = fixed + least
        if stored + live > budget:
            raise BudgetError(
                f"memory={show_bytes(budget)} cannot be met: the least of any plan is {show_bytes(stored + live)} "
                f"(weights {show_bytes(stored)}, activations {show_bytes(live)}); raise memory"
                + (", or drop pins that ask for more" if pins else "")
            )


def _least(table: CostTable, excluded: Collection[str], free: Collection[str]) -> int:
    """Bytes of the smallest choices; sites in ``free`` may be left out whole."""
    sizes: dict[str, int] = {}
    for choice in table.choices:
        if choice.id not in excluded:
            site = choice.sites[0]
            sizes[site] = min(sizes.get(site, choice.cost.size_bytes), choice.cost.size_bytes)
    return sum(size for site, size in sizes.items() if site not in free)


def _rest(
    capture: Capture, data: Samples, sites: Sites, options: Options, skipped: Sequence[str] = ()
) -> tuple[int, int]:
    """Bytes of constants that are no site, and the most live bytes over all sizes, kernels' scratch left out; of all
    calls that may run at once."""
    every = {(site, encoding): 0.0 for site, offers in sites.offers.items() for encoding in offers}
    encodings = uniform(sites, ("bf16", "embed16"), every)
    program, total = skeleton(capture, sites, Decision(encodings, tuple(skipped)))
    gone = {site for block in sites.blocks if block.id in skipped for site in block.sites}
    decided = sum(
        kernel(MENU, encodings[site.id].family).size_bytes(site.shape, encodings[site.id])
        for site in sites.sites
        if site.id not in gone
    )
    seen = {tuple(sorted(_values(program, inputs).items())) for inputs in (*data.fit, *data.held)}
    layouts = [plan_layout(program, dict(values), options.threads or 1, 0) for values in seen]
    live = max((each.arena_bytes + each.library_bytes for each in layouts), default=0)
    return total - decided, live * options.max_concurrency


def _values(program: Program, inputs: Inputs) -> Mapping[str, int]:
    found: dict[str, int] = dict.fromkeys(program.symbols, 0)
    for name, (index, axis) in zip(program.symbols, program.sources, strict=True):
        if index >= 0:
            given: Any = inputs[index]
            found[name] = int(given) if axis < 0 else int(given.shape[axis])
    return found


def uniform_plan(table: CostTable, budget: Budget, pins: Pins | None) -> Plan:
    """The best uniform plan that keeps to the pins; status "infeasible" where there is none."""
    if pins is None:
        return best_uniform(table, budget)
    wish, excluded = resolve(table, budget), excluded_by(table, pins)
    choices = uniform_choices(table, wish.budget, wish.objective, excluded)
    if choices is None and wish.implied_loss:
        wish = without_loss(wish)
        choices = uniform_choices(table, wish.budget, wish.objective, excluded)
    out = Outcome(status="infeasible" if choices is None else "feasible")
    if choices is not None:
        out.offer(choices, value_of(totals(table, choices), wish.objective, wish.budget))
    said = ["no uniform plan that keeps to the pins is within all budgets"] if choices is None else []
    return plan_of(table, wish, out, said, 0.0)
