"""Executes a program on a GPU: one uint8 tensor as arena, kernels launched in order on the caller's stream.

In: a ``Program``, its constants' bytes on the device, kernels for its row and product steps, a call's tensors there.
Out: fresh output tensors. Attention, windows and library steps go through torch.

The schedule of threads means nothing here: every step runs over all its rows and is a moment of its own, so slots are
packed by the steps they live in. An arena serves one call at a time; the next use of it waits for the last on the
device, whatever stream it came from. Temporaries that torch makes in those steps are its own.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from adaflex.errors import OptionError
from adaflex.runtime.bounds import check_bounds
from adaflex.runtime.inputs import check_guards, check_inputs, sizes_of
from adaflex.runtime.layout import Layout, plan_layout, touched
from adaflex.runtime.library import DTYPES, LibraryCall, plain, prepare
from adaflex.runtime.program import (
    Argument,
    AttentionStep,
    LibraryStep,
    Loop,
    Operand,
    Phase,
    Program,
    Segment,
    WindowStep,
)
from adaflex.runtime.region import evaluate


class DeviceKernels(Protocol):
    """What the executor asks of generated kernels."""

    def weight_bytes(self) -> int:
        """Bytes of the products' weights on the device."""

    def workspace_bytes(self, number: int, values: Mapping[str, int]) -> int:
        """Bytes that a step needs beside its slots."""

    def run(self, number: int, tensor: Callable[[int], Tensor], values: Mapping[str, int], workspace: Tensor) -> None:
        """Run a row or product step on the current stream."""


def device_program(program: Program, device: str) -> Program:
    """The program as a GPU runs it: slots whole, each native step a phase of its own, tensors made on ``device``."""
    slots = tuple(replace(slot, window="full") for slot in program.slots)
    steps = tuple(_on_device(step, device) if isinstance(step, LibraryStep) else step for step in program.steps)
    return replace(program, slots=slots, steps=steps, schedule=tuple(_apart(entry) for entry in program.schedule))


def _apart(entry: Segment | int) -> Segment | int:
    if isinstance(entry, int):
        return entry
    steps = [step for phase in entry.phases for loop in phase.loops for step in loop.steps]
    return Segment(0, tuple(Phase((Loop((step,), 1, 0),)) for step in steps))


def _on_device(step: LibraryStep, device: str) -> LibraryStep:
    kwargs = tuple((name, _moved(argument, device)) for name, argument in step.kwargs)
    return replace(step, args=tuple(_moved(argument, device) for argument in step.args), kwargs=kwargs)


def _moved(argument: Argument, device: str) -> Argument:
    if argument.kind == "device":
        return replace(argument, text=device)
    return replace(argument, items=tuple(_moved(item, device) for item in argument.items))


def memory_dtype(form: str) -> torch.dtype:
    """The dtype as which kernels read a slot's memory: bools and codes as bytes."""
    if form == "bool" or form.startswith("u8"):
        return torch.uint8
    return DTYPES[form.partition("-")[0]]


@dataclass
class _Arena:
    """The memory of one call at a time. ``done`` is the event after its last use."""

    memory: Tensor
    views: dict[int, Tensor] = field(default_factory=dict)
    done: Any = None


@dataclass
class _Shape:
    values: dict[str, int]
    layout: Layout
    workspace_bytes: int
    output_shapes: list[tuple[int, ...]]
    free: list[_Arena] = field(default_factory=list)


