"""Programs of windows that slide over images, made to leave their memory: refused, or run between red zones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adaflex.codegen.cpp import render
from adaflex.codegen.evaluate import Evaluator
from adaflex.errors import AdaflexError, ArtifactError
from adaflex.native import compiler
from adaflex.runtime import artifact, artifact_file
from adaflex.runtime import layout as layouts
from adaflex.runtime.execute import Executor
from adaflex.runtime.kernels import Kernels
from adaflex.runtime.program import Constant, Loop, Operand, Phase, Program, RowStep, Segment, Slot, WindowStep
from adaflex.runtime.program_json import to_plain
from adaflex.runtime.region import Load, Op, Region, Store
from tests.codegen.batched import BatchedKernels, build_together, supported
from tests.fault.test_hostile_program import Change, apart, at, both, checked, fenced, numbers, red_zones
from tests.runtime import sample

WEIGHT_BYTES = 384  # four taps of 18 channels, and the gap behind them
COMPILED = 24
WORDS: tuple[Any, ...] = (
    0,
    1,
    2,
    3,
    4,
    5,
    18,
    72,
    288,
    -1,
    -8,
    1 << 19,
    1 << 47,
    "s0",
    ["+", "s0", -1],
    ["*", "s0", 72],
)


def program() -> Program:
    """Patches of images [s0, 4, 4, 2] block by block, each doubled; their weighted sums over windows of 2 times 2."""
    b, lines = "s0", ("*", "s0", 16)
    slots = (
        Slot("input", "f32", lines, 2, 8, (b, 4, 4, 2)),
        Slot("local", "f32", lines, 18, 72, (b, 4, 4, 18), window="block"),
        Slot("local", "f32", lines, 18, 72, (b, 4, 4, 18), window="group"),
        Slot("constant", "f32", 4, 18, 72, (4, 18), constant=0),
        Slot("output", "f32", ("*", "s0", 4), 18, 72, (b, 2, 2, 18)),
    )
    double = Region((lines,), 18, (Load(1, (18,), 1),), (Op("load", (0,)), Op("add", (0, 0))), (Store(1, 2),))
    one, two, none, around = (1, 1), (2, 2), (0, 0, 0, 0), (1, 1, 1, 1)
    steps = (
        WindowStep("patches", Operand(0, (32, 8, 2, 1)), -1, 1, b, 4, 4, 2, (3, 3), one, around, one),
        RowStep(double),
        WindowStep("depthwise", Operand(2, (288, 72, 18, 1)), 3, 4, b, 4, 4, 18, two, two, none, one),
    )
    phases = (Phase((Loop((0, 1), lines, 8),)), Phase((Loop((2,), ("*", "s0", 4), 8),)))
    return Program(
        symbols=(b,),
        sources=((0, 0),),
        inputs=(0,),
        input_names=("x",),
        outputs=(4,),
        slots=slots,
        constants=(Constant("weight", 0, 288, "f32", (4, 18)),),
        steps=steps,
        schedule=(Segment(b, phases),),
        ranges=((1, 64),),
        hints=(4,),
    )


def weights() -> Tensor:
    made = torch.zeros(WEIGHT_BYTES, dtype=torch.uint8)
    made[:288] = torch.linspace(-1, 1, 72).view(torch.uint8)
    return made


FIRST, LAST = "steps.0", "steps.2"
ATTACKS: dict[str, tuple[Change, str]] = {
    "more lines than the image": (
        both(at(f"{FIRST}.height", 5), at(f"{FIRST}.padding", [0, 1, 0, 1]), at(f"{FIRST}.kernel", [2, 3])),
        "columns",
    ),
    "lines beyond the image": (
        both(at(f"{FIRST}.height", 6), at(f"{FIRST}.padding", [0, 1, 0, 1])),
        "reaches elements",
    ),
    "columns beyond the image": (
        both(at(f"{FIRST}.width", 6), at(f"{FIRST}.padding", [1, 0, 1, 0])),
        "reaches elements",
    ),
    "more images": (at(f"{FIRST}.batch", ["+", "s0", 1]), "rows in a loop over"),
    "more channels": (at(f"{FIRST}.channels", 3), "writes 27 columns"),
    "more taps": (both(at(f"{FIRST}.kernel", [3, 5]), at(f"{FIRST}.padding", [1, 2, 1, 2])), "writes 30 columns"),
    "fewer windows": (at(f"{FIRST}.stride", [2, 1]), "rows in a loop over"),
    "more windows": (at(f"{FIRST}.padding", [1, 2, 1, 2]), "rows in a loop over"),
    "windows larger than the image": (at(f"{FIRST}.dilation", [1, 3]), "larger than its image"),
    "no image": (both(at(f"{FIRST}.height", 0), at(f"{FIRST}.padding", [3, 1, 3, 1])), "larger than its image"),
    "kernel of nothing": (at(f"{FIRST}.kernel", [0, 3]), r"kernel\[0\] is 0"),
    "stride of nothing": (at(f"{FIRST}.stride", [1, 0]), r"stride\[1\] is 0"),
    "negative padding": (at(f"{FIRST}.padding", [-1, 1, 0, 1]), r"padding\[0\] is -1"),
    "kernel of one number": (at(f"{FIRST}.kernel", [3]), "a list of 2"),
    "windows without end": (at(f"{FIRST}.kernel", [1 << 10, 1 << 10]), "windows of 1048576 taps"),
    "unknown kind": (at(f"{FIRST}.kind", "median"), "one of depthwise"),
    "stride of lines": (at(f"{FIRST}.x.strides.1", 16), "reaches elements"),
    "negative stride": (at(f"{FIRST}.x.strides.2", -2), "reaches elements -"),
    "huge stride": (at(f"{FIRST}.x.strides.3", 1 << 47), "reaches elements"),
    "offset": (at(f"{FIRST}.x.offset", 1), "reaches elements"),
    "three axes": (at(f"{FIRST}.x.strides", [32, 8, 1]), "four axes"),
    "image of another group": (both(at(f"{LAST}.x.strides.0", 0), at(f"{LAST}.x.offset", 288)), "beyond the group"),
    "images in reverse": (
        both(at(f"{LAST}.x.strides.0", -288), at(f"{LAST}.x.offset", ["*", ["+", "s0", -1], 288])),
        "beyond the group",
    ),
    "images of a block": (at("slots.2.window", "block"), "keeps only a block"),
    "wider rows than columns": (both(at("slots.1.row_bytes", 76), at("slots.1.shape", [])), "writes 18 columns"),
    "result of fewer columns": (at("slots.4.columns", 17), "writes 18 columns"),
    "result in 16 bits": (both(at("slots.1.form", "bf16")), "holds 'bf16'"),
    "result to the input": (at(f"{FIRST}.out", 0), "of kind 'input'"),
    "result to the weight": (at(f"{LAST}.out", 3), "of kind 'constant'"),
    "weights of the caller": (at(f"{LAST}.weight", 0), "is no constant"),
    "no weights": (at(f"{LAST}.weight", -1), "names slot -1"),
    "weights of a maximum": (at(f"{LAST}.kind", "max"), "names slot 3"),
    "weights of fewer taps": (
        both(at("slots.3.rows", 3), at("slots.3.shape", [3, 18])),
        "by a constant of 216 bytes",
    ),
    "weights of more channels": (at(f"{LAST}.channels", 19), "by a constant of 288 bytes"),
    "slot that is not there": (at(f"{LAST}.x.slot", 9), "is number 9 of 5"),
    "size that is not declared": (at(f"{LAST}.height", "s9"), "does not declare"),
    "images before they are made": (at(f"{FIRST}.x", {"slot": 2, "strides": [288, 72, 18, 1]}), "nothing before it"),
}


def test_the_program_that_is_attacked_is_sound() -> None:
    for size in (1, 4, 1000):
        checked(to_plain(program()), {"s0": size}, WEIGHT_BYTES)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_would_leave_its_memory_is_refused(name: str) -> None:
    change, words = ATTACKS[name]
    plain = to_plain(program())
    change(plain)
    with pytest.raises(ArtifactError, match=words) as caught:
        checked(plain, {"s0": 4}, WEIGHT_BYTES)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


PATHS = [path for path in numbers(to_plain(program())) if path[0] in ("slots", "steps", "schedule")]


def mutated(rng: random.Random, most: int) -> Program | None:
    """The program with some of its entries replaced, unless it is refused."""
    plain = to_plain(program())
    for _ in range(rng.randint(1, most)):
        at(".".join(map(str, rng.choice(PATHS))), rng.choice(WORDS))(plain)
    try:
        return checked(plain, {"s0": 4}, WEIGHT_BYTES)
    except ArtifactError:
        return None


def stays_inside(changed: Program, kernels: Kernels, size: int) -> bool:
    """Does a run leave the red zones around every tensor as they were? False where the call was refused."""
    x, around = fenced((size, 4, 4, 2))
    before, given = around.clone(), weights()
    run = Executor(changed, given, kernels, threads=2)
    run.poison = 0xA5
    try:
        run(x)
    except AdaflexError:
        return False
    assert torch.equal(around, before) and torch.equal(given, weights())
    assert not red_zones(run, run._arenas[0])
    return True


def survivors(seed: int, count: int, most: int) -> Sequence[Program]:
    """Mutants that are not refused, no two alike."""
    rng = random.Random(seed)
    found: dict[str, Program] = {}
    while len(found) < count:
        changed = mutated(rng, most)
        if changed is not None:
            found.setdefault(repr(changed), changed)
    return list(found.values())


def test_mutants_that_are_not_refused_stay_inside_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where any access outside of a slot is an error of another kind than a refusal."""
    monkeypatch.setattr(layouts, "_pack", apart)
    ran = [stays_inside(changed, Evaluator(changed), size) for changed in survivors(1, 60, 3) for size in (1, 4, 9)]
    assert sum(ran) >= 60


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_mutants_that_are_not_refused_stay_inside_in_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_pack", apart)
    found = list({render(changed): changed for changed in survivors(2, 2 * COMPILED, 3)}.values())[:COMPILED]
    library = build_together(found, supported(), name="hostile-windows")
    ran = 0
    for number, changed in enumerate(found):
        kernels = BatchedKernels(library, 2, number)
        ran += sum(stays_inside(changed, kernels, size) for size in (1, 4, 16, 33))
    assert ran >= COMPILED


def test_a_file_says_that_windows_are_inside(tmp_path: Path) -> None:
    """Older readers refuse it by its version, and a file whose version is another's is refused as well."""
    path = tmp_path / "windows.afx"
    artifact.write(path, program(), weights(), {})
    raw = path.read_bytes()
    assert artifact_file.PREAMBLE.unpack(raw[:64])[1] == 5
    assert artifact.read(path, sample.LIBRARY).program.steps == program().steps
    header = sample.header(raw)
    for version in (3, 4):
        header["format"] = version
        path.write_bytes(sample.signed(raw, artifact.dumps(header, "x"), version))
        with pytest.raises(ArtifactError, match=r"holds another|entries"):
            artifact.read(path, sample.LIBRARY)
