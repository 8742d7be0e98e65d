"""Launches the printed kernels of a program: row steps, int4 products by template, other products after torch's.

In: a ``Source``, the program's products' weights, a call's tensors. Out: the steps' slots written, in stream order.
``TritonKernels`` is what runtime/cuda.py asks for. Every int argument is passed as it is now, so that one compiled
kernel serves all sizes; only tiles and launch shapes are compile-time constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaflex.codegen.kernels.family import Kernel as Family
from adaflex.codegen.triton import PARTS, Named, Product, Source, render
from adaflex.codegen.triton_build import load, write
from adaflex.codegen.triton_rows import MOST_BLOCK, tile
from adaflex.codegen.triton_templates.w4_layout import Packed
from adaflex.codegen.triton_weights import Dense, Weight, activations, product_weights, without_products
from adaflex.runtime.program import GemmStep, Program, RowStep
from adaflex.runtime.region import evaluate, product

TensorOf = Callable[[int], Tensor]  # slot -> its memory, of the type that kernels read
FEW_ROWS = 4  # up to here the template without matrix unit
MOST_PARTS = 16


@dataclass(frozen=True)
class Shape:
    """How an int4 template is launched: the template, its tile, how many programs share a column's K, warps, stages."""

    template: str  # "gemm" or "gemv"
    rows: int
    columns: int
    parts: int
    warps: int
    stages: int


