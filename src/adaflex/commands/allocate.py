"""``adaflex allocate``: decide a cost table under budgets, without torch and without the model.

In: a table as JSON, or a problem of pairs as in the ASPLOS 2025 contest. Out: a plan for people or as JSON; exit code
0 answered, 3 proven impossible, 5 no answer in time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

from adaflex.commands import pairs
from adaflex.errors import OptionError
from adaflex.solver.allocate import allocate
from adaflex.solver.explain import columns_for
from adaflex.solver.objective import OBJECTIVES
from adaflex.solver.pairwise.problem import is_pair_problem
from adaflex.solver.pins import Pins
from adaflex.solver.plan import Plan
from adaflex.solver.table import CostTable
from adaflex.solver.table_json import encode, from_json, parse, read_bytes, to_json
from adaflex.solver.uniform import kind_of
from adaflex.solver.units import show_bytes, show_time
from adaflex.solver.wishes import budget_of, shown_loss

HELP = "decide a cost table under budgets (needs no torch)"
EXIT = {"optimal": 0, "feasible": 0, "infeasible": 3, "unknown": 5}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "table", type=Path, metavar="TABLE", help="cost table, or contest problem of pairs, as JSON (also .gz)"
    )
    budget_arguments(parser)
    parser.add_argument("--gap", type=float, help="stop at this relative gap (default 0, for large tables 0.0001)")
    parser.add_argument(
        "--pin", action="append", default=[], metavar="SITE=CHOICE", help="patterns; re: for regular expressions"
    )
    parser.add_argument(
        "--forbid", action="append", default=[], metavar="SITE=CHOICE", help="patterns, first match wins"
    )
    parser.add_argument("--explain", metavar="SITE", help="say why this site got its choice")
    parser.add_argument("--output", type=Path, help="write the plan as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")


def budget_arguments(parser: argparse.ArgumentParser) -> None:
    """Budgets and objective, shared with ``adaflex pareto``."""
    parser.add_argument("--memory", help="planned memory: 120MiB, 64KiB, or 0.5x of the unchanged plan")
    parser.add_argument("--latency", action="append", default=[], help="8ms, decode=8ms, or 0.5x of eager")
    parser.add_argument("--loss", help="added loss (a relative error where the table holds squared ones)")
    parser.add_argument("--bits", help="bits per original weight")
    parser.add_argument("--tier", action="append", default=[], metavar="NAME=SIZE", help="capacity of a tier")
    parser.add_argument("--objective", choices=OBJECTIVES, default="", help="what to minimise")
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="seconds (default 60)")


def run(args: argparse.Namespace) -> int:
    """Read, decide, print."""
    if not args.time_limit > 0:
        raise OptionError(f"--time-limit is {args.time_limit}; it must be above 0")
    values = parse(read_bytes(args.table), str(args.table))
    if is_pair_problem(values):
        return pairs.run(args, values)
    table = from_json(CostTable, values, str(args.table))
    budget = budget_of(
        table,
        memory=args.memory,
        latency=args.latency,
        loss=args.loss,
        bits=args.bits,
        tiers=args.tier,
        objective=args.objective,
    )
    pins = Pins(pairs_of(args.pin, "--pin"), pairs_of(args.forbid, "--forbid"))
    plan = allocate(table, budget, time_limit_s=args.time_limit, gap=args.gap, pins=pins)
    if args.output:
        args.output.write_text(to_json(plan))
    print(json.dumps(as_json(plan)) if args.json else "\n".join(lines_of(table, plan, args.explain)))
    return EXIT[plan.status]


def pairs_of(texts: list[str], name: str) -> tuple[tuple[str, str], ...]:
    """(site pattern, choice pattern) pairs of ``SITE=CHOICE`` texts."""
    for text in texts:
        if "=" not in text:
            raise OptionError(f"{name} {text!r} must be written SITE=CHOICE")
    return tuple((text.partition("=")[0], text.partition("=")[2]) for text in texts)


def as_json(plan: Plan) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "status": plan.status,
        "objective": plan.objective,
        "cost": plan.value,
        "bound": plan.bound,
        "gap": plan.gap,
        "limit": plan.limit,
        "budgets": encode(plan.budget),
        "totals": dataclasses.asdict(plan.totals) if plan.totals else None,
        "choices": dict(plan.choices),
        "prices": dict(plan.prices),
        "reasons": list(plan.reasons),
        "seconds": round(plan.seconds, 6),
        "solver": plan.solver,
        "table_digest": plan.table_digest,
    }


def lines_of(table: CostTable, plan: Plan, site: str | None) -> list[str]:
    """What is printed for people."""
    lines = [f"{plan.status}: least {plan.objective}" + (f", stopped by {plan.limit}" if plan.limit else "")]
    lines += [f"  {reason}" for reason in plan.reasons]
    made = plan.totals
    if made is None or plan.value is None:
        return lines
    proof = (
        f"bound {plan.bound:.6g}, gap {plan.gap:.3%}" if plan.bound is not None and plan.gap is not None else "no bound"
    )
    lines.append(f"  value {plan.value:.6g}, {proof}, {plan.seconds:.2f} s")
    times = ", ".join(f"{phase} {show_time(time)}" for phase, time in zip(table.phases, made.time_ns, strict=True))
    lines.append(f"  memory {show_bytes(made.peak_bytes)} (weights {show_bytes(made.size_bytes)}), {times}")
    lines.append(f"  loss {shown_loss(table, made.loss):.6g}, {made.bits_milli / 1000:.3f} bits per weight")
    by_id = {choice.id: choice for choice in table.choices}
    count = Counter(kind_of(by_id[choice]) for _, choice in plan.choices)
    lines += [f"  {number:5d} x {name}" for name, number in count.most_common()]
    lines += [f"  one more unit of {name} saves {price:.4g}" for name, price in plan.prices if price]
    if site is not None:
        if site not in dict(plan.choices):
            raise OptionError(
                f"--explain names unknown site {site!r}; the plan has {', '.join(list(dict(plan.choices))[:5])}, ..."
            )
        lines += [f"  {column.choice}: {column.why}" for column in columns_for(table, plan, site)]
    return lines
