"""``adaflex plan``: measure a model and decide a plan under budgets.

In: ``module:callable`` and budgets. Out: the report for people or as JSON; exit code 0 answered, 3 proven impossible,
4 promise broken, 5 no answer in time.
"""

from __future__ import annotations

import argparse
import json

from adaflex.commands.planned import arguments, plan_json, planned

HELP = "measure a model and decide a plan under budgets"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    arguments(parser)
    parser.add_argument("--explain", metavar="LAYER", help="say why this layer got its choice")


def run(args: argparse.Namespace) -> int:
    """Plan, print."""
    made = planned(args)
    if args.json:
        verdict = made.planned.verdict.to_json()
        print(json.dumps({**plan_json(made.planned.plan, made.table), "verdict": verdict}))
        return 0
    print(made.report(), end="")
    if args.explain:
        print(made.explain(args.explain))
    return 0
