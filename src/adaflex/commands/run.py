"""``adaflex run``: run an artifact on inputs from a file.

In: an artifact, calls as .npz, .safetensors or .json. Out: shapes on the screen, or outputs in a file, or JSON; exit
code 2 where the file or the inputs do not fit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from adaflex.commands.planned import CALLS
from adaflex.errors import OptionError

HELP = "run an artifact on inputs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("inputs", type=Path, metavar="INPUTS", help=CALLS)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write outputs: .npz, .safetensors or .json")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="run each call N times, print the median")
    parser.add_argument("--threads", type=int, help="threads to use (default: torch's)")
    parser.add_argument("--trust", metavar="DIGEST", help="sha256:... of this very file, or 'yes': use its own kernels")
    parser.add_argument("--json", action="store_true", help="print JSON")


def trust_of(text: str | None) -> str | bool | None:
    """What ``adaflex.load`` takes."""
    return True if text == "yes" else text


def run(args: argparse.Namespace) -> int:
    """Load, run every call, print or write."""
    if args.repeat < 1:
        raise OptionError(f"--repeat is {args.repeat}; it must be at least 1")
    from adaflex.handle import load
    from adaflex.reading import dtypes_of, named, read_calls, write_tensors

    program = load(args.artifact, trust=trust_of(args.trust), threads=args.threads)
    calls = read_calls(args.inputs, dtypes_of(program.executor.program, program.signature))
    results, times = [], []
    for call in calls:
        outputs, taken = _run(program, call, args.repeat)
        results.append(named(outputs))
        times.append(taken)
    if args.output:
        alone = len(results) == 1
        whole = {name if alone else f"{n}.{name}": t for n, made in enumerate(results) for name, t in made.items()}
        write_tensors(args.output, whole)
    rows = [
        {"time_ns": taken, "outputs": [_row(name, tensor) for name, tensor in made.items()]}
        for made, taken in zip(results, times, strict=True)
    ]
    print(
        json.dumps({"calls": rows, "written": str(args.output) if args.output else None}) if args.json else _text(rows)
    )
    return 0


def _run(program: Any, call: dict[str, Any], repeat: int) -> tuple[Any, int]:
    """The last outputs and the median nanoseconds."""
    times, outputs = [], None
    for _ in range(repeat):
        start = time.perf_counter_ns()
        outputs = program(**call)
        times.append(time.perf_counter_ns() - start)
    return outputs, int(statistics.median(times))


def _row(name: str, tensor: Any) -> dict[str, Any]:
    return {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _text(rows: list[dict[str, Any]]) -> str:
    lines = []
    for number, row in enumerate(rows):
        made = ", ".join(f"{each['name']} {each['dtype']} {each['shape']}" for each in row["outputs"])
        lines.append(f"call {number}: {row['time_ns'] / 1e6:.3f} ms: {made}")
    return "\n".join(lines)
