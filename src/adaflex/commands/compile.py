"""``adaflex compile``: plan a model and write an artifact that runs without its code.

In: ``module:callable``, budgets, a path. Out: one file, and its digest; exit codes as of ``adaflex plan``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from adaflex.commands.planned import arguments, plan_json, planned
from adaflex.errors import OptionError

HELP = "plan a model and write an artifact that runs without its code"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the artifact to write")
    parser.add_argument("--native", action="store_true", help="put the built kernels in, used only where trusted")


def run(args: argparse.Namespace) -> int:
    """Plan, compile, save, print."""
    folder = args.output.absolute().parent
    if not folder.is_dir():
        raise OptionError(f"--output {args.output} is in a folder that does not exist; make {folder} first")
    made = planned(args)
    digest = made.compile().save(args.output, native=args.native)
    size = args.output.stat().st_size
    if args.json:
        verdict = made.planned.verdict.to_json()
        written = {"path": str(args.output), "size_bytes": size, "digest": digest}
        print(json.dumps({**plan_json(made.planned.plan, made.table), "verdict": verdict, "artifact": written}))
        return 0
    print(made.report(), end="")
    print(f"wrote {args.output}: {size} bytes, {digest}")
    return 0
