"""What each encoding of a linear costs in time on this machine, at the rows the model will see.

In: (encoding, K, N, rows) for every distinct linear. Out: nanoseconds and spread for each.

All kernels are built into one unit and run in turn, so that each finds its weights where the model would: pushed out of
the core's own caches by the others, not hot from the run before. Threads own rows, so a kernel is run by one thread on
its share of the rows. The conversion of the activations is part of the price, the cost of entering a segment is not: it
is measured on an empty one, after another that brings the way there into the caches. A round that another process
disturbed is seen by a probe of fixed work and left out.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from adaflex.assembly import Assembled, executor
from adaflex.codegen.draft import form_row_bytes
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.measuring import latency_of
from adaflex.passes.menu import Machine
from adaflex.runtime.program import Constant, GemmStep, Loop, Part, Phase, Program, RowStep, Segment, Slot, Step
from adaflex.runtime.region import Load, Op, Region, Store
from adaflex.solver.table import Encoding

log = logging.getLogger("adaflex.pricing")

PRICES_VERSION = 2  # of kernels and of how they are timed: another one makes kept prices void
ROUNDS = 9
TRIES = 3  # of so many rounds, until all is calm
CALM = 0.25  # a price with a relative spread above this was disturbed
SPOILT = 1e3  # the spread of a price that came out as less than nothing
DISTURBED = 1.3  # a round whose probe took this many times the best probe's time is left out


@dataclass(frozen=True)
class Spec:
    """One kernel to price: a linear [rows, K] x [N, K] in an encoding; or several over the same activations, which are
    converted once for all of them."""

    encoding: Encoding
    k: int
    n: int
    rows: int
    others: tuple[int, ...] = ()  # N of the others


@dataclass(frozen=True)
class Price:
    """Median nanoseconds of one call, and the relative spread between its quartiles."""

    time_ns: int
    spread: float

    @property
    def calm(self) -> bool:
        """Whether nothing disturbed the measurement."""
        return self.spread <= CALM


def price(
    specs: Sequence[Spec], here: Machine, progress: Callable[[int, int], None] | None = None
) -> dict[Spec, Price]:
    """Price every spec, again where something disturbed it; ``progress(done, total)`` is called after each round."""
    if not specs:
        return {}
    if here.device != "cpu":
        return _on_device(specs, here, progress)
    assembled = _bench([_share(spec, here.threads) for spec in specs])
    bench = executor(assembled, replace(here, threads=1))
    inputs = [torch.randn(*_input_shape(assembled.program, slot)) for slot in assembled.program.inputs]
    bench.time_segments(inputs)  # loads pages and code
    found: list[Price] = []
    for _ in range(TRIES):
        again = _timed(lambda: bench.time_segments(inputs), progress)
        found = [min(pair, key=lambda each: each.spread) for pair in zip(found or again, again, strict=True)]
        if all(each.calm for each in found):
            break
    return dict(zip(specs, found, strict=True))


def _timed(segments: Callable[[], Sequence[int]], progress: Callable[[int, int], None] | None) -> list[Price]:
    """The prices of the segments after the first two, which are empty, from the rounds that nobody disturbed."""
    rounds: list[tuple[Sequence[int], int]] = []
    for number in range(ROUNDS):
        rounds.append((segments(), _probe()))
        if progress is not None:
            progress(number + 1, ROUNDS)
    best = min(probe for _, probe in rounds)
    calm = [taken for taken, probe in rounds if probe <= DISTURBED * best]
    entering = min(taken[1] for taken, _ in rounds)  # one undisturbed entry is enough
    return [_summary([taken - entering for taken in own]) for own in zip(*(own for _, _, *own in calm), strict=True)]


def _on_device(specs: Sequence[Spec], here: Machine, progress: Callable[[int, int], None] | None) -> dict[Spec, Price]:
    """Each kernel as a program of its own, less what an empty one takes: launching is part of neither."""
    made = {}
    for place, wanted in enumerate([None, *specs]):
        assembled = _bench([wanted] if wanted is not None else [])
        inputs = [torch.randn(*_input_shape(assembled.program, slot)) for slot in assembled.program.inputs]
        taken, spread = latency_of(executor(assembled, here), tuple(inputs))
        made[wanted] = Price(taken, spread)
        if progress is not None:
            progress(place, len(specs))
    empty = made[None].time_ns
    return {spec: replace(made[spec], time_ns=max(made[spec].time_ns - empty, 1)) for spec in specs}


def _share(spec: Spec, threads: int) -> Spec:
    """The rows one thread gets: whole tiles of 8 where there are enough."""
    rows = -(-spec.rows // threads)
    return replace(spec, rows=-(-rows // 8) * 8 if spec.rows >= 8 * threads else rows)


def _summary(samples: Sequence[float]) -> Price:
    middle = statistics.median(samples)
    ordered = sorted(samples)
    low, high = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    return Price(max(int(middle), 1), (high - low) / middle if middle > 0 else SPOILT)


def _probe() -> int:
    """Nanoseconds of fixed scalar work: longer when somebody else has the core."""
    start = time.perf_counter_ns()
    total = 0
    for number in range(20_000):
        total += number
    return time.perf_counter_ns() - start


def _input_shape(program: Program, slot: int) -> tuple[int, ...]:
    shape = program.slots[slot].shape
    return tuple(int(size) for size in shape if isinstance(size, int))


def _bench(specs: Sequence[Spec]) -> Assembled:
    """One program: an input for each (rows, K), two empty segments, and one for each spec."""
    build = _Bench()
    build.add_empty()
    build.add_empty()
    for spec in specs:
        build.add(spec)
    return build.finish()


class _Bench:
    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.steps: list[Step] = []
        self.schedule: list[Segment | int] = []
        self.inputs: dict[tuple[int, int], int] = {}
        self.constants: list[Constant] = []
        self.blocks: list[torch.Tensor] = []
        self.offset = 0

    def slot(self, slot: Slot) -> int:
        self.slots.append(slot)
        return len(self.slots) - 1

    def add_empty(self) -> None:
        """A segment whose work is next to nothing: what entering one costs."""
        out = self.slot(Slot("local", "f32", 1, 1, 4, (1, 1), window="group"))
        step = self._step(RowStep(Region((1,), 1, (), (Op("const"),), (Store(0, out),))))
        self.schedule.append(Segment(1, (Phase((Loop((step,), 1, 8),)),)))

    def add(self, spec: Spec) -> None:
        """The segment of one spec."""
        source = self._input(spec)
        form = kernel(MENU, spec.encoding.family).form(spec.encoding)
        steps, a = [], source
        if form != "f32":
            a = self.slot(Slot("local", form, spec.rows, spec.k, form_row_bytes(form, spec.k, 4), window="block"))
            load = Load(source, (spec.k,), 1)
            region = Region((spec.rows,), spec.k, (load,), (Op("load", (0,)),), (Store(0, a),))
            steps.append(self._step(RowStep(region)))
        steps += [self._product(a, replace(spec, n=n)) for n in (spec.n, *spec.others)]
        self.schedule.append(Segment(1, (Phase((Loop(tuple(steps), spec.rows, 64),)),)))

    def _product(self, a: int, spec: Spec) -> int:
        """The step of one linear over activations that are there."""
        out = self.slot(Slot("local", "bf16", spec.rows, spec.n, spec.n * 2, (spec.rows, spec.n), window="group"))
        call = kernel(MENU, spec.encoding.family).call(spec.encoding, spec.k, spec.n)
        parts = tuple(Part(name, offset) for name, offset in call.parts)
        epilogue = Region((spec.rows,), spec.n, (), (Op("acc"),), (Store(0, out),))
        weight = self._weight(spec)
        return self._step(GemmStep(a, weight, call.header, call.function, parts, spec.k, spec.n, epilogue))

    def _step(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def _input(self, spec: Spec) -> int:
        key = (spec.rows, spec.k)
        if key not in self.inputs:
            self.inputs[key] = self.slot(Slot("input", "f32", spec.rows, spec.k, spec.k * 4, key))
        return self.inputs[key]

    def _weight(self, spec: Spec) -> int:
        family = kernel(MENU, spec.encoding.family)
        values = torch.randn(spec.n, spec.k, generator=torch.Generator().manual_seed(0))
        block = family.pack(family.encode(values, spec.encoding, None)).reshape(-1)
        size = block.numel()
        self.constants.append(Constant("", self.offset, size, spec.encoding.label(), (spec.n, spec.k)))
        self.blocks.append(block)
        self.blocks.append(block.new_zeros(-size % 64))
        self.offset += size + (-size % 64)
        return self.slot(Slot("constant", "u8", 1, size, size, constant=len(self.constants) - 1))

    def finish(self) -> Assembled:
        """The program and its bytes."""
        program = Program(
            symbols=(),
            sources=(),
            inputs=tuple(self.inputs.values()),
            input_names=tuple(f"x{place}" for place in range(len(self.inputs))),
            outputs=(),
            slots=tuple(self.slots),
            constants=tuple(self.constants),
            steps=tuple(self.steps),
            schedule=tuple(self.schedule),
        )
        joined = torch.cat([*self.blocks, torch.zeros(64, dtype=torch.uint8)])
        block = torch.zeros(joined.numel() + 64, dtype=torch.uint8)
        skip = -block.data_ptr() % 64
        block[skip : skip + joined.numel()] = joined
        return Assembled(program, block[skip : skip + joined.numel()])
