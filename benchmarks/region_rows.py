"""Speed of every generated kernel that is not a matrix product of many rows, beside its floor, on one core.

    python -m benchmarks.region_rows [--only norm chain ...] [--build]

In: options (``--help``). Out: a line per row: what was measured, the floor it must hold, the reach it may have, and a
mark where the floor is missed. What is timed is the C++ that the project prints for small models, called at its C entry
(and once through the executor). Ceilings are probed in the same run. "L2": one call again and again on memory that fits
there. "DRAM": calls that walk through 256 MiB. A row is its fastest burst, a ceiling its fastest probe, because the
machine may be shared.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from adaflex import native
from adaflex.building import executor
from adaflex.building import kernels as build_kernels
from adaflex.codegen.cpp import ISA_FLAGS, include_folder
from adaflex.runtime.kernels import NativeKernels
from adaflex.runtime.layout import plan_layout
from adaflex.runtime.program import AttentionStep, Program, RowStep
from adaflex.runtime.region import evaluate
from adaflex.solver.table import Encoding
from benchmarks.region_cases import HEAD_WIDTH, HEADS, Add, Case, Chain, NormLinear, SelfAttention, program_of

HERE = Path(__file__).resolve().parent
POOL_BYTES = 256 << 20  # eight times the last cache
L2_BYTES = 128 << 10  # of one input of a resident call
DRAM_BYTES = 4 << 20  # of one input of one call of a walk
PEAKS = {"bf16": "peak_bf16"}
W8A8 = Encoding("w8a8", 8, 0)
W8A8_G64 = Encoding("w8a8", 8, 64)
W4A8_G128 = Encoding("w4a8", 4, 128)


@dataclass(frozen=True)
class Row:
    """A case at a size. ``unit``: "in" (GB/s of inputs), "copy" and "read" (bytes moved, bytes of weights, as a share
    of that bandwidth), "bf16" (share of that peak), "us" (a call)."""

    name: str
    case: Case
    rows: int
    unit: str
    walks: bool = False  # through memory
    floor: float | None = None
    reach: float | None = None
    python: bool = False  # through the executor


def norm_rows() -> Iterator[Row]:
    """Norm + quantise: kinds, widths, with and without residual, in L2 and from memory."""
    kinds: Mapping[str, tuple[Callable[[int], nn.Module], Encoding]] = {
        "layer norm + u8 per token": (nn.LayerNorm, W8A8),
        "layer norm + u8 g64": (nn.LayerNorm, W8A8_G64),
        "rms norm + u8 per token": (nn.RMSNorm, W8A8),
    }
    for label, (norm, encoding) in kinds.items():
        for columns in (384, 1024, 4096):
            for residual in (False, True):
                case = Case(partial(_norm, norm, columns), ((columns,),) * (1 + residual), (RowStep,), encoding)
                name = f"{label}{', residual' if residual else ''}, {columns}"
                yield Row(f"{name}, L2", case, L2_BYTES // columns // 4, "in", False, 20, 40)
                yield Row(f"{name}, DRAM", case, DRAM_BYTES // columns // 4, "copy", True)


def _norm(norm: Callable[[int], nn.Module], columns: int) -> nn.Module:
    return NormLinear(norm(columns), columns)


def other_rows() -> Iterator[Row]:
    """Chains, softmax, the cost of a call, products of one row, attention."""
    chain = Case(Chain, ((1536,), (1536,)))
    yield Row("chain: gelu, residual, bf16, DRAM", chain, DRAM_BYTES // 1536 // 4, "copy", True, 0.85, 0.95)
    yield Row("chain: gelu, residual, bf16, L2", chain, L2_BYTES // 1536 // 4, "in")
    for columns in (128, 1024):
        case = Case(partial(nn.Softmax, -1), ((columns,),))
        yield Row(f"softmax, {columns}, L2", case, L2_BYTES // columns // 4, "in")
    add = Case(Add, ((16,), (16,)))
    yield Row("call of a region: C entry", add, 1, "us", False, 3, 0.5)
    yield Row("call of a region: executor", add, 1, "us", python=True)
    for name, encoding, floor, reach in (("w8a8", W8A8, 0.70, 0.90), ("w4a8 g128", W4A8_G128, 0.65, 0.88)):
        case = Case(partial(nn.Linear, 4096, 4096), ((4096,),), encoding=encoding)
        yield Row(f"{name} 4096x4096, M = 1, DRAM", case, 1, "read", True, floor, reach)
    attention = Case(SelfAttention, ((128, HEADS * HEAD_WIDTH),), (AttentionStep,), W8A8)
    for batch in (1, 32):
        yield Row(f"attention {batch}x128, {HEADS} heads of {HEAD_WIDTH}", attention, batch, "bf16")


class Memory:
    """Touched memory handed out piece by piece."""

    def __init__(self) -> None:
        self.block = np.full(POOL_BYTES + (1 << 20), 1, np.uint8)  # zeros would all be read from one page
        draw = torch.randn(1 << 18, generator=torch.Generator().manual_seed(1))
        self.patterns = {
            "f32": draw.numpy().view(np.uint8),
            "bf16": draw.bfloat16().view(torch.int16).numpy().view(np.uint8),
        }
        self.reset()

    def reset(self) -> None:
        """Hand out everything again."""
        self.used = -self.block.ctypes.data % 64

    def room(self, size_bytes: int) -> bool:
        """Is that much left?"""
        return self.used + size_bytes <= POOL_BYTES

    def take(self, size_bytes: int, form: str) -> int:
        """The address of a 64-byte aligned piece full of ordinary numbers, with a vector's room behind it."""
        piece = self.block[self.used : self.used + size_bytes]
        pattern = self.patterns["bf16" if form == "bf16" else "f32"]
        for start in range(0, size_bytes, len(pattern)):
            part = piece[start : start + len(pattern)]
            part[:] = pattern[: len(part)]
        self.used += -(-(size_bytes + 64) // 64) * 64
        return int(piece.ctypes.data)


class Prepared:
    """A row's built program with what its calls need."""

    def __init__(self, row: Row, program: Program, isa: str) -> None:
        self.row, self.program, self.isa = row, program, isa
        self.kernels = build_kernels(program, isa, 1)
        self.values = dict.fromkeys(program.symbols, row.rows)

    def bytes_of(self, *kinds: str) -> int:
        """Bytes of the slots of these kinds that the kept steps touch."""
        slots = [slot for slot in self.program.slots if slot.kind in kinds]
        return sum(evaluate(slot.rows, self.values) * evaluate(slot.row_bytes, self.values) for slot in slots)

    def work(self) -> float:
        """What the row's unit counts, in bytes or multiply-adds times two, of one call."""
        if self.row.unit == "bf16":
            (length, width), batch = self.row.case.inputs[0], self.row.rows
            return 4.0 * batch * length * length * width
        kinds = {"in": ("input",), "read": ("constant",)}
        return self.bytes_of(*kinds.get(self.row.unit, ("input", "output")))

    def calls(self, memory: Memory) -> tuple[list[int], list[object]]:
        """Addresses of the calls' structures, and what must stay alive."""
        assert isinstance(self.kernels, NativeKernels)
        layout = plan_layout(self.program, self.values, 1, self.kernels.scratch_bytes(tuple(self.values.values())))
        arena = np.zeros(layout.arena_bytes + 64, np.uint8)
        start = arena.ctypes.data + -arena.ctypes.data % 64
        whole = self.bytes_of("input", "output", "constant") + 64 * (len(self.program.slots) + 1)
        memory.reset()
        addresses: list[int] = []
        keep: list[object] = [arena, self.kernels]
        while not addresses or (self.row.walks and memory.room(whole) and len(addresses) < 4096):
            prepared = self.kernels.prepare(layout)
            bases = [
                start + layout.offsets[number]
                if slot.kind == "local"
                else memory.take(layout.rows[number] * layout.row_bytes[number], slot.form)
                for number, slot in enumerate(self.program.slots)
            ]
            addresses.append(prepared.bind(0, bases, start + layout.shared_bytes))
            keep.append(prepared)
        return addresses, keep


class Bench:
    """The built timers, the ceilings seen so far, and memory."""

    def __init__(self, isa: str) -> None:
        source = (HERE / "region_rows.cpp").read_text()
        built = native.build(source, includes=[include_folder(), HERE], flags=ISA_FLAGS[isa], name=f"regions-{isa}")
        names = ("time_calls", "read_speed", "copy_speed", *PEAKS.values())
        self.entries = {name: native.load(built)[name] for name in names}
        for entry in self.entries.values():
            entry.restype = ctypes.c_double
        self.memory = Memory()
        self.ceilings: dict[str, float] = {}

    def probe(self) -> None:
        """Raise the ceilings to what this instant shows."""
        start = ctypes.c_void_p(self.memory.block.ctypes.data + -self.memory.block.ctypes.data % 64)
        half = ctypes.c_void_p((start.value or 0) + POOL_BYTES // 2)
        seen = {"read": self.entries["read_speed"](start, ctypes.c_long(POOL_BYTES), 1)}
        seen["copy"] = max(
            self.entries["copy_speed"](start, half, ctypes.c_long(POOL_BYTES // 2), past, 1) for past in (0, 1)
        )
        seen |= {name: self.entries[entry](20) for name, entry in PEAKS.items()}
        for name, value in seen.items():
            self.ceilings[name] = max(self.ceilings.get(name, 0.0), float(value))

    def time_ns(self, prepared: Prepared, budget_ms: float) -> float:
        """Nanoseconds of one call at the C entry."""
        assert isinstance(prepared.kernels, NativeKernels)
        addresses, keep = prepared.calls(self.memory)
        entry = ctypes.c_void_p(prepared.kernels.entry)
        listed = (ctypes.c_void_p * len(addresses))(*addresses)
        timer = self.entries["time_calls"]
        once = max(timer(entry, listed, len(addresses), 1, 1), 50.0)
        inner = 1 if len(addresses) > 1 else max(1, int(2e5 / once))
        rounds = max(3, int(budget_ms * 1e6 / (once * inner * len(addresses))))
        best = timer(entry, listed, len(addresses), inner, rounds)
        del keep
        return float(best)


def python_ns(prepared: Prepared, budget_ms: float) -> float:
    """Nanoseconds of one call through the executor."""
    runs = executor(prepared.program, torch.empty(0, dtype=torch.uint8), prepared.isa, 1)
    inputs = [torch.randn(prepared.row.rows, *shape) for shape in prepared.row.case.inputs]
    best = float("inf")
    for _ in range(max(3, int(budget_ms))):
        start = time.perf_counter_ns()
        for _ in range(100):
            runs(*inputs)
        best = min(best, (time.perf_counter_ns() - start) / 100)
    return best


def line(row: Row, value: float, note: str) -> str:
    """One row of the table."""
    show: Callable[[float], str] = {"in": "{:.1f} GB/s".format, "us": "{:.2f} us".format}.get(row.unit, "{:.0%}".format)
    floor, reach = (show(bound) if bound is not None else "-" for bound in (row.floor, row.reach))
    missed = row.floor is not None and (value > row.floor if row.unit == "us" else value < row.floor)
    reached = row.reach is not None and (value <= row.reach if row.unit == "us" else value >= row.reach)
    mark = "MISSED" if missed else "reach" if reached else ""
    return f"{row.name:52}{show(value):>12}{floor:>11}{reach:>11}  {mark:7}{note}"


def report(rows: list[Prepared], best_ns: Mapping[str, float], ceilings: Mapping[str, float]) -> None:
    """Print the table."""
    print(f"\n{'row':52}{'measured':>12}{'floor':>11}{'reach':>11}")
    for prepared in rows:
        row, took = prepared.row, best_ns[prepared.row.name]
        speed = prepared.work() / took
        unit = "GOP/s" if row.unit == "bf16" else "GB/s"
        value = {"in": speed, "us": took / 1e3}.get(row.unit, speed / ceilings.get(row.unit, 1.0))
        note = f"{speed:.1f} {unit} of {row.unit}" if row.unit in ceilings else ""
        print(line(row, value, note))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--isa", default="avx512", choices=tuple(ISA_FLAGS))
    parser.add_argument("--only", nargs="*", default=[], help="rows whose name holds one of these")
    parser.add_argument("--budget-ms", type=float, default=10.0, help="time per row and pass")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--build", action="store_true", help="build the kernels and stop")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    wanted = [r for r in (*norm_rows(), *other_rows()) if not options.only or any(o in r.name for o in options.only)]
    cases = {row.case: None for row in wanted}
    programs = {case: program_of(case, options.isa) for case in cases}
    rows = [Prepared(row, programs[row.case], options.isa) for row in wanted]
    bench = Bench(options.isa)
    if options.build:
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    best: dict[str, float] = {}
    for _ in range(options.passes):
        print(f"{time.process_time():.0f} s", file=sys.stderr, flush=True)
        bench.probe()
        for prepared in rows:
            took = (python_ns if prepared.row.python else bench.time_ns)(prepared, options.budget_ms)
            best[prepared.row.name] = min(best.get(prepared.row.name, float("inf")), took)
    shown = ", ".join(f"{k} {v:.1f} {'GOP/s' if k in PEAKS else 'GB/s'}" for k, v in bench.ceilings.items())
    print(f"{options.isa}, one core; {shown}")
    report(rows, best, bench.ceilings)


if __name__ == "__main__":
    main()
