"""Whole models: captured, lowered, rendered, built, executed; held against the original and a float64 run."""

from __future__ import annotations

import copy
import functools
import threading
from typing import Any

import pytest
import torch
from torch import nn

from adaflex.assembly import assemble, executor
from adaflex.codegen.cpp import row_scratch
from adaflex.codegen.kernels.menu import MENU
from adaflex.machine import NEEDS, cpu
from adaflex.native import compiler
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.decision import Decision
from adaflex.passes.export_door import from_export
from adaflex.passes.menu import Encoded, Machine, family
from adaflex.passes.sites import Sites, find_sites
from adaflex.runtime.execute import Executor
from adaflex.runtime.kernels import NativeKernels
from adaflex.solver.table import Encoding
from tests.passes.models import zoo

ZOO = zoo()
pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
HERE = next(isa for isa, needs in NEEDS.items() if needs <= cpu()[1])


def program_of(
    capture: Capture, weights: Weights, wanted: str, *, threads: int = 1, isa: str = HERE
) -> tuple[Executor, Sites]:
    """The program in which every site takes the first offer of family ``wanted`` (or keeps what it has)."""
    here = Machine(isa, threads)
    sites = find_sites(capture, weights, MENU, here)
    chosen: dict[str, Encoding] = {}
    for site in sites.sites:
        offers = [encoding for encoding in sites.offers[site.id] if encoding.family == wanted]
        chosen[site.id] = offers[0] if offers else sites.keep[site.id]

    def provide(site: str, encoding: Encoding) -> Encoded:
        return family(MENU, encoding.family).encode(sites.weight(weights, site).detach().float(), encoding, None)

    runs = executor(assemble(capture, weights, sites, Decision(chosen), provide), here)
    runs.poison = 0xFF
    return runs, sites


@functools.cache
def captured(name: str, *, any_size: bool = False) -> tuple[Capture, Weights]:
    """A model of the zoo through the export door; whoever gets it leaves it as it is."""
    entry = ZOO[name]
    return from_export(entry.model(), entry.inputs(), dynamic_shapes=entry.dynamic_shapes() if any_size else None)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