def choose(rows: int, columns: int, inputs: int, processors: int, half: int = 64) -> Shape:
    """The launch of an int4 product [rows, inputs] x [columns, inputs] on a chip with ``processors`` multiprocessors.

    K is shared by as many programs as it takes to give each processor two, at least four blocks of K each.
    """
    if rows <= FEW_ROWS:
        height, width, warps, stages = 1 << (rows - 1).bit_length(), 16, 4, 4
        template = "gemv"
    else:
        height = 16 if rows <= 16 else 64
        width, warps, stages = 64, 4, 4
        template = "gemm"
    programs = -(-columns // width) * -(-rows // height)
    blocks = -(-inputs // (2 * half))
    parts = 1
    while parts < MOST_PARTS and programs * parts < 2 * processors and blocks // (2 * parts) >= 4:
        parts *= 2
    return Shape(template, height, width, parts, warps, stages)


def launch_rows(module: Any, named: Named, tensor: TensorOf, values: Mapping[str, int], most: int = MOST_BLOCK) -> None:
    """Run one row kernel on the current stream; nothing for no rows."""
    kernel = named.kernel
    rows, columns = evaluate(kernel.rows, values), evaluate(kernel.columns, values)
    if rows == 0 or columns == 0:
        return
    shape = tile(kernel, rows, columns, most)
    arguments = [*(tensor(slot) for slot in kernel.slots), *(values[name] for name in kernel.symbols)]
    function = getattr(module, named.name)
    function[shape.grid](
        *arguments, BR=shape.rows, BC=shape.columns, num_warps=shape.warps, num_stages=2, enable_fp_fusion=True
    )


def pick(variants: Sequence[Named], values: Mapping[str, int], most: int = MOST_BLOCK) -> Named:
    """The kernel for these sizes: whole rows in registers where they fit."""
    if len(variants) == 1:
        return variants[0]
    fits = evaluate(variants[0].kernel.columns, values) <= most
    return next(entry for entry in variants if (entry.kernel.mode == "block") == fits)


class TritonKernels:
    """The native steps of one program on one device. ``f16``: products in fp16 whatever 16-bit type comes in."""

    def __init__(
        self, program: Program, source: Source, weights: Mapping[int, Weight], processors: int, f16: bool = False
    ) -> None:
        self.program, self.source, self.weights = program, source, weights
        self.processors, self.f16 = processors, f16
        self.module = load(write(source.text))

    def weight_bytes(self) -> int:
        """Bytes of the products' weights on the device, shared ones once."""
        return sum(weight.size_bytes for weight in {id(entry): entry for entry in self.weights.values()}.values())

    def workspace_bytes(self, number: int, values: Mapping[str, int]) -> int:
        """Bytes that a step needs beside its slots: partial sums, or a library product before its epilogue."""
        step = self.program.steps[number]
        if not isinstance(step, GemmStep):
            return 0
        rows = evaluate(product(step.region.dims), values)
        weight = self.weights[number]
        parts = self._shape(step, weight, rows).parts if isinstance(weight, Packed) else 0
        if isinstance(weight, Packed):
            return rows * step.n * 4 * parts if parts > 1 else 0
        return rows * step.n * 4

    def run(self, number: int, tensor: TensorOf, values: Mapping[str, int], workspace: Tensor) -> None:
        """Run step ``number`` on the current stream."""
        step = self.program.steps[number]
        if isinstance(step, RowStep):
            launch_rows(self.module, pick(self.source.rows[number], values), tensor, values)
        elif isinstance(step, GemmStep) and evaluate(product(step.region.dims), values):
            entry, weight = self.source.products[number], self.weights[number]
            if isinstance(weight, Packed):
                self._int4(step, entry, weight, tensor, (values, workspace))
            else:
                self._library(step, entry, weight, tensor, (values, workspace))

    def _shape(self, step: GemmStep, weight: Packed, rows: int) -> Shape:
        return choose(max(rows, 1), step.n, step.k, self.processors, weight.half)

    def _int4(
        self, step: GemmStep, entry: Product, weight: Packed, tensor: TensorOf, call: tuple[Mapping[str, int], Tensor]
    ) -> None:
        values, workspace = call
        rows = evaluate(product(step.region.dims), values)
        shape = self._shape(step, weight, rows)
        pitch = evaluate(self.program.slots[step.a].row_bytes, values) // 2
        extra = [*(tensor(slot) for slot in entry.slots), *(values[name] for name in entry.symbols)]
        sums = workspace[: 4 * rows * step.n * shape.parts].view(torch.float32) if shape.parts > 1 else weight.scale
        function = getattr(self.module, entry.gemv if shape.template == "gemv" else entry.gemm)
        launch_int4(function, (tensor(step.a), pitch), weight, sums, rows, extra, shape, self.f16)
        if shape.parts > 1:
            self._finish(entry, tensor, values, sums, shape.parts)

    def _library(
        self, step: GemmStep, entry: Product, weight: Dense, tensor: TensorOf, call: tuple[Mapping[str, int], Tensor]
    ) -> None:
        """torch's product of the decoded operands, then the epilogue."""
        values, workspace = call
        rows = evaluate(product(step.region.dims), values)
        x = activations(tensor(step.a), self.program.slots[step.a], rows, step.k, values)
        sums = workspace[: 4 * rows * step.n].view(torch.float32)
        torch.mm(x, weight.values.t(), out=sums.view(rows, step.n))
        self._finish(entry, tensor, values, sums, 1)

    def _finish(self, entry: Product, tensor: TensorOf, values: Mapping[str, int], sums: Tensor, parts: int) -> None:
        last = len(self.program.slots)  # the slot that the finish kernel has beyond the program's
        launch_rows(
            self.module,
            entry.finish,
            lambda slot: sums if slot == last else tensor(slot),
            {**values, PARTS: parts},
        )


def launch_int4(
    function: Any,
    x: tuple[Tensor, int],
    weight: Packed,
    sums: Tensor,
    rows: int,
    extra: Sequence[Any],
    shape: Shape,
    f16: bool,
) -> None:
    """Run an int4 template: ``x`` is the activations and their row pitch in elements, ``extra`` the epilogue's."""
    n, k = weight.shape
    asymmetric = weight.zero.numel() > 0
    grid = (-(-n // shape.columns), -(-rows // shape.rows), shape.parts)
    function[grid](
        x[0],
        weight.codes,
        weight.scale,
        weight.zero if asymmetric else weight.codes,
        sums,
        rows,
        n,
        k,
        x[1],
        *extra,
        GROUP=weight.group,
        H=weight.half,
        ASYMMETRIC=asymmetric,
        F16=f16 or x[0].dtype == torch.float16,
        WHOLE=k % (2 * weight.half) == 0,
        SHARED=shape.parts > 1,
        BM=shape.rows,
        BN=shape.columns,
        num_warps=shape.warps,
        num_stages=shape.stages,
        enable_fp_fusion=True,
    )


def kernels_for(
    program: Program, weights: Tensor, menu: Sequence[Family], device: str, f16: bool = False
) -> tuple[Program, Tensor, TritonKernels]:
    """A program's own part of a device: the program without its products' bytes, the other constants there, kernels.

    ``weights`` are the constants' bytes in host memory; they are not needed any more afterwards.
    """
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.startswith("cuda") else 1
    products = product_weights(program, weights, menu, device)
    slim, constants = without_products(program, weights, device)
    return slim, constants, TritonKernels(slim, render(program), products, processors, f16)
