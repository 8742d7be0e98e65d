"""C++ against the evaluator: random regions on odd shapes."""

from __future__ import annotations

import os
import random

import pytest
import torch
from torch import Tensor

from adaflex.codegen.evaluate import Evaluator
from adaflex.native import compiler
from adaflex.runtime.execute import Executor
from adaflex.runtime.program import ITEM_BYTES, Loop, Phase, Program, RowStep, Segment, Slot
from adaflex.runtime.region import REDUCE, Load, Op, Region, Size, Store, plus, times
from tests.codegen.batched import BatchedKernels, build_together, supported

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

REGIONS = int(os.environ.get("FUZZ", "60"))
COLUMNS = (1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 47, 64, 100)
FORMS = ("f32", "f32", "f32", "bf16", "f16", "i64", "i32", "u8", "i8", "bool")
STORED = ("f32", "f32", "bf16", "f16", "bool")
SMOOTH = (
    "neg abs exp tanh erf sigmoid silu gelu gelu_tanh relu sin cos square bf16 sign floor ceil round trunc not".split()
)
PAIRS = "add sub mul min max lt le gt ge eq ne and or".split()


def random_region(rng: random.Random, slots: list[Slot]) -> Region:
    """A region over rows of symbol ``s0`` whose loads fit the slots it appends."""
    columns = rng.choice(COLUMNS)
    middle = rng.choice((0, 0, 2, 3, 5))
    inner = rng.choice((1, 1, 1, 2, 6))
    dims: tuple[Size, ...] = ("s0", middle) if middle else ("s0",)
    loads, ops = [], []
    for number in range(rng.randint(1, 4)):
        loads.append(random_load(rng, slots, dims, columns, inner))
        ops.append(Op("load", (number,)))
    if inner != 1:
        ops.append(Op(rng.choice(("fold_sum", "fold_max", "fold_min")), (0,)))
        allowed = [n for n, load in enumerate(loads) if load.inner == 0] + [len(ops) - 1]
    else:
        allowed = list(range(len(ops)))
    start = len(ops)
    for _ in range(rng.randint(2, 10)):
        ops.append(random_op(rng, allowed, inner == 1))
        allowed.append(len(ops) - 1)
    stores = []
    for value in {len(ops) - 1, rng.choice(allowed[-3:]), rng.choice(range(start, len(ops)))}:
        rows = times("s0", middle or 1)
        form = rng.choice(STORED)
        width = 1 if ops[value].name in REDUCE else columns  # lowering stores what a reduction leaves in one column
        stores.append(Store(value, len(slots)))
        slots.append(Slot("output", form, rows, width, width * ITEM_BYTES[form], (rows, width)))
    return Region(dims, columns, tuple(loads), tuple(ops), tuple(stores), inner)


def random_load(rng: random.Random, slots: list[Slot], dims: tuple[Size, ...], columns: int, inner: int) -> Load:
    """A load with strides of its own over a fresh input: packed, transposed, broadcast or with gaps."""
    form = rng.choice(FORMS)
    axes: list[Size] = [*dims, inner, columns]
    order = list(range(len(axes)))
    if rng.random() < 0.4:
        rng.shuffle(order)
    strides: list[Size] = [0] * len(axes)
    step: Size = rng.choice((1, 1, 1, 2))
    for axis in reversed(order):
        if rng.random() < 0.8:
            strides[axis] = step
            step = times(step, axes[axis])
    offset = rng.choice((0, 0, 3))
    size = plus(step, offset)
    slots.append(Slot("input", form, 1, size, times(size, ITEM_BYTES[form]), (size,)))
    return Load(len(slots) - 1, tuple(strides[:-2]), strides[-1], offset, strides[-2] if inner != 1 else 0)


def random_op(rng: random.Random, allowed: list[int], reductions: bool) -> Op:
    pick = lambda: rng.choice(allowed)  # noqa: E731
    kind = rng.random()
    if kind < 0.35:
        return Op(rng.choice(SMOOTH), (pick(),))
    if kind < 0.7:
        return Op(rng.choice(PAIRS), (pick(), pick()))
    if kind < 0.8:
        return Op("select", (pick(), pick(), pick()))
    if kind < 0.9 and reductions:
        return Op(rng.choice(("sum", "rmax", "rmin")), (pick(),))
    return rng.choice((Op("const", (), round(rng.uniform(-2, 2), 3)), Op("width"), Op("column")))


def random_program(seed: int) -> Program:
    """One row step, its inputs and outputs."""
    rng = random.Random(seed)
    slots: list[Slot] = [Slot("input", "i64", "s0", 1, 8, ("s0", 1))]
    region = random_region(rng, slots)
    rows = times(region.dims[0], region.dims[1] if len(region.dims) > 1 else 1)
    inputs = tuple(n for n, slot in enumerate(slots) if slot.kind == "input")
    return Program(
        symbols=("s0",),
        sources=((0, 0),),
        inputs=inputs,
        input_names=tuple(f"x{n}" for n in inputs),
        outputs=tuple(store.slot for store in region.stores),
        slots=tuple(slots),
        constants=(),
        steps=(RowStep(region),),
        schedule=(Segment(1, (Phase((Loop((0,), rows, 8),)),)),),
    )


def inputs_of(program: Program, rows: int, seed: int) -> list[Tensor]:
    from adaflex.runtime.library import DTYPES
    from adaflex.runtime.region import evaluate

    torch.manual_seed(seed)
    made = []
    for number in program.inputs:
        slot = program.slots[number]
        shape = [evaluate(size, {"s0": rows}) for size in slot.shape]
        whole = torch.randint(0, 3, shape)
        fine = (torch.randn(shape) * 8).round() / 8  # exact in every form: jumps fall on one side everywhere
        made.append((fine if DTYPES[slot.form].is_floating_point else whole).to(DTYPES[slot.form]))
    return made


def near(found: Tensor, expected: Tensor, unit: float) -> bool:
    """Equal up to a few roundings, nan where the other is; values that rounding tore apart may be few."""
    a, b = found.double(), expected.double()
    if not found.is_floating_point():
        return bool((a != b).double().mean() <= 0.02)
    same = torch.where(
        a.isfinite() & b.isfinite(), (a - b).abs() <= unit * (b.abs() + 1), (a == b) | (a.isnan() & b.isnan())
    )
    return bool((~same).double().mean() <= 0.02)


@pytest.mark.parametrize("unit", range(2))
def test_random_regions(unit: int) -> None:
    seeds = range(unit, REGIONS, 2)
    programs = [random_program(seed) for seed in seeds]
    library = build_together(programs, supported())
    found = []
    for number, (seed, program) in enumerate(zip(seeds, programs, strict=True)):
        native = Executor(program, torch.empty(0, dtype=torch.uint8), BatchedKernels(library, 2, number), threads=2)
        meaning = Executor(program, torch.empty(0, dtype=torch.uint8), Evaluator(program), threads=1)
        for rows in (1, 2, 13, 37):
            inputs = inputs_of(program, rows, seed)
            for place, (a, b) in enumerate(zip(native(*inputs), meaning(*inputs), strict=True)):
                unit_of = {"f32": 2e-5, "bf16": 2**-7, "f16": 2**-9}.get(program.slots[program.outputs[place]].form, 0)
                if not near(a, b, unit_of):
                    found.append(f"seed {seed}, {rows} rows, output {place}")
    assert not found, "\n".join(found)
