"""Runs a program's native steps in numpy: the meaning that kernels are held against, and what runs where there is no
compiler.

In: a ``Program``. Out: kernels for ``runtime.execute.Executor``. Every step is evaluated over all its rows at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from adaflex.codegen.evaluate_attention import evaluate_attention
from adaflex.codegen.evaluate_forms import read_form, read_weight, write_form
from adaflex.codegen.evaluate_region import STORAGE, Array, evaluate_region, narrow
from adaflex.codegen.evaluate_windows import evaluate_windows
from adaflex.runtime.program import ITEM_BYTES, AttentionStep, GemmStep, Program, RowStep, Segment, Step, WindowStep
from adaflex.runtime.region import Region, evaluate


class Sizes(Protocol):
    """What the evaluator asks of a layout."""

    @property
    def symbols(self) -> tuple[int, ...]:
        """Values of the program's symbols."""

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Per slot."""

    @property
    def rows(self) -> tuple[int, ...]:
        """Per slot."""


class Evaluator:
    """Kernels in numpy. ``whole``: every slot must lie in memory in full, there are no windows."""

    whole = True

    def __init__(self, program: Program) -> None:
        self.program = program

    def scratch_bytes(self, symbols: Sequence[int]) -> int:
        """None."""
        return 0

    def prepare(self, layout: Sizes) -> Evaluation:
        """The program with these sizes."""
        return Evaluation(self.program, layout)


class Evaluation:
    """The segments of a program, evaluated on slots that lie in memory."""

    def __init__(self, program: Program, sizes: Sizes) -> None:
        self.program, self.sizes = program, sizes
        self.symbols = dict(zip(program.symbols, sizes.symbols, strict=True))
        self.segments = [entry for entry in program.schedule if isinstance(entry, Segment)]

    def run(self, segment: int, addresses: Sequence[int], thread_arena: int) -> None:
        """Run one segment on these slot addresses."""
        memory = Memory(self.program, self.sizes, addresses)
        for phase in self.segments[segment].phases:
            for loop in phase.loops:
                for number in loop.steps:
                    evaluate_step(self.program.steps[number], memory, self.symbols)


class Memory:
    """Slots as numpy arrays over their addresses. Reads and writes outside of a slot are errors."""

    def __init__(self, program: Program, sizes: Sizes, addresses: Sequence[int]) -> None:
        self.program, self.sizes, self.addresses = program, sizes, addresses

    def raw(self, slot: int) -> Array:
        """The slot's bytes, uint8 [rows, row_bytes]."""
        rows, row_bytes = self.sizes.rows[slot], self.sizes.row_bytes[slot]
        if rows * row_bytes == 0:
            return np.zeros((rows, row_bytes), np.uint8)
        block = (ctypes.c_ubyte * (rows * row_bytes)).from_address(self.addresses[slot])
        return np.ctypeslib.as_array(block).reshape(rows, row_bytes)

    def __getitem__(self, slot: int) -> Array:
        """The slot's elements, flat."""
        return self.raw(slot).reshape(-1).view(STORAGE[self.form(slot)])

    def form(self, slot: int) -> str:
        """The slot's form; a plain bf16 row and the activation form bf16 differ in their padding only."""
        return self.program.slots[slot].form

    def columns(self, slot: int) -> int:
        """Columns of the slot."""
        values = dict(zip(self.program.symbols, self.sizes.symbols, strict=True))
        return evaluate(self.program.slots[slot].columns, values)

    def write(self, slot: int, values: Array) -> None:
        """Store rows in the slot's form; one value a row fills the columns."""
        form, raw, columns = self.form(slot), self.raw(slot), self.columns(slot)
        values = np.broadcast_to(values, (len(raw), columns))
        if form in ITEM_BYTES and form != "bf16":
            raw[:, : columns * ITEM_BYTES[form]] = np.ascontiguousarray(narrow(values, form)).view(np.uint8)
        else:
            raw[:] = write_form(values, form, raw.shape[1])


def evaluate_step(step: Step, memory: Memory, symbols: dict[str, int]) -> None:
    """Run one native step."""
    if isinstance(step, RowStep):
        _store(step.region, evaluate_region(step.region, _Slots(memory), symbols), memory)
    elif isinstance(step, GemmStep):
        _store(step.region, evaluate_region(step.region, _Slots(memory), symbols, acc=product(step, memory)), memory)
    elif isinstance(step, AttentionStep):
        result = evaluate_attention(step, _Slots(memory), symbols)
        view = _written(step, memory, symbols, result.shape)
        view[...] = narrow(result, memory.form(step.out.slot))
    elif isinstance(step, WindowStep):
        memory.write(step.out, evaluate_windows(step, _Slots(memory), symbols))


class _Slots(dict[int, Array]):
    """Slots by number, made when they are asked for."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def __missing__(self, slot: int) -> Array:
        self[slot] = found = self.memory[slot]
        return found


def _store(region: Region, values: list[Array], memory: Memory) -> None:
    for store, value in zip(region.stores, values, strict=True):
        memory.write(store.slot, value)


def product(step: GemmStep, memory: Memory) -> Array:
    """a wᵀ [rows, N]: integer codes exactly, in float64; float operands in fp32."""
    exact = memory.form(step.a).startswith("u8")
    dtype: Any = np.float64 if exact else np.float32
    parts = {part.name: part.offset for part in step.parts}
    weight = read_weight(memory.raw(step.weight).reshape(-1), step.function, parts, step.n, step.k)
    made: Array = read_form(memory.raw(step.a), memory.form(step.a), step.k, dtype) @ weight.T.astype(dtype)
    return made


def _written(step: AttentionStep, memory: Memory, symbols: dict[str, int], shape: tuple[int, ...]) -> Array:
    """The view of the output slot that attention fills."""
    flat = memory[step.out.slot]
    strides = [evaluate(stride, symbols) for stride in step.out.strides]
    offset = evaluate(step.out.offset, symbols)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= len(flat):
        raise IndexError(f"element {last} of a slot that has {len(flat)}")
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, [stride * flat.itemsize for stride in strides])
