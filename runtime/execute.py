"""Executes a program: finds its sizes, lays out its memory, walks its schedule.

In: a ``Program``, the bytes of its constants, kernels, and a call's tensors. Out: fresh output tensors.

Weights are shared by all calls; an arena serves one call at a time and is kept for the next. Executors are not
picklable, and safe to fork only before the first call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaflex.errors import BudgetError, OptionError, StreamError
from adaflex.runtime.bounds import check_bounds
from adaflex.runtime.inputs import check_guards, check_inputs, sizes_of
from adaflex.runtime.kernels import Kernels, Prepared
from adaflex.runtime.layout import Layout, plan_layout, touched
from adaflex.runtime.library import DTYPES, LibraryCall, plain, prepare
from adaflex.runtime.program import LibraryStep, Program, Segment
from adaflex.runtime.region import evaluate
from adaflex.runtime.ring import ring_bytes
from adaflex.runtime.staging import Staging, Turn
from adaflex.runtime.stream import Stream

ALIGNMENT, CPU = 64, torch.device("cpu")


@dataclass(frozen=True, eq=False)
class _Place:
    """What one call at a time works in."""

    arena: Tensor
    calls: Prepared


@dataclass
class _Shape:
    """What is ready for one set of sizes."""

    layout: Layout
    output_shapes: list[tuple[int, ...]]
    values: dict[str, int]
    free: list[Prepared]  # calls that nobody makes now


def _aligned(arena: Tensor) -> int:
    return -(-arena.data_ptr() // ALIGNMENT) * ALIGNMENT


def _memory(size_bytes: int) -> Tensor:
    try:
        return torch.empty(size_bytes, dtype=torch.uint8)
    except RuntimeError as problem:
        raise BudgetError(
            f"the arena of {size_bytes} bytes that these inputs need cannot be allocated; give smaller inputs"
        ) from problem


def _key(given: Any) -> Any:
    """What of an input the layout depends on; of what is no input at all, its type."""
    if isinstance(given, Tensor):
        return given.shape, given.dtype, given.device, given.layout
    return given if isinstance(given, int) else type(given)


def _take(pool: list[Any]) -> Any:
    """An entry out of a pool that other threads take from too; None where it is empty."""
    try:
        return pool.pop()
    except IndexError:
        return None


class Executor:
    """A program that can be called with its inputs, in their order; symbolic ints are given as ints."""

    def __init__(
        self,
        program: Program,
        weights: Tensor,
        kernels: Kernels,
        *,
        threads: int,
        max_concurrency: int = 1,
        stream: Stream | None = None,
    ) -> None:
        self.program, self.weights, self.kernels, self.threads = program, weights, kernels, threads
        if program.blocks and stream is None:
            raise StreamError("this program streams weights from disk, and was given no file that holds them")
        self.staging = Staging(program, stream) if stream is not None and program.blocks else None
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._lock = threading.Lock()
        self.max_concurrency, self._turns = max_concurrency, threading.Semaphore(max_concurrency)
        self._arenas: list[Tensor] = []  # that no call uses now; all sizes share them
        self._constants = self._constant_addresses()
        self._library: dict[int, LibraryCall] = {
            number: prepare(step) for number, step in enumerate(program.steps) if isinstance(step, LibraryStep)
        }
        self._last_use = self._value_lifetimes()
        self._local = [number for number, slot in enumerate(program.slots) if slot.kind == "local"]
        self.poison: int | None = None  # fill arenas with this byte before each call (tests)

    def __reduce__(self) -> Any:
        raise TypeError("an AdaFlex program cannot be pickled; save it with .save(path) and load it with adaflex.load")

    def _constant_addresses(self) -> list[int]:
        start = self.weights.data_ptr()
        addresses = []
        for slot in self.program.slots:
            known = slot.kind == "constant" and self.program.constants[slot.constant].tier == "memory"
            addresses.append(start + self.program.constants[slot.constant].offset if known else 0)
        return addresses

    def _value_lifetimes(self) -> list[list[int]]:
        """Per schedule entry, the value slots that nothing needs after it."""
        last: dict[int, int] = {}
        for place, entry in enumerate(self.program.schedule):
            steps = (
                [entry] if isinstance(entry, int) else [s for p in entry.phases for loop in p.loops for s in loop.steps]
            )
            for step in steps:
                for slot in touched(self.program.steps[step]):
                    if self.program.slots[slot].kind == "value" and slot not in self.program.outputs:
                        last[slot] = place
        ends: list[list[int]] = [[] for _ in self.program.schedule]
        for slot, place in last.items():
            ends[place].append(slot)
        return ends

    def ready(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The inputs where the program runs."""
        return tuple(inputs)

    def wait(self) -> None:
        """Until all calls have ended: here they have when they return."""

    def shape(self, inputs: Sequence[Any]) -> _Shape:
        """The layout and prepared calls for these inputs' sizes."""
        key = tuple(_key(given) for given in inputs)
        found = self._shapes.get(key)
        if found is None:
            with self._lock:
                found = self._shapes.get(key)
                if found is None:
                    found = self._shapes[key] = self._prepare(inputs)
        return found

    def _prepare(self, inputs: Sequence[Any]) -> _Shape:
        values = sizes_of(self.program, inputs)
        check_guards(self.program, values)
        check_bounds(self.program, values)
        check_inputs(self.program, values, inputs, CPU)
        scratch = self.kernels.scratch_bytes(tuple(values.values()))
        layout = plan_layout(self.program, values, self.threads, scratch, getattr(self.kernels, "whole", False))
        shapes = [
            tuple(evaluate(size, values) for size in self.program.slots[slot].shape) for slot in self.program.outputs
        ]
        return _Shape(layout, shapes, values, [])

    def __call__(self, *inputs: Any) -> list[Tensor]:
        """Run once. Raises ``OptionError`` for an input of another shape or dtype."""
        if len(inputs) != len(self.program.inputs):
            raise OptionError(f"{len(inputs)} inputs were given; this program takes {len(self.program.inputs)}")
        shape = self.shape(inputs)
        with self._turns:
            place = self._place(shape)
            try:
                return self._run(shape, place, inputs)
            finally:
                self._leave(shape, place)

    def _place(self, shape: _Shape) -> _Place:
        """Calls of this shape, and an arena that is large enough: a smaller one makes room for it."""
        wanted = shape.layout.arena_bytes + ALIGNMENT
        arena = _take(self._arenas)
        if arena is None or arena.numel() < wanted:
            arena = None  # given back before the larger one is asked for
            arena = _memory(wanted)
        if self.poison is not None:
            arena.fill_(self.poison)
        return _Place(arena, _take(shape.free) or self.kernels.prepare(shape.layout))

    def _leave(self, shape: _Shape, place: _Place) -> None:
        shape.free.append(place.calls)
        self._arenas.append(place.arena)

    def _run(self, shape: _Shape, place: _Place, inputs: Sequence[Any]) -> list[Tensor]:
        addresses, tensors = self._bind(shape, place.arena, inputs)
        if self.staging is None:
            self._walk(shape, place, addresses, tensors)
        else:
            with self.staging.turn(addresses) as turn:
                self._walk(shape, place, addresses, tensors, turn)
        return [tensors[slot] for slot in self.program.outputs]

    def _bind(self, shape: _Shape, arena: Tensor, inputs: Sequence[Any]) -> tuple[list[int], dict[int, Tensor]]:
        """The address of every slot, and the tensors that are inputs or outputs."""
        layout, program = shape.layout, self.program
        start = _aligned(arena)
        addresses = self._constants.copy()
        tensors: dict[int, Tensor] = {}
        for slot, given in zip(program.inputs, inputs, strict=True):
            if slot >= 0:
                tensors[slot] = plain(given)
                addresses[slot] = tensors[slot].data_ptr()
        for slot, dims in zip(program.outputs, shape.output_shapes, strict=True):
            if program.slots[slot].kind == "output":
                tensors[slot] = torch.empty(dims, dtype=DTYPES[program.slots[slot].form])
                addresses[slot] = tensors[slot].data_ptr()
        for number in self._local:
            addresses[number] = start + layout.offsets[number]
        return addresses, tensors

    def _walk(
        self,
        shape: _Shape,
        place: _Place,
        addresses: list[int],
        tensors: dict[int, Tensor],
        turn: Turn | None = None,
    ) -> None:
        segment, arena = 0, place.arena
        thread_arena = _aligned(arena) + shape.layout.shared_bytes
        for number, entry in enumerate(self.program.schedule):
            if turn is not None:
                turn.enter(number)
            if isinstance(entry, Segment):
                place.calls.run(segment, addresses, thread_arena)
                segment += 1
            else:
                call = self._library[entry]
                for slot, value in call(self.program, shape.values, arena, self.weights, addresses, tensors):
                    tensors[slot] = value
                    addresses[slot] = value.data_ptr()
            if turn is not None:
                turn.leave(number)
            for slot in self._last_use[number]:
                tensors.pop(slot, None)

    def time_segments(self, inputs: Sequence[Any]) -> list[int]:
        """Run a program without library steps once; nanoseconds of each segment."""
        assert self.staging is None, "only programs that lie in memory are timed piece by piece"
        shape = self.shape(inputs)
        place = self._place(shape)
        addresses, _ = self._bind(shape, place.arena, inputs)
        thread_arena = _aligned(place.arena) + shape.layout.shared_bytes
        times = []
        for segment in range(len(self.program.schedule)):
            start = time.perf_counter_ns()
            place.calls.run(segment, addresses, thread_arena)
            times.append(time.perf_counter_ns() - start)
        self._leave(shape, place)
        return times

    def memory(self, inputs: Sequence[Any]) -> dict[str, int]:
        """Planned bytes for these sizes: resident weights, arenas, rings, temporaries of library steps, their sum.

        Weights are shared; of the others each of ``max_concurrency`` calls has its own.
        """
        layout, calls = self.shape(inputs).layout, self.max_concurrency
        parts = {
            "weights": self.weights.numel(),
            "arena": calls * layout.arena_bytes,
            "ring": calls * ring_bytes(self.program.blocks),
            "library": calls * layout.library_bytes,
        }
        return {**parts, "total": sum(parts.values())}
