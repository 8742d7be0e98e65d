"""Well-formed programs that would leave their memory: refused, or run without touching a byte around it.

The writer of these files knows the format and signs what he changes. What is run runs in C++ on slots that lie apart,
red zones between them, every tensor of the caller in a buffer with red zones of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaflex.codegen.cpp import render
from adaflex.codegen.evaluate import Evaluator
from adaflex.errors import AdaflexError, ArtifactError
from adaflex.native import compiler
from adaflex.runtime import layout as layouts
from adaflex.runtime.arena import Packing, Piece
from adaflex.runtime.artifact_check import check_program
from adaflex.runtime.bounds import check_bounds
from adaflex.runtime.execute import Executor
from adaflex.runtime.kernels import Kernels
from adaflex.runtime.program import Program
from adaflex.runtime.program_json import from_plain, to_plain
from tests.codegen.batched import BatchedKernels, build_together, supported
from tests.runtime import sample

STEP, SLOT, LOOP = "steps", "slots", "schedule.0.phases.0.loops"
Change = Callable[[Any], None]


def at(key: str, value: Any) -> Change:
    """The program with another value at "a.0.b"."""

    def apply(program: Any) -> None:
        *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        owner = program
        for part in path:
            owner = owner[part]
        owner[last] = value

    return apply


def both(*changes: Change) -> Change:
    def apply(program: Any) -> None:
        for change in changes:
            change(program)

    return apply


def load(**changed: Any) -> dict[str, Any]:
    return {"slot": 2, "strides": [8], "column": 1, **changed}


def first_load(**changed: Any) -> Change:
    return at(f"{STEP}.2.region.loads.0", load(**changed))


def gather(**changed: Any) -> Change:
    """The bias picked by row numbers that lie in the slot of the input."""
    loads = [{"slot": 0, "strides": [8], "column": 0}, {"slot": 4, "strides": [0], "column": 1, "gather": 0} | changed]
    return at(f"{STEP}.2.region.loads", [*loads, load(slot=3)])


ATTACKS: dict[str, tuple[Change, str]] = {
    "stride beyond the slot": (first_load(strides=[9]), "reaches elements"),
    "huge stride": (first_load(strides=[1 << 47]), "reaches elements"),
    "stride that overflows": (first_load(strides=[["*", 1 << 40, 1 << 40]]), "would be"),
    "negative stride": (first_load(strides=[-8]), "reaches elements -"),
    "negative offset": (first_load(offset=-1), "reaches elements -1"),
    "offset by size": (first_load(offset=["*", "s0", 8]), "reaches elements"),
    "column stride": (first_load(column=2), "reaches elements"),
    "wider form": (at(f"{STEP}.2.region.loads.0", load(form="i64")), "reaches elements"),
    "row of another group": (first_load(strides=[0], offset=8), "beyond the group"),
    "rows in reverse": (first_load(strides=[-8], offset=["*", ["+", "s0", -1], 8]), "beyond the group"),
    "pitch beyond the table": (gather(pitch=8, choices=2), "reaches elements 0 to 15"),
    "more choices than rows": (gather(pitch=8, choices=["*", "s0", 4]), "reaches elements"),
    "negative pitch": (gather(pitch=-8, choices=3), "reaches elements -16"),
    "row numbers outside": (
        at(f"{STEP}.2.region.loads", [{"slot": 0, "strides": [99], "column": 0}, load(), load(slot=3)]),
        "reaches elements",
    ),
    "more columns than the slot": (at(f"{STEP}.2.region.columns", 9), "columns"),
    "more rows than the slot": (at(f"{STEP}.2.region.dims", [["+", "s0", 1]]), "rows in a loop over"),
    "loop of more rows": (at(f"{LOOP}.2.rows", ["*", "s0", 2]), "rows in a loop over"),
    "groups that do not divide": (at("schedule.0.groups", ["+", "s0", 1]), "is shared by"),
    "product of more columns": (both(at(f"{STEP}.0.n", 32), at(f"{STEP}.0.region.columns", 32)), "columns"),
    "product of a deeper weight": (at(f"{STEP}.0.k", 9), "are read"),
    "product of rows too short": (at(f"{STEP}.0.k", 1 << 40), "are read"),
    "another kernel's weight": (at(f"{STEP}.0.function", "gemm_w8a8"), "its kernel reads 'u8t'"),
    "kernel that does not exist": (at(f"{STEP}.0.function", "gemm_w2"), "which this AdaFlex lacks"),
    "keys beyond the slot": (at(f"{STEP}.1.keys", 2), "reaches elements|beyond the group"),
    "keys without end": (both(at(f"{STEP}.1.keys", 1 << 45), at(f"{STEP}.1.k.strides", [8, 8, 0, 1])), "would pack"),
    "no heads of keys": (at(f"{STEP}.1.kv_heads", 0), "shares 0 heads"),
    "heads that do not divide": (at(f"{STEP}.1.kv_heads", 3), "shares 3 heads"),
    "output stride": (at(f"{STEP}.1.out.strides", [80, 8, 8, 1]), "reaches elements"),
    "division by zero": (at(f"{SLOT}.2.rows", ["//", "s0", ["+", "s0", -4]]), "is divided by 0"),
    "negative rows": (at(f"{SLOT}.3.rows", ["+", "s0", -9]), "would be -5"),
    "huge slot": (at(f"{SLOT}.3.rows", 1 << 47), "would have"),
    "row beyond its bytes": (at(f"{SLOT}.2.row_bytes", 16), "does not fit"),
    "input larger than its tensor": (at(f"{SLOT}.0.row_bytes", 64), "does not fit the tensor"),
    "value larger than its tensor": (at(f"{SLOT}.5.rows", ["*", "s0", 2]), "does not fit the tensor"),
    "window used in two places": (at(f"{SLOT}.2.window", "block"), "keeps only a block"),
    "step before its input": (
        at("schedule.0.phases.0.loops", [{"steps": [n], "rows": "s0", "block": 8 * (n != 1)} for n in (2, 1, 0)]),
        "which nothing before it has written",
    ),
    "library step first": (lambda p: p["schedule"].reverse(), "which nothing before it has written"),
    "steps in a ring": (
        both(at(f"{STEP}.0.a", 3), at(f"{SLOT}.3.form", "f32")),
        "which nothing before it has written",
    ),
    "output that nobody writes": (at(f"{STEP}.3.outputs", [5, -1]), "no step writes to it"),
    "input that nobody gives": (both(at("inputs", [-1]), at("sources", [[-1, -1]])), "nothing before it has written"),
    "view beyond its slot": (
        at(f"{STEP}.3.args.0", {"kind": "slot", "slot": 3, "view": {"slot": 3, "strides": [9, 1]}, "shape": ["s0", 8]}),
        "reaches element",
    ),
    "view of another slot": (
        at(f"{STEP}.3.args.0", {"kind": "slot", "slot": 3, "view": {"slot": 0, "strides": [8, 1]}, "shape": ["s0", 8]}),
        "of another slot",
    ),
    "quantised rows that groups do not divide": (at(f"{SLOT}.3.form", "u8g64"), "holds 'u8g64'|does not divide"),
    "store of a dtype without code": (at(f"{SLOT}.3.form", "f64"), "which holds 'f64'"),
}  # fmt: skip


def checked(plain: Any, values: Mapping[str, int], weight_bytes: int = 1152) -> Program:
    """The program, as ``artifact.read`` and the executor check it."""
    program = from_plain(plain)
    check_program(program, weight_bytes, sample.LIBRARY)
    check_bounds(program, values)
    return program


def test_the_program_that_is_attacked_is_sound() -> None:
    for size in (1, 4, 1000):
        checked(to_plain(sample.program()), {"s0": size})


@pytest.mark.parametrize("name", ATTACKS)
def test_what_would_leave_its_memory_is_refused(name: str) -> None:
    change, words = ATTACKS[name]
    plain = to_plain(sample.program())
    change(plain)
    with pytest.raises(ArtifactError, match=words) as caught:
        checked(plain, {"s0": 4})
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_sizes_are_checked_at_every_shape() -> None:
    """A table that holds the rows of the shape at capture, and not those of a larger one."""
    program = sample.program()
    slots = (*program.slots[:3], replace(program.slots[3], rows=4, shape=(4, 8)), *program.slots[4:])
    run = Executor(replace(program, slots=slots), sample.weights(), Evaluator(program), threads=1)
    with pytest.raises(ArtifactError, match="slot 3, which has 32"):
        run(torch.zeros(5, 8))


# ---- what is not refused stays between its red zones ----
GAP, RED, COMPILED = 4096, 0xA5, 24
WORDS: tuple[Any, ...] = (
    0,
    1,
    2,
    7,
    8,
    9,
    64,
    -1,
    -8,
    1 << 31,
    1 << 47,
    "s0",
    ["+", "s0", -1],
    ["*", "s0", 8],
    ["*", "s0", 9],
)


def apart(pieces: list[tuple[int, Piece]]) -> Packing:
    """A packing in which nothing shares memory and red zones lie between."""
    offsets, top = [], GAP
    for _, piece in pieces:
        offsets.append(top)
        top += -(-piece.size_bytes // 64) * 64 + GAP
    return Packing(tuple(offsets), top)


def fenced(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A tensor of the caller, and the buffer around it."""
    size = 4 * int(torch.tensor(shape).prod())
    whole = torch.full((size + 2 * GAP,), RED, dtype=torch.uint8)
    middle = whole[GAP : GAP + size].view(torch.float32).view(shape)
    middle.copy_(torch.linspace(-1, 1, middle.numel()).view(shape))
    return middle, whole


