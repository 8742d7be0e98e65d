"""``adaflex memplan``: pack buffers into memory, or check somebody's packing.

In: problems as CSV (MiniMalloc's format) or JSON. Out: offsets, a summary, a picture; exit code 0 answered,
3 proven not to fit, 5 no answer in time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from adaflex.errors import OptionError
from adaflex.solver.draw import packing_svg
from adaflex.solver.memplan import MemoryProblem, Packing, pack_problem, read_problem, stream_problem, validate
from adaflex.solver.pack.files import offsets_from_csv, solution_csv, solution_of
from adaflex.solver.pack.tiers import chrome_trace
from adaflex.solver.table_json import read_bytes
from adaflex.solver.units import parse_bytes, show_bytes

HELP = "pack buffers into memory, or check somebody's packing (needs no torch)"
EXIT = {"fits": 0, "optimal": 0, "packed": 0, "infeasible": 3, "unknown": 5}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "problems", nargs="+", metavar="PROBLEM", help="CSV or JSON files; 'check PROBLEM SOLUTION' checks"
    )
    parser.add_argument(
        "--capacity", help="does it fit in this? (1048576, 64KiB); without it the least height is sought"
    )
    parser.add_argument("--minimise", action="store_true", help="seek the least height even where a capacity is given")
    parser.add_argument("--alignment", type=int, default=1, help="every offset is a multiple of this many bytes")
    parser.add_argument("--output", type=Path, help="write the solution: the problem's columns and 'offset'")
    parser.add_argument("--plot", type=Path, help="draw address over time as SVG")
    parser.add_argument("--time-limit", type=float, default=10.0, metavar="S", help="seconds per problem (default 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per problem")


def run(args: argparse.Namespace) -> int:
    """Pack (or check) every problem; the highest exit code of all is returned."""
    if args.time_limit <= 0:
        raise OptionError(f"--time-limit is {args.time_limit}; it must be above 0")
    if args.problems[0] == "check":
        return check(args)
    if len(args.problems) > 1 and (args.output or args.plot):
        raise OptionError("--output and --plot take one problem at a time")
    return max(solve(Path(name), args) for name in args.problems)


def check(args: argparse.Namespace) -> int:
    """``memplan check PROBLEM SOLUTION``: every fault of anybody's offsets."""
    if len(args.problems) != 3:
        raise OptionError("write: adaflex memplan check PROBLEM SOLUTION [--capacity N]")
    problem = read_problem(Path(args.problems[1]))
    offsets = offsets_from_csv(read_bytes(Path(args.problems[2])), args.problems[2])
    capacity = capacity_of(args, problem)
    found = validate(problem.buffers, offsets, capacity=capacity, alignment=args.alignment, separate=problem.separate)
    if args.json:
        rows = [{"kind": fault.kind, "text": fault.text, "buffers": fault.buffers} for fault in found]
        print(json.dumps({"valid": not found, "faults": rows}))
    else:
        for fault in found:
            print(f"{fault.kind}: {fault.text}")
        print("valid" if not found else f"{len(found)} faults")
    return 0 if not found else 3


def capacity_of(args: argparse.Namespace, problem: MemoryProblem) -> int | None:
    """The capacity asked, or the file's own."""
    return parse_bytes(args.capacity) if args.capacity else problem.capacity_bytes


def solve(path: Path, args: argparse.Namespace) -> int:
    """Pack one problem, print and write what was asked."""
    problem = read_problem(path)
    if problem.stores:
        return solve_tiers(path, problem, args)
    capacity = None if args.minimise else capacity_of(args, problem)
    made = pack_problem(problem, capacity=capacity, alignment=args.alignment, time_limit_s=args.time_limit)
    code = EXIT[made.status]
    if args.minimise and args.capacity and made.height > parse_bytes(args.capacity):
        code = 3 if made.bound > parse_bytes(args.capacity) else 5
    print(json.dumps(as_json(path, made)) if args.json else "\n".join(lines_of(path, made)))
    offsets = dict(made.offsets)
    if args.output and offsets:
        csv_input = not path.name.removesuffix(".gz").endswith(".json")
        text = solution_csv(read_bytes(path), offsets) if csv_input else solution_of(problem.buffers, offsets)
        args.output.write_text(text)
    if args.plot and offsets:
        title = f"{path.name}: {made.status}, {show_bytes(made.height)}"
        args.plot.write_text(packing_svg(problem.buffers, offsets, bound=made.bound, capacity=capacity, title=title))
    return code


def solve_tiers(path: Path, problem: MemoryProblem, args: argparse.Namespace) -> int:
    """Operators with buffers in slower memories: what to keep and when to fetch; ``--plot`` writes a trace."""
    if args.capacity:
        problem = dataclasses.replace(problem, capacity_bytes=parse_bytes(args.capacity))
    flow, made = stream_problem(problem, time_limit_s=args.time_limit)
    best = made.best
    names = [buffer.id for buffer in problem.buffers]
    rows = [
        {
            "buffer": names[t.buffer],
            "operator": problem.operators[t.step].id,
            "begin_ns": t.begin_ns,
            "end_ns": t.end_ns,
            "from": flow.levels[t.link - t.down].name,
            "to": flow.levels[t.link - (not t.down)].name,
        }
        for t in best.transfers
    ]
    answer = {
        "problem": str(path), "status": "optimal" if best.total_ns <= made.bound_ns else "feasible",
        "total_ns": best.total_ns, "bound_ns": made.bound_ns, "stall_ns": best.stall_ns,
        "traffic_bytes": best.traffic_bytes, "peak_bytes": best.peak_bytes, "policies": dict(made.policies),
        "transfers": rows,
        "peaks": {level.name: peak for level, peak in zip(flow.levels, best.peaks, strict=True)},
        "computed_on": {
            op.id: flow.levels[place].name
            for op, place in zip(problem.operators, best.decisions.places, strict=True)
        },
    }  # fmt: skip
    if args.json:
        print(json.dumps(answer))
    else:
        print(f"{path.name}: {best.total_ns} ns, {best.stall_ns} ns of them waiting; bound {made.bound_ns} ns")
        print("  " + ", ".join(f"{name}: {total} ns" for name, total in made.policies))
    if args.plot:
        args.plot.write_text(json.dumps(chrome_trace(flow, best)))
    return 0


def as_json(path: Path, made: Packing) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "problem": str(path),
        "status": made.status,
        "height": made.height if made.offsets else None,
        "bound": made.bound,
        "capacity": made.capacity,
        "offsets": dict(made.offsets),
        "spaces": dict(made.spaces),
        "order": list(made.order),
        "blame": list(made.blame),
        "reason": made.reason,
        "method": made.method,
        "nodes": made.nodes,
        "seconds": round(made.seconds, 6),
    }


def lines_of(path: Path, made: Packing) -> list[str]:
    """What is printed for people."""
    head = {
        "fits": "fits",
        "optimal": "optimal",
        "packed": "packed",
        "infeasible": "does not fit",
        "unknown": "unknown",
    }
    lines = [f"{path.name}: {head[made.status]}"]
    if made.offsets:
        over = f", {made.height / made.bound - 1:.2%} over the bound" if made.bound and made.height > made.bound else ""
        lines.append(f"  height {made.height} ({show_bytes(made.height)}){over}; bound {made.bound}")
    if made.reason:
        lines.append(f"  {made.reason}")
    if made.blame:
        lines.append("  buffers: " + ", ".join(made.blame[:12]) + (" ..." if len(made.blame) > 12 else ""))
    lines.append(f"  {made.method}, {made.nodes} nodes, {made.seconds:.3f} s")
    return lines
