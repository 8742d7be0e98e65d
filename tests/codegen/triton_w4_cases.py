"""The int4 templates and a whole program in Triton's interpreter: in a process of its own, as triton_cases.py."""

from __future__ import annotations

import sys

import numpy as np
import torch

from adaflex.codegen.triton import Source, render
from adaflex.codegen.triton_launch import Shape, TritonKernels, launch_int4
from adaflex.codegen.triton_templates.w4_layout import Packed, pack
from adaflex.runtime.program import GemmStep, Program, Slot
from adaflex.runtime.region import Load, Region, Store
from tests.codegen import triton_oracle as oracle
from tests.codegen.triton_cases import EPS, Check, error, op, slot


def weight(n: int, k: int, group: int, symmetric: bool) -> tuple[Packed, np.ndarray]:
    """A random packed weight, and what it stands for in float64."""
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    scale = torch.rand(n, k // group) + 0.5
    zero = None if symmetric else torch.randint(0, 16, (n, k // group), dtype=torch.uint8)
    least = torch.full_like(scale, 8.0) if zero is None else zero.float()
    whole = (codes.double() - least.double().repeat_interleave(group, 1)) * scale.double().repeat_interleave(group, 1)
    return pack(codes, scale, zero, group), whole.numpy()


def linear(rows: str | int, n: int, k: int) -> Program:
    """gelu(x wᵀ + bias) + residual as a program of one int4 product; slots: x, weight, bias, residual, out."""
    ops = (op("load", 0), op("load", 1), op("acc"), op("add", 2, 0), op("gelu", 3), op("add", 4, 1))
    region = Region((rows,), n, (Load(2, (0,), 1), Load(3, (n,), 1)), ops, (Store(5, 4),))
    slots = (
        Slot("local", "f16", rows, k, 2 * k),
        Slot("constant", "u8", 1, 1, 1),
        slot("f32", 1, n),
        slot("f32", rows, n),
        slot("f32", rows, n),
    )
    step = GemmStep(0, 1, "gemm_w4.h", "gemm_w4<64, false>", (), k, n, region)
    return Program(("s0",), (), (), (), (), slots, (), (step,), (0,))


def product(source: Source, shape: Shape, packed: Packed, want: np.ndarray, rows: int) -> Check:
    """One product by one shape of template, followed by the finish kernel where K is shared."""
    n, k = packed.shape
    program = linear("s0", n, k)
    x, bias, residual = torch.randn(rows, k).half(), torch.randn(n), torch.randn(rows, n)
    memory = {0: x, 2: bias, 3: residual, 4: torch.full((rows, n), 99.0)}
    kernels = TritonKernels(program, source, {0: packed}, 1)
    entry = source.products[0]
    values = {"s0": rows}
    sums = torch.zeros(shape.parts * rows * n)
    extra = [*(memory[number] for number in entry.slots), *(values[name] for name in entry.symbols)]
    function = getattr(kernels.module, entry.gemm if shape.template == "gemm" else entry.gemv)
    launch_int4(function, (x, k), packed, sums, rows, extra, shape, True)
    if shape.parts > 1:
        kernels._finish(entry, memory.__getitem__, values, sums, shape.parts)
    y = x.double().numpy() @ want.T + bias.double().numpy()
    y = oracle.UNARY["gelu"](y) + residual.double().numpy()
    return (f"{shape} g{packed.group} {rows}x{k}x{n}", error(memory[4].double().numpy(), y), 16 * EPS)


def case_gemm() -> list[Check]:
    checks = []
    sizes = {32: (5, 96, 70), 64: (21, 192, 33), 128: (16, 256, 64)}  # M, K, N: padding of K, of N, and neither
    for group, (rows, k, n) in sizes.items():
        for symmetric in (True, False):
            packed, want = weight(n, k, group, symmetric)
            source = render(linear("s0", n, k))
            for parts in (1, 2):
                checks.append(product(source, Shape("gemm", 16, 64, parts, 4, 2), packed, want, rows))
    packed, want = weight(130, 128, 64, True)
    checks.append(product(render(linear("s0", 130, 128)), Shape("gemm", 64, 128, 1, 4, 2), packed, want, 70))
    return checks


def case_gemv() -> list[Check]:
    checks = []
    for group, (rows, k, n) in {32: (1, 96, 20), 64: (3, 192, 33), 128: (4, 256, 64)}.items():
        for symmetric in (True, False):
            packed, want = weight(n, k, group, symmetric)
            shape = Shape("gemv", 1 << (rows - 1).bit_length(), 16, 1 + (group == 128), 4, 2)
            checks.append(product(render(linear("s0", n, k)), shape, packed, want, rows))
    return checks


def case_same_bits() -> list[Check]:
    """Shared K is summed in a fixed order: two runs agree in every bit."""
    packed, _ = weight(64, 1024, 64, False)
    source = render(linear("s0", 64, 1024))
    kernels = TritonKernels(linear("s0", 64, 1024), source, {0: packed}, 64)
    x, extra = torch.randn(4, 1024).half(), {2: torch.randn(64), 3: torch.randn(4, 64)}
    made = []
    for _ in range(2):
        memory = {0: x, 4: torch.empty(4, 64), **extra}
        workspace = torch.full((kernels.workspace_bytes(0, {"s0": 4}),), 77, dtype=torch.uint8)
        kernels.run(0, memory.__getitem__, {"s0": 4}, workspace)
        made.append(memory[4])
    shared = kernels._shape(kernels.program.steps[0], packed, 4).parts  # type: ignore[arg-type]
    return [("parts", float(shared < 2), 0.0), ("bits", float(not torch.equal(*made)), 0.0)]


CASES = {name.removeprefix("case_"): function for name, function in list(globals().items()) if name[:5] == "case_"}


if __name__ == "__main__":
    oracle.report(CASES, sys.argv[1:])
