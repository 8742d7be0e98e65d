"""``adaflex explain``: why each layer got its choice, and what the next best would cost.

In: a saved plan (``--save-plan``). Out: one line per layer, or every choice of one layer, for people or as JSON. Needs
neither the model nor torch.
"""

from __future__ import annotations

import argparse
import difflib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adaflex.commands.planned import plan_json
from adaflex.errors import OptionError
from adaflex.saved import Saved, read
from adaflex.solver.explain import columns_for
from adaflex.solver.plan import Plan
from adaflex.solver.units import show_bytes, show_time
from adaflex.solver.wishes import shown_loss

HELP = "why each layer got its choice, and what the next best would cost"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("plan", type=Path, metavar="PLAN", help="file written by --save-plan or save_plan=")
    parser.add_argument("layer", nargs="?", metavar="LAYER", help="every choice of this layer")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Read, explain, print."""
    saved = read(args.plan)
    if args.layer is None:
        print(json.dumps(plan_json(saved.plan, saved.table)) if args.json else "\n".join(overview(saved)))
        return 0
    layer = layer_of(saved, args.layer)
    columns = columns_for(saved.table, saved.plan, layer)
    if args.json:
        rows = [{**asdict(each), "loss": shown_loss(saved.table, each.loss)} for each in columns]
        print(json.dumps({"layer": layer, "choice": saved.plan.choice_of(layer), "columns": rows}))
        return 0
    print(f"{layer}: {len(columns)} choices, objective {saved.plan.objective}")
    for each in columns:
        name, why = each.choice.removeprefix(f"{layer}|"), each.why
        loss = shown_loss(saved.table, each.loss)
        print(f"  {name:24} {show_bytes(each.size_bytes):>14} {show_time(each.time_ns[0]):>12} loss {loss:.4g}: {why}")
    for note in (text for site, text in saved.table.notes if site == layer):
        print(f"  {note}")
    return 0


def layer_of(saved: Saved, name: str) -> str:
    """The site that a name means, with or without ".weight"; ``OptionError`` names the nearest."""
    sites = [site for site, _ in saved.plan.choices]
    for candidate in (name, f"{name}.weight"):
        if candidate in sites:
            return candidate
    near = difflib.get_close_matches(name, sites, 1, 0.0)
    raise OptionError(f"no layer is called '{name}'; did you mean '{near[0] if near else 'none'}'?")


def overview(saved: Saved) -> list[str]:
    """The plan, its prices, one line per layer."""
    plan: Plan = saved.plan
    told: dict[str, Any] = plan_json(plan, saved.table)
    lines = [f"{plan.status}: least {plan.objective}" + (f", stopped by {plan.limit}" if plan.limit else "")]
    lines += [f"  {reason}" for reason in plan.reasons]
    lines += [f"  one more unit of {name} saves {price:.4g}" for name, price in plan.prices if price]
    for layer in told["layers"]:
        text = f"{layer['layer']}: {layer['choice']}"
        if layer["runner_up"] is not None:
            text += f"; next {layer['runner_up']} at {layer['runner_up_price']:+.4g}"
        lines.append(text)
    return lines
