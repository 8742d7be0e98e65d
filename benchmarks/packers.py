"""The packer against omnimalloc on the same problems in one run: never higher, never slower to the same height?

Run: benchmarks/peers_memory.sh; python benchmarks/packers.py [--peer .venv-memory/bin/python] [--seconds 3]
[--data FOLDER] [--only TEXT]. DATA holds MiniMalloc's CSV files. The peer runs in a process of its own with its
default number of threads; this packer uses one. Per problem and allocator of the peer: its height over the bound and
its seconds, seconds until this packer is as low or lower, and the height over the bound that it reaches in the peer's
seconds where the peer searches (--seconds). Wall clock; a call is repeated until 50 ms are spent on it, five times at
least unless one takes longer, and the least counts: calls of microseconds are seen undisturbed on a shared machine too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ALLOCATORS = ("greedy_by_size", "omni", "best_fit", "greedy_by_all", "simulated_annealing", "telamalloc", "supermalloc")
SEARCHING = ("simulated_annealing", "telamalloc", "supermalloc")
SOURCES = (
    "Random", "HighContention", "PowerOf2", "Sequential", "Uniform", "Tiling", "Pinwheel", "Skewed",
)  # fmt: skip
Rows = list[tuple[str, int, int, int]]  # id, size, first, end


def timed(call: Callable[[], object]) -> tuple[object, float]:
    """The result of a call, and its seconds."""
    least, spent, count = 1e9, 0.0, 0
    while spent < 0.05 or (count < 5 and least < 0.05):
        begin = time.perf_counter()
        result = call()
        took = time.perf_counter() - begin
        least, spent, count = min(least, took), spent + took, count + 1
    return result, least


def generated(source: Callable[..., Any], count: int) -> Any:
    """A peer's own problem of about ``count`` buffers: some of its sources can make certain numbers only."""
    for number in range(count, count + 64):
        try:
            return source(num_allocations=number).get_allocations()
        except ValueError:
            continue
    raise SystemExit(f"{source} makes no problem of about {count} buffers")


def worker(seconds: float) -> None:
    """In the peer's interpreter: problems as JSON lines in, heights and times out; first its own problems."""
    import omnimalloc
    from omnimalloc.benchmark import sources

    for name in SOURCES:
        for count in (100, 1000):
            made = generated(getattr(sources, name + "Source"), count)
            rows = [(str(a.id), a.size, a.start, a.end) for a in made]
            print(json.dumps({"name": f"{name} {count}", "rows": rows}), flush=True)
    print("end", flush=True)
    for line in sys.stdin:
        rows = json.loads(line)
        pool = [omnimalloc.Allocation(*row) for row in rows]
        for name in ALLOCATORS:
            allocator = omnimalloc.allocators.base.BaseAllocator.resolve(name)
            if name in SEARCHING:
                allocator = type(allocator)(timeout=seconds)
            placed, spent = timed(lambda a=allocator, p=pool: omnimalloc.allocate(p, a))
            height = max(a.offset + a.size for a in placed)
            print(json.dumps({"allocator": name, "height": height, "seconds": spent}), flush=True)
        print("end", flush=True)


def problems(data: Path | None) -> dict[str, Rows]:
    """Public instances, tight packings and random lives."""
    from adaflex.solver.memplan import buffers_from_csv
    from adaflex.solver.pack.generate import guillotine, lives, pinwheel

    made = {path.stem: buffers_from_csv(path.read_bytes()) for path in sorted(data.glob("*.csv"))} if data else {}
    for count in (30, 100, 300):
        made[f"guillotine {count}"] = guillotine(count, 0)
        made[f"pinwheel {count}"] = pinwheel(count, 0)
    for count, live in ((100, 10), (1000, 10), (1000, 100), (10_000, 10), (10_000, 100)):
        made[f"{count} lives, {live} live"] = lives(count, live, 0)
    return {name: [(b.id, b.size_bytes, b.first, b.end) for b in buffers] for name, buffers in made.items()}


def compare(rows: Rows, peer: list[dict[str, float]], seconds: float) -> list[tuple[str, bool, bool]]:
    """Lines of the table for one problem; whether ours was higher, or slower to the same height."""
    from adaflex.solver.memplan import pack
    from adaflex.solver.table import Buffer

    buffers = [Buffer(*row) for row in rows]
    lines = []
    searched = pack(buffers, time_limit_s=seconds)
    for answer in peer:
        name, height, spent = str(answer["allocator"]), int(answer["height"]), answer["seconds"]
        made, ours = timed(lambda h=height: pack(buffers, capacity=h, time_limit_s=20.0))
        reached = searched if name in SEARCHING else made
        slower = made.status != "fits" or ours > spent
        higher = reached.height > height
        cells = [name, f"{height / made.bound - 1:+.2%}", f"{spent * 1e3:.3f}"]
        cells += [f"{ours * 1e3:.3f}" if made.status == "fits" else "not in 20 s"]
        cells += [f"{searched.height / searched.bound - 1:+.2%}" if name in SEARCHING else ""]
        cells += [" ".join(["higher"] * higher + ["slower"] * slower)]
        lines.append((" | ".join(cells), higher, slower))
    return lines


def main() -> None:
    """Run the peer beside, problem by problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", default=".venv-memory/bin/python", help="interpreter that has omnimalloc")
    parser.add_argument("--seconds", type=float, default=3.0, help="for those that search")
    parser.add_argument("--data", type=Path, help="folder of MiniMalloc's CSV files")
    parser.add_argument("--only", default="", help="problems whose name contains this")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.seconds)
    command = [args.peer, __file__, "--worker", "--seconds", str(args.seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        lines = [json.loads(line) for line in iter(process.stdout.readline, "end\n")]
        every = problems(args.data) | {entry["name"]: [tuple(row) for row in entry["rows"]] for entry in lines}
        print("| problem | allocator | its height over the bound | its ms | ours ms to that | ours in its time | |")
        print("|---" * 7 + "|")
        total = high = slow = 0
        for name, rows in every.items():
            if args.only not in name:
                continue
            process.stdin.write(json.dumps(rows) + "\n")
            process.stdin.flush()
            peer = [json.loads(line) for line in iter(process.stdout.readline, "end\n")]
            for line, higher, slower in compare(rows, peer, args.seconds):
                print(f"| {name} | {line} |", flush=True)
                total, high, slow = total + 1, high + higher, slow + slower
        process.stdin.close()
    print(f"\n{total} comparisons: higher in {high}, slower to the same height in {slow}")
    return None


if __name__ == "__main__":
    main()