def exact(model: nn.Module, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    """The model's outputs in float64."""
    wide = copy.deepcopy(model).double()
    given = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        return [out for out in torch.utils._pytree.tree_leaves(wide(*given)) if isinstance(out, torch.Tensor)]


def longest(model: nn.Module) -> int:
    """The longest reduction: the widest weight."""
    return max((p[0].numel() for p in model.parameters() if p.dim() > 1), default=1)


def assert_lossless(model: nn.Module, inputs: tuple[Any, ...], found: list[torch.Tensor], eager: list[Any]) -> None:
    """Distance to float64 at most twice eager's own, or what rounding of the longest reduction allows."""
    eps = torch.finfo(torch.float32).eps
    originals = [out for out in eager if isinstance(out, torch.Tensor)]
    for ours, theirs, best in zip(found, originals, exact(model, inputs), strict=True):
        if not best.is_floating_point():
            assert torch.equal(ours, theirs)
            continue
        distance, own = (ours.double() - best).abs().max(), (theirs.double() - best).abs().max()
        assert distance <= max(2 * own, 8 * eps * best.abs().max() * longest(model) ** 0.5)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_lossless_models_match_float64(name: str) -> None:
    inputs = ZOO[name].inputs()
    capture, weights = captured(name)
    runs, _ = program_of(capture, weights, "nothing", threads=2)
    runs(*inputs)
    eager = capture.run(weights, inputs)
    assert_lossless(ZOO[name].model(), inputs, runs(*inputs), eager)


@pytest.mark.parametrize("name", ["sentence", "gpt2", "llama"])
def test_one_program_serves_all_sizes(name: str) -> None:
    entry = ZOO[name]
    capture, weights = captured(name, any_size=True)
    runs, _ = program_of(capture, weights, "nothing", threads=2)
    for batch, length in ((1, 2), (1, 9), (2, 5), (3, 17), (7, 4), (8, 33)):
        inputs = entry.inputs(batch, length)
        (found, *_), (wanted, *_) = runs(*inputs), capture.run(weights, inputs)
        assert relative(found, wanted) < 1e-5, (batch, length)


@pytest.mark.parametrize(
    ("wanted", "most"),
    [("bf16", 0.02), ("w8a8", 0.06), ("w8", 0.06), ("w4a8", 0.5), ("w4", 0.5), ("embed8", 0.05), ("embed16", 0.02)],
)
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_lossy_programs_are_near_on_every_instruction_set(wanted: str, most: float, isa: str) -> None:
    if not NEEDS[isa] <= cpu()[1]:
        pytest.skip(f"this processor has no {isa}")
    inputs = ZOO["sentence"].inputs()
    capture, weights = captured("sentence")
    runs, _ = program_of(capture, weights, wanted, isa=isa)
    assert 0 < relative(runs(*inputs)[0], capture.run(weights, inputs)[0]) < most


def test_threads_do_not_change_a_bit_and_calls_repeat() -> None:
    entry = ZOO["sentence"]
    capture, weights = captured("sentence", any_size=True)
    one, _ = program_of(capture, weights, "w8a8", threads=1)
    two, _ = program_of(capture, weights, "w8a8", threads=2)
    for batch, length in ((1, 16), (2, 24), (16, 8)):
        inputs = entry.inputs(batch, length)
        first = one(*inputs)[0]
        assert torch.equal(first, two(*inputs)[0])
        assert torch.equal(first, one(*inputs)[0])


def test_outputs_are_fresh_tensors() -> None:
    entry = ZOO["mlp"]
    capture, weights = captured("mlp")
    runs, _ = program_of(capture, weights, "nothing")
    first = runs(*entry.inputs())[0]
    kept = first.clone()
    runs(*entry.inputs(seed=5))
    assert torch.equal(first, kept)


@pytest.mark.filterwarnings("ignore")  # torch.export's, about the name
def test_layer_names_never_reach_generated_text() -> None:
    class Hostile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module('"); system("', nn.Linear(16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return next(self.children())(x)  # type: ignore[no-any-return]

    from adaflex.codegen.cpp import render

    model, x = Hostile().eval(), torch.randn(3, 16)
    capture, weights = from_export(model, (x,))
    runs, _ = program_of(capture, weights, "bf16")
    assert "system" not in render(runs.program)
    assert relative(runs(x)[0], model(x)) < 0.02


def test_wrong_shape_or_dtype_is_refused() -> None:
    from adaflex.errors import OptionError

    entry = ZOO["mlp"]
    inputs = entry.inputs()
    capture, weights = captured("mlp")
    runs, _ = program_of(capture, weights, "nothing")
    runs(*inputs)
    with pytest.raises(OptionError, match="shape"):
        runs(inputs[0][:1])
    with pytest.raises(OptionError, match="float64"):
        runs(inputs[0].double())
    with pytest.raises(OptionError, match="takes 1"):
        runs()


def test_an_index_outside_its_table_is_refused() -> None:
    from adaflex.errors import OptionError

    entry = ZOO["sentence"]
    ids, mask = entry.inputs()
    capture, weights = captured("sentence")
    runs, _ = program_of(capture, weights, "embed8", threads=2)
    good = runs(ids, mask)[0]
    bad = ids.clone()
    bad[0, 0] = 1 << 40
    with pytest.raises(OptionError, match="index"):
        runs(bad, mask)
    assert torch.equal(runs(ids, mask)[0], good)


def test_calls_may_run_at_the_same_time() -> None:
    from concurrent.futures import ThreadPoolExecutor

    entry = ZOO["sentence"]
    capture, weights = captured("sentence")
    runs, _ = program_of(capture, weights, "w8a8", threads=2)
    runs._turns = threading.Semaphore(3)
    calls = [entry.inputs(seed=seed) for seed in range(6)]
    wanted = [runs(*inputs)[0] for inputs in calls]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            found = list(pool.map(lambda inputs: runs(*inputs)[0], calls))
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("columns", [24, 384, 1000, 8208])
@pytest.mark.parametrize("wanted", ["bf16", "w8a8", "w8a8_grouped", "w4a8"])
def test_scratch_of_rows_is_known_before_the_program_is_built(wanted: str, columns: int) -> None:
    """What a plan says of memory is laid out before anything is compiled."""
    model = nn.Sequential(nn.LayerNorm(columns), nn.Linear(columns, 64), nn.Softmax(-1), nn.Linear(64, 8)).eval()
    capture, weights = from_export(model, (torch.randn(3, columns),))
    runs, _ = program_of(capture, weights, wanted)
    assert isinstance(runs.kernels, NativeKernels)
    assert runs.kernels.scratch_bytes(()) == max(64, row_scratch(runs.program, {}))
