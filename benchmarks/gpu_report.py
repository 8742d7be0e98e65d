"""What a GPU measurement gives: one row per kernel, the chip's ceilings, and how calls are timed.

In: calls, or results. Out: medians, and a report as markdown. On the CPU (``--dry``) a time means nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

CYCLED_BYTES = 400 << 20  # operands of a timing together: several times any L2 cache
REPLAYS = 15


@dataclass
class Row:
    """One line of the report. ``share``: of the copy rate (memory-bound) or of the bf16 rate; ``ratio``: peer's time
    over ours."""

    kernel: str
    size: str
    error: float
    allowed: float
    us: float
    share: float
    ratio: float
    floor: str = ""
    held: bool = True
    note: str = ""


@dataclass
class Report:
    """Everything of a run."""

    chip: str
    device: str
    processors: int
    versions: dict[str, str]
    copy_gbs: float = 0.0
    bf16_tflops: float = 0.0
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    def markdown(self) -> str:
        """The report as text."""
        head = (
            f"{self.chip}: copy {self.copy_gbs:.0f} GB/s, bf16 product {self.bf16_tflops:.0f} TFLOP/s; {self.versions}"
        )
        lines = [head, "", "| kernel | size | error (allowed) | us | share | x peer | floor | note |", "|" + "---|" * 8]
        for row in self.rows:
            wrong = "" if row.error <= row.allowed else " WRONG"
            held = "" if self.device == "cpu" else "held" if row.held else "MISSED"
            floor = f"{row.floor} {held}" if row.floor else ""
            lines.append(
                f"| {row.kernel} | {row.size} | {row.error:.1e} ({row.allowed:.0e}){wrong} | {row.us:.1f} | "
                f"{row.share:.0%} | {row.ratio:.2f} | {floor} | {row.note} |"
            )
        return "\n".join([*lines, "", f"{self.seconds:.0f} s in all"])


def microseconds(calls: Sequence[Callable[[], Any]], device: str) -> float:
    """Median time of one call, over replays of a graph that makes all of them in turn."""
    if device == "cpu":
        start = time.perf_counter()
        calls[0]()
        return (time.perf_counter() - start) * 1e6
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(REPLAYS + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(calls))
    return sorted(times[2:])[REPLAYS // 2]


def copies(size_bytes: int, device: str) -> int:
    """How many operand sets exceed the caches."""
    return 1 if device == "cpu" else max(2, min(32, CYCLED_BYTES // max(size_bytes, 1) + 1))


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative error in the norm; infinite where anything is not finite."""
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got.double() - want.double()).norm() / want.double().norm())
