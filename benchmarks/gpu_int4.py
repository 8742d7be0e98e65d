"""Int4 products of benchmarks/gpu.py, against float64 and against cuBLAS in bf16.

In: sizes and a ``Report`` with the copy rate. Out: a ``Row`` each, with the best of a dozen launch shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from adaflex.codegen.triton import render
from adaflex.codegen.triton_build import load, write
from adaflex.codegen.triton_launch import Shape, choose, launch_int4, launch_rows
from adaflex.codegen.triton_templates.w4_layout import Packed, pack, unpack
from adaflex.runtime.program import GemmStep, Program, Slot
from adaflex.runtime.region import Load, Op, Region, Store
from benchmarks.gpu_report import Report, Row, copies, error, microseconds
from benchmarks.gpu_rows import slot

FLOORS = {1: 2.2, 4: 2.2, 16: 2.2, 64: 1.5, 128: 0.95}  # times cuBLAS bf16
COPY_FLOOR = {1: 0.6, 4: 0.6, 16: 0.6}  # bytes moved, as a share of the copy rate


def int4_program(n: int, k: int) -> Program:
    """y = x wᵀ + bias, bf16 out."""
    ops = (Op("load", (0,)), Op("acc"), Op("add", (1, 0)))
    region = Region(("s0",), n, (Load(2, (0,), 1),), ops, (Store(2, 3),))
    slots = (slot("bf16", 1, k), Slot("constant", "u8", 1, 1, 1), slot("f32", 1, n), slot("bf16", 1, n))
    step = GemmStep(0, 1, "gemm_weight_only.h", "gemm_w4<128, false>", (), k, n, region)
    return Program(("s0",), (), (), (), (), slots, (), (step,), (0,))


class Int4:
    """Weights of one shape in several copies, and the kernels that read them."""

    def __init__(self, n: int, k: int, device: str, group: int = 128) -> None:
        self.n, self.k, self.device = n, k, device
        codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device=device)
        scale = (torch.rand(n, k // group, device=device) + 0.5) / 64
        first = pack(codes, scale, None, group)
        self.sets = [first]
        for _ in range(copies(first.size_bytes, device) - 1):
            self.sets.append(Packed(first.codes.clone(), first.scale.clone(), first.zero, (n, k), group))
        self.bias = torch.randn(n, device=device)
        self.source = render(int4_program(n, k))
        self.module = load(write(self.source.text))
        dense = self.decoded().bfloat16()
        self.dense = [dense, *(dense.clone() for _ in range(copies(2 * n * k, device) - 1))]

    def decoded(self) -> torch.Tensor:
        """What the codes stand for, fp32 (exact)."""
        codes, scale, _ = unpack(self.sets[0])
        return (codes.float() - 8) * scale.repeat_interleave(self.sets[0].group, 1)

    def calls(self, x: torch.Tensor, y: torch.Tensor, shape: Shape) -> list[Callable[[], None]]:
        """One call per copy of the weights."""
        entry, rows = self.source.products[0], len(x)
        function = getattr(self.module, entry.gemv if shape.template == "gemv" else entry.gemm)
        sums = torch.empty(shape.parts * rows * self.n, device=self.device)
        memory = {0: x, 2: self.bias, 3: y, 4: sums}
        extra = [memory[number] for number in entry.slots]

        def call(packed: Packed) -> None:
            launch_int4(function, (x, self.k), packed, sums, rows, extra, shape, self.device == "cpu")
            if shape.parts > 1:
                values = {"s0": rows, "parts": shape.parts}
                launch_rows(self.module, entry.finish, memory.__getitem__, values)

        return [lambda packed=packed: call(packed) for packed in self.sets]  # type: ignore[misc]


def candidates(rows: int, n: int, k: int, processors: int, quick: bool) -> list[Shape]:
    """The shape that a program would choose, then others worth trying."""
    found = [choose(rows, n, k, processors)]
    if quick:
        return found
    if rows <= 4:
        height = 1 << (rows - 1).bit_length()
        tiles = ((16, 4), (16, 2), (32, 4), (32, 2), (64, 4))
        found += [Shape("gemv", height, w, p, warps, 3) for w, warps in tiles for p in (1, 2, 4, 8)]
    heights, widths = ((16,), (64,)) if rows <= 16 else ((64,), (64, 128)) if rows <= 64 else ((64, 128), (64, 128))
    parts = (1, 2, 4, 8) if rows <= 64 else (1, 2)
    for height in heights:
        warps = 8 if height == 128 else 4
        found += [Shape("gemm", height, w, p, max(warps, w // 16), s) for w in widths for p in parts for s in (3, 4)]
    return list(dict.fromkeys(found))


def int4_case(weights: Int4, rows: int, report: Report, quick: bool) -> Row:
    """One product: every candidate checked and timed, the best against cuBLAS bf16."""
    n, k = weights.n, weights.k
    x = torch.randn(rows, k, device=weights.device).bfloat16()
    y = torch.empty(rows, n, device=weights.device, dtype=torch.bfloat16)
    want = x.double() @ weights.decoded().double().T + weights.bias.double()
    times: list[tuple[float, Shape]] = []
    worst = 0.0
    for shape in candidates(rows, n, k, report.processors, quick):
        calls = weights.calls(x, y, shape)
        y.fill_(float("nan"))
        calls[0]()
        worst = max(worst, error(y, want))
        times.append((microseconds(calls, report.device), shape))
    us, shape = min(times, key=lambda pair: pair[0])
    theirs = microseconds([lambda w=w: torch.mm(x, w.t()) for w in weights.dense], report.device)
    moved = weights.sets[0].size_bytes + 2 * rows * (n + k)
    share, ratio = moved / us / 1e3 / report.copy_gbs, theirs / us
    held = ratio >= FLOORS.get(rows, 0) and share >= COPY_FLOOR.get(rows, 0)
    floors = [f"{FLOORS[rows]}x"] if rows in FLOORS else []
    floors += [f"{COPY_FLOOR[rows]:.0%} of copy"] if rows in COPY_FLOOR else []
    note = f"{shape.template} {shape.rows}x{shape.columns}, {shape.parts} parts, {shape.warps} warps, "
    note += f"{shape.stages} stages; chosen without tuning: {times[0][0]:.1f} us"
    size = f"M={rows} K={k} N={n}"
    return Row("int4 g128 x bf16", size, worst, 6e-3, us, share, ratio, ", ".join(floors), held, note)