def numbers(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all sizes, slots and counts of a plain program."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, part in inner for found in numbers(part, (*path, key))]
    return [path] if isinstance(value, int | str) and not isinstance(value, bool) else []


PATHS = [path for path in numbers(to_plain(sample.program())) if path[0] in ("slots", "steps", "schedule")]


def red_zones(run: Executor, memory: Tensor) -> list[int]:
    """Bytes outside of all pieces that are no longer what they were."""
    (shape,) = run._shapes.values()
    skip = -memory.data_ptr() % 64
    free = torch.ones(len(memory), dtype=torch.bool)
    starts = [(0, shape.layout.shared_pieces)] + [
        (shape.layout.shared_bytes + t * shape.layout.thread_bytes, shape.layout.thread_pieces) for t in range(2)
    ]
    for base, pieces in starts:
        for slot, piece in pieces:
            begin = skip + base + shape.layout.offsets[slot]
            free[begin : begin + piece.size_bytes - layouts.GUARD_BYTES] = False
    for thread in range(2):
        begin = skip + shape.layout.shared_bytes + thread * shape.layout.thread_bytes + shape.layout.scratch_offset
        free[begin : skip + shape.layout.shared_bytes + (thread + 1) * shape.layout.thread_bytes] = False
    return torch.nonzero(free & (memory != RED)).flatten().tolist()


def mutated(changes: Sequence[tuple[tuple[Any, ...], Any]], size: int) -> Program | None:
    """The sample with some of its entries replaced, unless it is refused."""
    plain = to_plain(sample.program())
    for path, value in changes:
        at(".".join(map(str, path)), value)(plain)
    try:
        return checked(plain, {"s0": size})
    except ArtifactError:
        return None


def stays_inside(program: Program, kernels: Kernels, size: int) -> bool:
    """Does a run leave the red zones around every tensor as they were? False where the call was refused."""
    x, around = fenced((size, 8))
    before, weights = around.clone(), sample.weights()
    run = Executor(program, weights, kernels, threads=2)
    run.poison = RED
    try:
        run(x)
    except AdaflexError:
        return False
    assert torch.equal(around, before) and torch.equal(weights, sample.weights())
    assert not red_zones(run, run._arenas[0])
    return True


CHANGES = st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(WORDS)), min_size=1, max_size=3)


@given(changes=CHANGES, size=st.sampled_from([1, 4, 16]))
@settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_programs_are_refused_or_stay_inside(
    changes: list[tuple[tuple[Any, ...], Any]], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In numpy, where any access outside of a slot is an error of another kind than a refusal."""
    monkeypatch.setattr(layouts, "_pack", apart)
    program = mutated(changes, size)
    if program is not None:
        stays_inside(program, Evaluator(program), size)


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_mutated_programs_that_are_not_refused_stay_inside_in_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_pack", apart)
    rng, found = random.Random(3), {}
    while len(found) < COMPILED:
        changes = [(rng.choice(PATHS), rng.choice(WORDS)) for _ in range(rng.randint(1, 2))]
        program = mutated(changes, 16)
        if program is not None:
            found.setdefault(render(program), program)
    library = build_together(list(found.values()), supported(), name="hostile")
    ran = 0
    for number, program in enumerate(found.values()):
        kernels = BatchedKernels(library, 2, number)
        ran += sum(stays_inside(program, kernels, size) for size in (1, 4, 16, 33))
    assert ran >= COMPILED
