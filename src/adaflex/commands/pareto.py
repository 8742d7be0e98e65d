"""``adaflex pareto``: sweep one budget over a cost table.

In: a table as JSON and what to sweep. Out: one line per point, or CSV, JSON, SVG; exit code 0, or 3 where no point
can be met.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from adaflex.commands.allocate import as_json, budget_arguments
from adaflex.errors import OptionError
from adaflex.solver.draw import curve_svg
from adaflex.solver.pareto import pareto, pareto_csv
from adaflex.solver.plan import Plan
from adaflex.solver.table import CostTable
from adaflex.solver.table_json import from_json, read_bytes
from adaflex.solver.wishes import budget_of, latencies_of, loss_of, memory_of

HELP = "sweep one budget over a cost table (needs no torch)"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("table", type=Path, metavar="TABLE", help="cost table as JSON (also .gz)")
    parser.add_argument("--over", default="memory", help="memory, loss, bits, latency[:PHASE] or tier:NAME")
    parser.add_argument("--points", type=int, default=10, help="how many, between the extremes (default 10)")
    parser.add_argument("--values", help="comma-separated amounts instead, for example 40MiB,60MiB")
    budget_arguments(parser)
    parser.add_argument("--csv", type=Path, help="write the curve as CSV")
    parser.add_argument("--plot", type=Path, help="draw the curve as SVG")
    parser.add_argument("--json", action="store_true", help="print a JSON list of plans")


def values_of(table: CostTable, over: str, text: str) -> list[float]:
    """Amounts in the unit of the quantity swept."""
    kind, _, phase = over.partition(":")
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if kind in ("memory", "tier"):
        return [float(memory_of(table, part)) for part in parts]
    if kind == "latency":
        names = [f"{phase or table.phases[0]}={part}" for part in parts]
        return [float(next(v for v in latencies_of(table, [name]) if v is not None)) for name in names]
    if kind == "bits":
        return [float(part) * 1000 for part in parts]
    return [loss_of(table, part) for part in parts]


def run(args: argparse.Namespace) -> int:
    """Sweep, print, write."""
    if args.points < 1 or not args.time_limit > 0:
        raise OptionError(f"--points is {args.points} and --time-limit {args.time_limit}; both must be above 0")
    table = from_json(CostTable, read_bytes(args.table), str(args.table))
    budget = budget_of(table, memory=args.memory, latency=args.latency, loss=args.loss, bits=args.bits, tiers=args.tier)
    values = values_of(table, args.over, args.values) if args.values else args.points
    plans = pareto(table, budget, args.over, values, objective=args.objective, time_limit_s=args.time_limit)
    if args.csv:
        args.csv.write_text(pareto_csv(plans))
    if args.plot:
        points = [(amount_of(plan, args.over), plan.value) for plan in plans if plan.value is not None]
        args.plot.write_text(curve_svg(points, across=args.over, up=plans[0].objective, title=args.table.name))
    print(json.dumps([as_json(plan) for plan in plans]) if args.json else pareto_csv(plans), end="")
    return 0 if any(plan.choices for plan in plans) else 3


def amount_of(plan: Plan, over: str) -> float:
    """The swept budget of a plan."""
    budget, kind = plan.budget, over.partition(":")[0]
    if kind == "memory":
        return float(budget.memory_bytes or 0)
    if kind == "latency":
        return float(next((limit for limit in budget.latency_ns if limit is not None), 0))
    if kind == "tier":
        return float(dict(budget.tier_bytes)[over.partition(":")[2]])
    return float((budget.bits_milli or 0) if kind == "bits" else (budget.loss or 0.0))
