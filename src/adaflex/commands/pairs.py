"""``adaflex allocate`` on a problem of the ASPLOS 2025 contest on intra-operator parallelism.

In: its parsed JSON. Out: the same fields as for a cost table, a strategy per node; the same exit codes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from typing import Any

from adaflex.errors import OptionError
from adaflex.solver.pairwise.contest import Answered, answer
from adaflex.solver.pairwise.problem import PairProblem, pair_problem
from adaflex.solver.solve import solver_name
from adaflex.solver.units import parse_bytes, show_bytes

EXIT = {"optimal": 0, "feasible": 0, "infeasible": 3, "unknown": 5}
OTHERS = ("latency", "loss", "bits", "tier", "objective", "gap", "pin", "forbid", "explain")


def run(args: argparse.Namespace, values: Any) -> int:
    """Decide and print; ``--memory`` replaces the problem's own limit."""
    for name in OTHERS:
        if getattr(args, name):
            raise OptionError(f"--{name} does not apply to {args.table}, a problem of pairs; it has costs and memory")
    problem = pair_problem(values, str(args.table))
    if args.memory is not None:
        problem = PairProblem(problem.name, problem.nodes, problem.edges, parse_bytes(args.memory))
    made = answer(problem, time_limit_s=args.time_limit)
    fields = as_json(problem, made, values)
    if args.output:
        args.output.write_text(json.dumps(fields) + "\n")
    print(json.dumps(fields) if args.json else "\n".join(lines_of(problem, made)))
    return EXIT[made.status]


def as_json(problem: PairProblem, made: Answered, values: Any) -> dict[str, Any]:
    """What ``--json`` prints."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return {
        "status": made.status,
        "objective": "cost",
        "cost": made.cost,
        "bound": made.bound,
        "gap": made.gap,
        "limit": made.limit,
        "budgets": {"memory_bytes": problem.limit},
        "totals": None if made.cost is None else {"cost": made.cost, "peak_bytes": made.most_bytes},
        "choices": {str(node): strategy for node, strategy in enumerate(made.choices)},
        "prices": {},
        "reasons": [],
        "seconds": round(made.seconds, 6),
        "solver": solver_name(),
        "table_digest": hashlib.sha256(text.encode()).hexdigest(),
    }


def lines_of(problem: PairProblem, made: Answered) -> list[str]:
    """What is printed for people."""
    name = f" of {problem.name}" if problem.name else ""
    lines = [f"{made.status}: least cost{name}" + (f", stopped by {made.limit}" if made.limit else "")]
    if made.cost is None:
        return lines
    proof = f"bound {made.bound}, gap {made.gap:.3%}" if made.bound is not None else "no bound"
    lines.append(f"  cost {made.cost}, {proof}, {made.seconds:.2f} s")
    most = "no limit" if problem.limit is None else f"limit {show_bytes(problem.limit)}"
    lines.append(f"  memory {show_bytes(made.most_bytes or 0)} ({most})")
    lines.append(f"  {len(problem.nodes)} nodes, {made.open_nodes} left after exact reductions")
    return lines
