"""What ``adaflex plan`` and ``adaflex compile`` share: their arguments, from those to options, and a plan as JSON.

In: parsed arguments. Out: a ``ModelPlan``; plain data.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from adaflex.commands.allocate import pairs_of
from adaflex.errors import OptionError
from adaflex.options import AXES, OBJECTIVES
from adaflex.solver.plan import Plan
from adaflex.solver.table import CostTable
from adaflex.solver.table_json import encode
from adaflex.solver.wishes import shown_loss

if TYPE_CHECKING:
    from adaflex.api import ModelPlan

CALLS = "calls as .npz, .safetensors or .json: 'input_ids' is that argument, '3.input_ids' that of call 3"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that decides a plan: the options of the Python surface, one flag each."""
    parser.add_argument(
        "model", metavar="MODULE:CALLABLE", help="returns (model, inputs[, calibration]); also FILE.py:CALLABLE"
    )
    parser.add_argument("--memory", help="planned memory: 120MiB, or 0.5x of the unchanged model")
    parser.add_argument("--latency", help="8ms, or 0.5x of eager")
    parser.add_argument("--loss", type=float, help="relative output error, for example 0.03 (or KL, see --loss-fn)")
    parser.add_argument("--bits", type=float, help="bits per original weight")
    parser.add_argument("--tier", action="append", default=[], metavar="NAME=SIZE", help="capacity of a tier")
    parser.add_argument("--objective", choices=[each for each in OBJECTIVES if each], help="what to minimise")
    parser.add_argument("--loss-fn", choices=("error", "kl"), help="what loss means (default error)")
    parser.add_argument("--calibration", metavar="FILE", help=CALLS)
    parser.add_argument("--axes", help="comma-separated: " + ", ".join(AXES))
    parser.add_argument("--pin", action="append", default=[], metavar="LAYER=CHOICE", help="patterns, first match wins")
    parser.add_argument("--forbid", action="append", default=[], metavar="LAYER=CHOICE", help="patterns as for --pin")
    parser.add_argument("--threads", type=int, help="threads to plan for")
    parser.add_argument("--time-limit", type=float, metavar="S", help="seconds for scoring and solving")
    parser.add_argument("--plan", metavar="FILE", help="apply this saved plan: nothing is scored")
    parser.add_argument("--save-plan", metavar="FILE", help="write the plan with its cost table")
    parser.add_argument("--report", metavar="FILE", help="write the report as one HTML page")
    parser.add_argument("--strict", action="store_true", help="errors where there would be warnings")
    parser.add_argument("--on-broken", choices=("error", "warn"), help="what a broken promise is (default error)")
    parser.add_argument("--json", action="store_true", help="print JSON")


PLAIN = tuple(
    "memory latency loss bits objective loss_fn calibration threads time_limit plan save_plan report on_broken".split()
)


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of ``adaflex.plan``."""
    found = {name: getattr(args, name) for name in PLAIN if getattr(args, name) is not None}
    if args.strict:
        found["strict"] = True
    if args.axes is not None:
        found["axes"] = [word.strip() for word in args.axes.split(",") if word.strip()]
    for name in ("pin", "forbid"):
        pairs = pairs_of(getattr(args, name), f"--{name}")
        if pairs:
            found[name] = pairs
    if args.tier:
        found["tiers"] = _tiers(args.tier)
    return found


def _tiers(texts: list[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise OptionError(f"--tier {text!r} must be written NAME=SIZE, for example disk=2GiB")
    return {text.partition("=")[0]: text.partition("=")[2] for text in texts}


def planned(args: argparse.Namespace) -> ModelPlan:
    """Check the options, load the model, plan it."""
    from adaflex.options import parse

    options = options_of(args)
    parse(options)  # before the model is loaded
    from adaflex import api
    from adaflex.models import load_model
    from adaflex.reading import read_calls

    found = load_model(args.model)
    if args.calibration is not None:
        options["calibration"] = read_calls(args.calibration)
    elif found.calibration is not None:
        options["calibration"] = found.calibration
    return api.plan(found.model, found.inputs, **options)


def plan_json(plan: Plan, table: CostTable) -> dict[str, Any]:
    """A plan as plain data: status, proof, totals, one entry per layer."""
    by_id = {choice.id: choice for choice in table.choices}
    others = {entry.site: entry for entry in plan.runners_up}
    layers = []
    for site, name in plan.choices:
        choice, other = by_id[name], others.get(site)
        layers.append(
            {
                "layer": site,
                "choice": choice.label,
                "covers": list(choice.sites),
                "size_bytes": choice.cost.size_bytes,
                "time_ns": list(choice.cost.time_ns),
                "loss": shown_loss(table, choice.cost.loss),
                "source": choice.cost.source,
                "loss_source": choice.cost.loss_source,
                "runner_up": by_id[other.choice].label if other else None,
                "runner_up_price": other.price if other else None,
            }
        )
    return {
        "status": plan.status,
        "objective": plan.objective,
        "value": plan.value,
        "bound": plan.bound,
        "gap": plan.gap,
        "limit": plan.limit,
        "budget": encode(plan.budget),
        "totals": dataclasses.asdict(plan.totals) if plan.totals else None,
        "loss_kind": table.loss_kind,
        "reasons": list(plan.reasons),
        "prices": dict(plan.prices),
        "table_digest": plan.table_digest,
        "layers": layers,
    }
