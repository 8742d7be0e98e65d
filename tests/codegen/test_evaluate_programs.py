"""Programs of whole models through the evaluator: what eager torch computes, without a compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adaflex.codegen.evaluate import Evaluator
from adaflex.errors import OptionError
from adaflex.handle import kernel_library
from adaflex.passes.export_door import from_export
from adaflex.runtime import artifact
from adaflex.runtime.execute import Executor
from adaflex.solver.table import Encoding
from tests.codegen.lowered import Pick, fp32, program_of
from tests.passes.models import zoo

ZOO = zoo()
LIBRARY_ONLY = ("mixtral", "lstm")  # hardly a native step, and slow: left to C++ tests
NAMES = [name for name in ZOO if name not in LIBRARY_ONLY]


def run_of(name: str, pick: Pick, threads: int = 1) -> tuple[Executor, list[Tensor], list[Tensor]]:
    """The executor, its outputs and those of the captured graph."""
    entry = ZOO[name]
    inputs = entry.inputs()
    capture, weights = from_export(entry.model(), inputs)
    program, block = program_of(capture, weights, pick)
    run = Executor(program, block, Evaluator(program), threads=threads)
    run.poison = 0xFF
    expected = [value for value in capture.run(weights, inputs) if isinstance(value, Tensor)]
    return run, run(*inputs), expected


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", NAMES)
def test_models_without_loss(name: str) -> None:
    _, got, expected = run_of(name, fp32, threads=3)
    assert [tuple(t.shape) for t in got] == [tuple(t.shape) for t in expected]
    assert all(distance(a, b) < 2e-6 for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", ["bert", "llama", "spellings"])
@pytest.mark.parametrize(
    ("encoding", "limit"), [(Encoding("bf16", 16), 2e-2), (Encoding("w8a8", 8), 4e-2)], ids=["bf16", "w8a8"]
)
def test_models_with_loss_stay_near(name: str, encoding: Encoding, limit: float) -> None:
    _, got, expected = run_of(name, lambda shape: encoding)
    assert 1e-6 < distance(got[0], expected[0]) < limit


def test_it_has_no_windows_and_no_threads() -> None:
    run, _, _ = run_of("bert", fp32, threads=4)
    (shape,) = run._shapes.values()
    assert all(window == 0 for windows in shape.layout.windows for window in windows)
    assert shape.layout.thread_bytes == 0


def test_an_index_beyond_the_table_is_an_error_of_the_caller() -> None:
    run, _, _ = run_of("bert", fp32)
    ids, mask = ZOO["bert"].inputs()
    for wrong in (99, -1):
        bad = ids.clone()
        bad[0, 0] = wrong
        with pytest.raises(OptionError, match="table lacks"):
            run(bad, mask)


def test_the_same_call_gives_the_same_bits() -> None:
    run, first, _ = run_of("llama", fp32)
    assert all(torch.equal(a, b) for a, b in zip(first, run(*ZOO["llama"].inputs()), strict=True))


@pytest.mark.parametrize("name", ["bert", "llama", "vit", "transformer"])
def test_a_saved_program_runs_from_its_mapped_weights_to_the_same_bits(name: str, tmp_path: Path) -> None:
    run, first, _ = run_of(name, lambda shape: Encoding("w8a8", 8))
    artifact.write(tmp_path / "m", run.program, run.weights, {"plan": None})
    loaded = artifact.read(tmp_path / "m", kernel_library())
    assert loaded.program == run.program
    again = Executor(loaded.program, loaded.weights, Evaluator(loaded.program), threads=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again(*ZOO[name].inputs()), strict=True))