class CudaExecutor:
    """A program on one device, called with its inputs in their order. Not picklable."""

    def __init__(
        self, program: Program, weights: Tensor, kernels: DeviceKernels, device: str, max_concurrency: int = 1
    ) -> None:
        """``weights``: the constants' bytes, uint8, on ``device``; ``program`` may be any: it is made a device's."""
        self._given, self.program = program, device_program(program, device)
        self.weights, self.kernels, self.device = weights, kernels, torch.device(device)
        self._is_cuda = self.device.type == "cuda"
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        self._lock = threading.Lock()
        self.max_concurrency, self._turns = max_concurrency, threading.Semaphore(max_concurrency)
        self._library: dict[int, LibraryCall] = {
            number: prepare(step) for number, step in enumerate(self.program.steps) if isinstance(step, LibraryStep)
        }
        self._order, self._dead = _order(self.program)

    def __reduce__(self) -> Any:
        raise TypeError("an AdaFlex program cannot be pickled; save it with .save(path) and load it with adaflex.load")

    def __call__(self, *inputs: Any) -> list[Tensor]:
        """Run once. Raises ``OptionError`` for an input of another shape, dtype or device."""
        if len(inputs) != len(self.program.inputs):
            raise OptionError(f"{len(inputs)} inputs were given; this program takes {len(self.program.inputs)}")
        shape = self._shape(inputs)
        with self._turns, torch.no_grad(), torch.cuda.device(self.device) if self._is_cuda else nullcontext():
            arena = self._arena(shape)
            try:
                return self._run(shape, arena, inputs)
            finally:
                self._give_back(shape, arena)

    # ---- sizes ----
    def _shape(self, inputs: Sequence[Any]) -> _Shape:
        values = sizes_of(self.program, inputs)
        key = tuple(values.values())
        with self._lock:
            if key not in self._shapes:
                check_guards(self.program, values)
                check_bounds(self._given, values)
                check_inputs(self.program, values, inputs, self.device)
                self._shapes[key] = self._plan(values)
            else:
                check_inputs(self.program, values, inputs, self.device)
        return self._shapes[key]

    def _plan(self, values: dict[str, int]) -> _Shape:
        workspace = max((self.kernels.workspace_bytes(n, values) for n in self._native()), default=0)
        layout = plan_layout(self.program, values, 1, workspace)
        shapes = [
            tuple(evaluate(size, values) for size in self.program.slots[slot].shape) for slot in self.program.outputs
        ]
        return _Shape(values, layout, workspace, shapes)

    def _native(self) -> list[int]:
        return [
            n for n in self._order if not isinstance(self.program.steps[n], LibraryStep | AttentionStep | WindowStep)
        ]

    # ---- memory ----
    def _capturing(self) -> bool:
        """Is this call being recorded into a CUDA graph? Then its arena is the graph's own, and never comes back."""
        return self._is_cuda and torch.cuda.is_current_stream_capturing()

    def _give_back(self, shape: _Shape, arena: _Arena) -> None:
        if self._capturing():
            return
        if self._is_cuda:
            arena.done = torch.cuda.current_stream(self.device).record_event()
        shape.free.append(arena)

    def _arena(self, shape: _Shape) -> _Arena:
        if not shape.free or self._capturing():
            return _Arena(torch.empty(max(shape.layout.arena_bytes, 1), dtype=torch.uint8, device=self.device))
        arena = shape.free.pop()
        if arena.done is not None:
            torch.cuda.current_stream(self.device).wait_event(arena.done)
        return arena

    def _local(self, shape: _Shape, arena: _Arena, number: int) -> Tensor:
        """A slot in the arena, flat, of the dtype that kernels read."""
        if number not in arena.views:
            start = shape.layout.offsets[number]
            end = start + shape.layout.rows[number] * shape.layout.row_bytes[number]
            dtype = memory_dtype(self.program.slots[number].form)
            arena.views[number] = arena.memory[start : end - (end - start) % dtype.itemsize].view(dtype)
        return arena.views[number]

    def _constant(self, number: int) -> Tensor:
        slot = self.program.slots[number]
        entry = self.program.constants[slot.constant]
        return self.weights[entry.offset : entry.offset + entry.size_bytes].view(memory_dtype(slot.form))

    def memory(self, inputs: Sequence[Any]) -> dict[str, int]:
        """Planned bytes for these sizes: stored weights, arenas and values of library steps of all calls at once."""
        layout, calls = self._shape(inputs).layout, self.max_concurrency
        weights = self.weights.numel() + self.kernels.weight_bytes()
        parts = {"weights": weights, "arena": calls * layout.arena_bytes, "library": calls * layout.library_bytes}
        return {**parts, "total": sum(parts.values())}

    # ---- a call ----
    def _run(self, shape: _Shape, arena: _Arena, inputs: Sequence[Any]) -> list[Tensor]:
        program = self.program
        tensors: dict[int, Tensor] = {}
        for slot, given in zip(program.inputs, inputs, strict=True):
            if slot >= 0:
                tensors[slot] = plain(given)
        for slot, dims in zip(program.outputs, shape.output_shapes, strict=True):
            if program.slots[slot].kind == "output":
                tensors[slot] = torch.empty(dims, dtype=DTYPES[program.slots[slot].form], device=self.device)
        start = shape.layout.shared_bytes + shape.layout.scratch_offset
        workspace = arena.memory[start : start + shape.workspace_bytes]

        def tensor(slot: int) -> Tensor:
            if slot in tensors:
                found = tensors[slot]
                return found.view(torch.uint8) if found.dtype == torch.bool else found
            home = program.slots[slot].kind
            return self._constant(slot) if home == "constant" else self._local(shape, arena, slot)

        for number in self._order:
            step = program.steps[number]
            if isinstance(step, LibraryStep):
                tensors.update(self._call(number, shape, arena, tensors))
            elif isinstance(step, AttentionStep):
                attend(step, tensor, shape.values, self.program)
            elif isinstance(step, WindowStep):
                slide(step, tensor, shape.values)
            else:
                self.kernels.run(number, tensor, shape.values, workspace)
            for slot in self._dead[number]:
                tensors.pop(slot, None)
        return [tensors[slot] for slot in program.outputs]

    def _call(self, number: int, shape: _Shape, arena: _Arena, tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """One library step: slots found through the addresses that the reader of arguments expects."""
        addresses = []
        for place, slot in enumerate(self.program.slots):
            known = slot.kind == "constant"
            offset = self.program.constants[slot.constant].offset if known else shape.layout.offsets[place]
            addresses.append((self.weights if known else arena.memory).data_ptr() + max(offset, 0))
        made = self._library[number](self.program, shape.values, arena.memory, self.weights, addresses, tensors)
        return dict(made)


def _order(program: Program) -> tuple[list[int], dict[int, list[int]]]:
    """Steps in order, and after each the torch-owned values that nothing needs any more."""
    order: list[int] = []
    for entry in program.schedule:
        order += (
            [entry] if isinstance(entry, int) else [s for p in entry.phases for loop in p.loops for s in loop.steps]
        )
    last = {slot: number for number in order for slot in touched(program.steps[number])}
    dead: dict[int, list[int]] = {number: [] for number in order}
    for slot, number in last.items():
        if program.slots[slot].kind == "value" and slot not in program.outputs:
            dead[number].append(slot)
    return order, dead


def attend(step: AttentionStep, tensor: Callable[[int], Tensor], values: Mapping[str, int], program: Program) -> None:
    """One attention step through torch, its operands read where they lie and its result written in place."""

    def number(size: Any) -> int:
        return evaluate(size, values)

    def view(operand: Operand, heads: Any, rows: Any, width: Any) -> Tensor:
        whole = tensor(operand.slot)
        whole = whole.view(torch.bool) if program.slots[operand.slot].form == "bool" else whole
        shape = (number(step.batch), number(heads), number(rows), number(width))
        return torch.as_strided(
            whole, shape, [number(s) for s in operand.strides], whole.storage_offset() + number(operand.offset)
        )

    q = view(step.q, step.heads, step.queries, step.width)
    k, v = (view(part, step.kv_heads, step.keys, step.width) for part in (step.k, step.v))
    dtype = torch.bfloat16 if step.bf16 else torch.float32
    mask = None if step.mask is None else view(step.mask, step.heads, step.queries, step.keys)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    out = F.scaled_dot_product_attention(
        q.to(dtype),
        k.to(dtype),
        v.to(dtype),
        mask,
        is_causal=step.causal,
        scale=step.scale,
        enable_gqa=number(step.kv_heads) != number(step.heads),
    )
    view(step.out, step.heads, step.queries, step.width).copy_(out)


def slide(step: WindowStep, tensor: Callable[[int], Tensor], values: Mapping[str, int]) -> None:
    """One step of windows through torch, its images read where they lie and its rows written in place."""
    batch, height, width = (evaluate(size, values) for size in (step.batch, step.height, step.width))
    whole, strides = tensor(step.x.slot), [evaluate(stride, values) for stride in step.x.strides]
    start = whole.storage_offset() + evaluate(step.x.offset, values)
    images = torch.as_strided(whole, (batch, height, width, step.channels), strides, start)
    high, wide = step.windows(0, height), step.windows(1, width)
    above, left, below, right = step.padding
    padded = F.pad(images, (0, 0, left, right, above, below), value=float("-inf") if step.kind == "max" else 0.0)
    shape = (batch, high, wide, *((step.taps,) if step.kind == "patches" else ()), step.channels)
    count = math.prod(shape)
    out = tensor(step.out).reshape(-1)[:count].view(shape)
    for number, (row, column) in enumerate(itertools.product(*map(range, step.kernel))):
        top, first = row * step.dilation[0], column * step.dilation[1]
        tap = padded[:, top : top + (high - 1) * step.stride[0] + 1 : step.stride[0]]
        tap = tap[:, :, first : first + (wide - 1) * step.stride[1] + 1 : step.stride[1]]
        if step.kind == "depthwise":
            weight = tensor(step.weight).reshape(-1)[number * step.channels :][: step.channels]
            tap = tap * weight
        if step.kind == "patches":
            out[:, :, :, number].copy_(tap)
        elif number == 0:
            out.copy_(tap)
        else:
            torch.maximum(out, tap, out=out) if step.kind == "max" else out.add_(tap)
    if step.kind == "mean":
        out.div_(step.taps)
