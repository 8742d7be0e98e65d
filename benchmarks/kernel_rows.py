"""Speed of every matrix product as a share of the ceiling probed in the same run, on one core.

In: options (``--help``). Out: a table per kernel: rows M against (K, N), each cell the share of its instruction's peak
and GOP/s. Weights cycle through a set of matrices as in a model; the epilogue adds a bias and stores bf16. Operands
are constant bytes: ordinary values do not change the time of these kernels. A cell is the fastest burst, the ceiling
the fastest probe of the whole run, because the machine may be shared.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaflex import native

HEADERS = Path(__file__).resolve().parents[1] / "codegen" / "cpp"
ISA_FLAGS = {
    "avx512": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512"),
    "avx2": ("-march=x86-64-v3",),
}
SHAPES = ((384, 384), (384, 1152), (384, 1536), (1536, 384))
ROWS = (1, 2, 4, 8, 16, 128, 512)


@dataclass(frozen=True)
class Kernel:
    """A product: entry of kernel_rows.cpp, its ceiling, bytes per weight and per activation, groups (0: per token)."""

    name: str
    peak: str
    weight_bytes: float
    row_bytes: int
    group: int = 0


KERNELS = (
    Kernel("f32", "peak_f32", 4, 4),
    Kernel("bf16", "peak_bf16", 2, 2),
    Kernel("w8a8", "peak_vnni", 1, 1),
    *(Kernel(f"w8a8_g{group}", "peak_vnni", 1, 1, group) for group in (32, 64, 128)),
    *(Kernel(f"w4a8_g{group}", "peak_vnni", 0.5, 1, group) for group in (32, 64, 128)),
    *(Kernel(f"w4a8_asym_g{group}", "peak_vnni", 0.5, 1, group) for group in (32, 64, 128)),
    Kernel("w8", "peak_bf16", 1, 2),
    *(Kernel(f"w4_g{group}", "peak_bf16", 0.5, 2, group) for group in (32, 64, 128)),
    *(Kernel(f"w4_asym_g{group}", "peak_bf16", 0.5, 2, group) for group in (32, 64, 128)),
)


class Args(ctypes.Structure):
    """The struct of the same name in kernel_rows.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p if name in ("a", "b") else ctypes.c_long) for name in ("a", "lda", "rows", "b")),
        *((name, ctypes.c_void_p) for name in ("sw", "sums", "zeros")),
        *((name, ctypes.c_long) for name in ("K", "N")),
        *((name, ctypes.c_void_p) for name in ("y", "bias")),
    )


def buffer(size_bytes: int, value: int = 0) -> np.ndarray:
    """Touched bytes that start at a multiple of 64."""
    room = np.full(size_bytes + 64, value, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size_bytes]


class Bench:
    """The built timers and the ceilings seen so far."""

    def __init__(self, isa: str) -> None:
        source = Path(__file__).with_name("kernel_rows.cpp").read_text()
        built = native.build(
            source, includes=[HEADERS, Path(__file__).parent], flags=ISA_FLAGS[isa], name=f"kernels-{isa}"
        )
        self.library = native.load(built)
        self.peaks: dict[str, float] = {}

    def probe(self, name: str) -> None:
        """Raise the ceiling `name` (GOP/s) to what this instant shows."""
        entry = self.library[name]
        entry.restype = ctypes.c_double
        self.peaks[name] = max(self.peaks.get(name, 0.0), entry(20))

    def bandwidth(self, size_bytes: int, rounds: int) -> float:
        """GB/s of reading a buffer of that size again and again."""
        entry = self.library["read_speed"]
        entry.restype = ctypes.c_double
        memory = buffer(size_bytes, 1)
        return float(entry(ctypes.c_void_p(memory.ctypes.data), ctypes.c_long(size_bytes), rounds))

    def time_ns(self, kernel: Kernel, rows: int, k: int, n: int, matrices: int, budget_ms: float) -> float:
        """Nanoseconds of one product in the fastest walk over `matrices` weights."""
        entry = self.library[kernel.name]
        entry.restype = ctypes.c_double
        operands, keep = operand_list(kernel, rows, k, n, matrices)
        first = entry(operands, matrices, 2) * matrices
        best = entry(operands, matrices, max(3, int(budget_ms * 1e6 / first)))
        del keep
        return float(best)


def operand_list(
    kernel: Kernel, rows: int, k: int, n: int, matrices: int
) -> tuple[ctypes.Array[Args], list[np.ndarray]]:
    """`matrices` argument records that share activations and output, and the buffers behind them."""
    codes = -(-k // 64) * 64
    groups = k // kernel.group if kernel.group else 1
    lda = -(-(codes * kernel.row_bytes + 8 * groups) // 64) * 64
    columns = -(-n // 32) * 32
    a, y, bias = buffer(rows * lda, 0x3C), buffer(rows * n * 4), buffer(columns * 4)
    keep = [a, y, bias]
    records = (Args * matrices)()
    for record in records:
        b = buffer(int(columns * codes * kernel.weight_bytes), 3)
        tables = [buffer(groups * columns * 2 if kernel.group else columns * 4) for _ in range(3)]
        keep += [b, *tables]
        record.a, record.lda, record.rows, record.b = a.ctypes.data, lda, rows, b.ctypes.data
        record.sw, record.sums, record.zeros = (table.ctypes.data for table in tables)
        record.K, record.N, record.y, record.bias = k, n, y.ctypes.data, bias.ctypes.data
    return records, keep


def measure(bench: Bench, kernel: Kernel, options: argparse.Namespace) -> None:
    """Print one kernel's table."""
    cells: dict[tuple[int, int], float] = {}
    for _ in range(options.passes):
        for i, rows in enumerate(options.rows):
            for j, (k, n) in enumerate(SHAPES):
                bench.probe(kernel.peak)
                took = bench.time_ns(kernel, rows, k, n, options.matrices, options.budget_ms)
                cells[i, j] = max(cells.get((i, j), 0.0), 2.0 * rows * k * n / took)
    peak = bench.peaks[kernel.peak]
    print(f"\n{kernel.name}: share of {kernel.peak} = {peak:.0f} GOP/s (GOP/s)")
    print("   M  " + "".join(f"{f'{k}x{n}':>17}" for k, n in SHAPES))
    for i, rows in enumerate(options.rows):
        speeds = (cells[i, j] for j in range(len(SHAPES)))
        print(f"{rows:4}  " + "".join(f"{f'{speed / peak:6.1%} ({speed:5.0f})':>17}" for speed in speeds), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--isa", default="avx512", choices=("avx512", "avx2"))
    parser.add_argument("--only", nargs="*", help="kernels to time (default: all)")
    parser.add_argument("--rows", nargs="*", type=int, default=list(ROWS))
    parser.add_argument("--matrices", type=int, default=8, help="weights cycled through")
    parser.add_argument("--budget-ms", type=float, default=15.0, help="time per cell and pass")
    parser.add_argument("--passes", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    options = parse()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    bench = Bench(options.isa)
    for peak in ("peak_f32", "peak_bf16", "peak_vnni"):
        bench.probe(peak)
    print(f"{options.isa}, one core; " + ", ".join(f"{name} {value:.0f} GOP/s" for name, value in bench.peaks.items()))
    for name, size, rounds in (("L2", 512 << 10, 400), ("L3", 8 << 20, 40), ("DRAM", 256 << 20, 3)):
        print(f"{name} read ({size >> 10} KiB): {bench.bandwidth(size, rounds):.0f} GB/s")
    for kernel in KERNELS:
        if not options.only or kernel.name in options.only:
            measure(bench, kernel, options)


if __name__ == "__main__":
    main()
