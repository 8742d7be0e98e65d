"""A table of embeddings that is a linear's weight too: rows are picked out of the panels that the product reads."""

import pytest
import torch
from torch import nn

from adaflex import building
from adaflex.assembly import Assembled, assemble, blocks_of
from adaflex.codegen.evaluate import Evaluator
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.errors import ArtifactError, OptionError
from adaflex.native import compiler
from adaflex.passes.capture import Capture
from adaflex.passes.decision import Decision
from adaflex.passes.export_door import from_export
from adaflex.passes.menu import TIED, Encoded, Machine
from adaflex.passes.rewrite import rewrite, run
from adaflex.passes.sites import Sites, find_sites
from adaflex.runtime.bounds import check_bounds
from adaflex.runtime.execute import Executor
from adaflex.runtime.program import RowStep
from adaflex.solver.table import Encoding

MACHINE = Machine("avx512", 2)
ROWS = 75  # of the table: more than two panels, the last one not full


class Words(nn.Module):
    """Two tables looked up, one of which is the head as well."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(ROWS, width), nn.Embedding(16, width)
        self.head = nn.Linear(width, ROWS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(x))


def captured(width: int) -> tuple[Capture, tuple[torch.Tensor, ...], Sites]:
    torch.manual_seed(0)
    capture, weights = from_export(Words(width).eval().requires_grad_(False), (torch.randint(0, ROWS, (2, 9)),))
    return capture, tuple(weights), find_sites(capture, tuple(weights), MENU, MACHINE)


def made(width: int, family: str) -> tuple[Assembled, torch.fx.GraphModule, tuple[torch.Tensor, ...], Encoding]:
    """The program with the tied table in a family, and the graph that it stands for."""
    capture, weights, sites = captured(width)
    encoding = next(each for each in sites.offers["words.weight"] if each.family == family)
    weight = sites.weight(weights, "words.weight").float()
    stored: dict[str, Encoded] = {"words.weight": kernel(MENU, family).encode(weight, encoding, None)}
    stored["places.weight"] = kernel(MENU, "embed32").encode(
        sites.weight(weights, "places.weight"), sites.keep["places.weight"], None
    )
    decision = Decision({name: each.encoding for name, each in stored.items()})
    built = assemble(capture, weights, sites, decision, lambda site, _: stored[site])
    return built, rewrite(capture, sites, MENU, stored), weights, encoding


def near(found: torch.Tensor, wanted: torch.Tensor, encoding: Encoding) -> None:
    """Equal but for the order of sums; where activations are rounded, one code may fall the other way."""
    apart = float((found - wanted).norm() / wanted.norm())
    assert apart < (5e-3 if encoding.family == "w8a8" else 2e-6)


def test_what_a_tied_table_is_offered() -> None:
    _, _, sites = captured(64)
    (site,) = (each for each in sites.sites if each.op == TIED)
    assert site.id == "words.weight" and len(site.uses) == 2
    assert [each.family for each in sites.offers[site.id]] == ["fp32", "bf16", "w8a8", "w8"]
    assert not any(each.rotation or each.group for each in sites.offers[site.id])
    device = Machine("avx512", 2, device="cuda")
    capture, weights, _ = captured(64)
    assert site.id not in find_sites(capture, weights, MENU, device).offers


@pytest.mark.parametrize("width", [64, 50])
@pytest.mark.parametrize("family", ["fp32", "bf16", "w8", "w8a8"])
def test_stored_once_and_computed_as_its_reference(width: int, family: str) -> None:
    built, reference, weights, encoding = made(width, family)
    (stored,) = (each for each in built.program.constants if each.name == "words.weight")
    assert stored.size_bytes == kernel(MENU, family).size_bytes((ROWS, width), encoding)
    ids = torch.randint(0, ROWS, (2, 9))
    (wanted,) = run(reference, weights, [ids])
    (found,) = Executor(built.program, built.weights, Evaluator(built.program), threads=1)(ids)
    near(found, wanted, encoding)
    if compiler() is not None:
        isa = (
            {"fp32": "portable", "bf16": "avx2", "w8": "avx512", "w8a8": "avx2"}[family] if width == 64 else "portable"
        )
        (native,) = building.executor(built.program, built.weights, isa, 2)(ids)
        near(native, wanted, encoding)


def test_a_row_that_the_table_lacks_is_refused() -> None:
    built, _, _, _ = made(64, "bf16")
    with pytest.raises(OptionError):
        building.executor(built.program, built.weights, "avx2", 1)(torch.full((2, 9), ROWS))


def test_a_tied_table_is_not_streamed() -> None:
    capture, _, sites = captured(64)
    assert not any("words.weight" in block for block in blocks_of(capture, sites))


def test_panels_that_leave_the_table_are_refused() -> None:
    """One panel more than there is, columns of the next panel, a wider pitch."""
    from dataclasses import replace

    program = made(64, "w8")[0].program
    values = dict.fromkeys(program.symbols, 4)
    check_bounds(program, values)
    for change in ({"choices": ROWS + 32}, {"pitch": 10**6}, {"offset": 64 * 64}):
        steps = []
        for step in program.steps:
            if isinstance(step, RowStep):
                loads = tuple(replace(x, **change) if x.panel else x for x in step.region.loads)  # type: ignore[arg-type]
                step = replace(step, region=replace(step.region, loads=loads))
            steps.append(step)
        with pytest.raises(ArtifactError, match="reaches elements"):
            check_bounds(replace(program, steps=tuple(steps)), values)
