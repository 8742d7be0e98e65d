"""How many bytes a fresh process grows by when it loads an artifact and runs it: run as ``python -m adaflex.growth``.

In: an artifact, a file of calls, threads (0: torch's). Out: one JSON object on stdout. It is a process of its own so
that what imports cost is there before the measurement starts.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from adaflex.handle import Program, load
from adaflex.reading import read_calls
from adaflex.runtime.verdict import process_growth


def measure(path: str, inputs: str, threads: int) -> dict[str, Any]:
    """Bytes of growth, and the program's own count for the same calls."""
    calls = read_calls(inputs)
    torch.ones(1) + 1  # torch's own start is not the program's

    def work() -> Program:
        program = load(path, threads=threads or None)
        for call in calls:
            program(**call)
        return program

    grown, program = process_growth(work)
    return {"process_bytes": grown, "own_bytes": max(program.memory(**call)["total"] for call in calls)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
