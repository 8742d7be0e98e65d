"""Skips end to end: a block that adds nothing is left out, and what runs is the model without it."""

from pathlib import Path

import pytest
import torch
from torch import nn

import adaflex
from adaflex.api import ModelPlan
from adaflex.errors import OptionError
from adaflex.planning import Planned
from adaflex.solver.check import faults, totals
from adaflex.solver.table import Budget
from adaflex.verifying import decision_of
from tests.passes.test_sites_and_rewrite import Layer

WIDTH, TOKENS = 64, 16


class Idle(nn.Module):
    """Three layers; the second one's mlp adds next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(WIDTH) for _ in range(3))
        with torch.no_grad():
            for parameter in self.layers[1].down.parameters():
                parameter.mul_(1e-4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def model() -> Idle:
    torch.manual_seed(0)
    return Idle().eval().requires_grad_(False)


def calls(count: int = 8) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(1, TOKENS, WIDTH, generator=generator)} for _ in range(count)]


def without_mlp(given: Idle, x: torch.Tensor) -> torch.Tensor:
    """The model without its second mlp, by hand."""

    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*x.shape[:-1], WIDTH)

    given.layers[1].down = Nothing()
    return given(x)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelPlan, Path]:
    """Only skips are offered, and a little less memory than the model takes."""
    path = tmp_path_factory.mktemp("skip") / "plan.json"
    data = calls()
    made = adaflex.plan(
        model(), data[0], calibration=data, axes=["skip"], memory="0.9x", save_plan=path, on_broken="warn"
    )
    return made, path


def skipped(found: Planned) -> tuple[str, ...]:
    return decision_of(found.table, found.plan).skipped


def test_the_idle_block_is_left_out(planned) -> None:  # type: ignore[no-untyped-def]
    made, _ = planned
    found = made.planned
    assert skipped(found) == ("layers.1:mlp",)
    assert "skip mlp" in made.report()
    names = {constant.name for constant in found.assembled.program.constants}
    assert not any(name.startswith(("layers.1.up", "layers.1.down", "layers.1.norm2")) for name in names)
    memory = next(each for each in found.verdict.promises if each.name == "memory")
    assert memory.held and memory.measured <= memory.planned
    x = calls()[3]["x"]
    program = made.compile()
    assert torch.allclose(program(x), without_mlp(model(), x), atol=1e-5)


def test_losses_of_skips_are_those_measured(planned) -> None:  # type: ignore[no-untyped-def]
    found = planned[0].planned
    columns = {choice.id.partition("|")[0]: choice for choice in found.table.choices if choice.axis == "skip"}
    assert set(columns) == {block.id for block in found.sites.blocks}
    for name, choice in columns.items():
        assert choice.cost.loss == found.scores.skip_loss[name]
        assert choice.cost.loss == pytest.approx(found.scores.plan_loss({}, (name,), held=False))
        assert (choice.cost.size_bytes, choice.cost.time_ns) == (0, (0,))


def test_the_table_explains_the_time_and_bytes_that_a_skip_releases(planned) -> None:  # type: ignore[no-untyped-def]
    """Everything skipped: what is left is what no block takes."""
    found = planned[0].planned
    table = found.table
    keep = {c.sites[0]: c.id for c in table.choices if c.axis != "skip"}
    layers = {s: c.id for c in table.choices if c.label == "skip layer" for s in c.sites}
    assert not faults(table, Budget(), layers)
    full, empty = totals(table, keep), totals(table, layers)
    assert empty.time_ns[0] == table.fixed.time_ns[0] < full.time_ns[0]
    norms = 3 * 2 * 2 * WIDTH * 4 + 3 * (6 * WIDTH + 64) * 4
    assert full.peak_bytes - empty.peak_bytes >= full.size_bytes - empty.size_bytes + norms - 3 * 64 * 16


def test_halves_of_a_layer_are_not_skipped_one_by_one(planned) -> None:  # type: ignore[no-untyped-def]
    table = planned[0].planned.table
    choices = {c.sites[0]: c.id for c in table.choices if c.axis != "skip"}
    for name in ("layers.0:attention|skip attention", "layers.0:mlp|skip mlp"):
        column = next(c for c in table.choices if c.id == name)
        choices |= dict.fromkeys(column.sites, name)
    assert [fault.kind for fault in faults(table, Budget(), choices)] == ["spacing"]


def test_a_saved_plan_skips_again(planned) -> None:  # type: ignore[no-untyped-def]
    made, path = planned
    again = adaflex.plan(model(), calls()[0], calibration=calls(), plan=path, on_broken="warn")
    assert again.planned.plan.choices == made.planned.plan.choices
    x = calls()[5]["x"]
    assert torch.equal(again.compile()(x), made.compile()(x))


def test_an_artifact_without_the_block(planned, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    program = planned[0].compile()
    path = tmp_path / "small.ada"
    program.save(path)
    x = calls()[2]["x"]
    assert torch.equal(adaflex.load(path)(x), program(x))


def test_pins_skip_and_forbid() -> None:
    data = calls()
    pinned = adaflex.plan(
        model(), data[0], calibration=data, axes=["skip"], pin=[("layers.2.*", "skip layer")], on_broken="warn"
    )
    assert "layers.2:layer" in skipped(pinned.planned)
    refused = adaflex.plan(
        model(),
        data[0],
        calibration=data,
        axes=["skip"],
        memory="0.9x",
        forbid=[("layers.1.*", "skip*")],
        on_broken="warn",
    )
    assert skipped(refused.planned) and not any(name.startswith("layers.1") for name in skipped(refused.planned))
    with pytest.raises(OptionError, match="meets no choice"):
        adaflex.plan(model(), data[0], calibration=data, pin=[("layers.1.*", "skip")])


def test_through_torch_compile() -> None:
    torch._dynamo.reset()
    given, data = model(), calls()
    options = {"calibration": data, "axes": ["skip"], "memory": "0.9x"}
    compiled = torch.compile(given, backend="adaflex", options=options)
    with torch.no_grad():
        for x in (data[4]["x"][:, :9], data[4]["x"]):  # the first call's length is not that of calibration
            assert torch.allclose(compiled(x), without_mlp(model(), x), atol=1e-5)
