"""The ``adaflex`` command: finds the subcommand's module, runs it, turns errors into exit codes.

In: arguments. Out: an exit code (0 answered, 1 internal, 2 usage, 3 infeasible, 4 promise broken, 5 no answer in
time, 130 interrupted). Each subcommand is one module in ``commands/`` with ``HELP``, ``configure(parser)`` and
``run(args) -> int``; only the one asked for is imported.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from adaflex import __version__
from adaflex.errors import AdaflexError

COMMANDS = {
    "plan": "measure a model and decide a plan under budgets",
    "compile": "plan a model and write an artifact that runs without its code",
    "run": "run an artifact on inputs",
    "inspect": "show what an artifact holds",
    "explain": "why each layer got its choice, and what the next best would cost",
    "verify": "measure an artifact here against what its plan promised",
    "doctor": "what this machine, compiler and torch can do",
    "cache": "show or clear measured scores and built kernels",
    "allocate": "decide a cost table under budgets (needs no torch)",
    "pareto": "sweep one budget over a cost table (needs no torch)",
    "memplan": "pack buffers into memory, or check somebody's packing (needs no torch)",
}


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adaflex", description="Decide every layer together, under your budgets.")
    parser.add_argument("--version", action="version", version=f"adaflex {__version__}")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log what happens; twice for more")
    parts = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        part = parts.add_parser(name, help=text, description=text)
        if name == command:
            importlib.import_module(f"adaflex.commands.{name}").configure(part)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if word in COMMANDS), None)
    try:
        args = _parser(command).parse_args(words)
        logging.basicConfig(
            level=[logging.WARNING, logging.INFO, logging.DEBUG][min(args.verbose, 2)], format="%(name)s: %(message)s"
        )
        if args.command is None:
            _parser(None).print_help()
            return 2
        return int(importlib.import_module(f"adaflex.commands.{args.command}").run(args))
    except AdaflexError as fault:
        print(f"adaflex: {fault}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt:
        print("adaflex: interrupted; finished measurements are kept", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse: usage errors and --help
        return int(stop.code or 0)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
