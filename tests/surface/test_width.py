"""Structured width end to end: neurons are removed under a budget, and what runs is really smaller."""

from pathlib import Path

import pytest
import torch
from torch import nn

import adaflex
from adaflex.api import ModelPlan
from adaflex.passes.widths import kept_of
from adaflex.placing import Placement, placed
from adaflex.solver.check import faults
from adaflex.solver.table import Budget, Tier
from adaflex.verifying import decision_of

WIDE, INNER, ROWS = 64, 256, 16


class Half(nn.Module):
    """Two residual mlps, one of them gated; half of the gated one's neurons are next to silent."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDE, INNER), nn.Linear(INNER, WIDE)
        self.gate, self.fill, self.out = nn.Linear(WIDE, INNER), nn.Linear(WIDE, INNER), nn.Linear(INNER, WIDE)
        with torch.no_grad():
            self.fill.weight[::2] *= 1e-3
            self.fill.bias[::2] *= 1e-3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return x + self.out(nn.functional.silu(self.gate(x)) * self.fill(x))


def model() -> Half:
    torch.manual_seed(0)
    return Half().eval().requires_grad_(False)


def calls(count: int = 16) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(ROWS, WIDE, generator=generator)} for _ in range(count)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelPlan, Path]:
    """Only widths are offered, and memory for more than the gated mlp takes at half of its neurons."""
    path = tmp_path_factory.mktemp("width") / "plan.json"
    made = adaflex.plan(
        model(),
        calls()[0],
        calibration=calls(),
        axes=["sparsity"],
        memory="0.85x",
        objective="loss",
        save_plan=path,
        on_broken="warn",
    )
    return made, path


def test_the_silent_half_is_removed(planned) -> None:  # type: ignore[no-untyped-def]
    made, _ = planned
    found = made.planned
    kept = {site: kept_of(each) for site, each in decision_of(found.table, found.plan).encodings.items()}
    assert kept["gate.weight"] == kept["fill.weight"] == kept["out.weight"] == INNER // 2
    assert kept["up.weight"] is None and kept["down.weight"] is None
    constants = {constant.name: constant for constant in found.assembled.program.constants}
    assert constants["fill.weight"].shape == (INNER // 2, WIDE) and constants["fill.bias"].shape == (INNER // 2,)
    assert constants["out.weight"].shape == (WIDE, INNER // 2)
    memory = next(each for each in found.verdict.promises if each.name == "memory")
    assert memory.held and memory.measured <= memory.planned
    assert "fp32-width:128/256" in made.report()


def test_what_runs_is_the_reference_and_close_to_the_model(planned) -> None:  # type: ignore[no-untyped-def]
    made, _ = planned
    found = made.planned
    program, x = made.compile(), calls()[7]["x"]
    decision = decision_of(found.table, found.plan)
    from adaflex.codegen.kernels.menu import MENU
    from adaflex.passes.rewrite import rewrite, run

    graph = rewrite(found.model.capture, found.sites, MENU, found.scores.tensors(decision.encodings))
    (reference,) = run(graph, found.model.weights, [x])
    assert torch.allclose(program(x), reference, atol=1e-5)
    assert float((program(x) - model()(x)).norm() / model()(x).norm()) < 0.01


def test_widths_of_one_mlp_are_linked(planned) -> None:  # type: ignore[no-untyped-def]
    table = planned[0].planned.table
    assert {link.sites for link in table.links} == {
        ("up.weight", "down.weight"),
        ("gate.weight", "fill.weight", "out.weight"),
    }
    chosen = {site.id: f"{site.id}|fp32" for site in table.sites}
    assert not faults(table, Budget(), chosen)
    torn = chosen | {"up.weight": "up.weight|fp32-width:128/256"}
    assert [fault.kind for fault in faults(table, Budget(), torn)] == ["link"]
    whole = torn | {"down.weight": "down.weight|fp32-width:128/256"}
    assert not faults(table, Budget(), whole)


def test_fewer_neurons_take_fewer_bytes_and_less_time(planned) -> None:  # type: ignore[no-untyped-def]
    cost = {choice.id: choice.cost for choice in planned[0].planned.table.choices}
    for site in ("up.weight", "down.weight"):
        whole, half = cost[f"{site}|fp32"], cost[f"{site}|fp32-width:128/256"]
        assert 2 * half.size_bytes == whole.size_bytes
        assert half.time_ns[0] < whole.time_ns[0]


def test_a_saved_plan_and_an_artifact(planned, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made, path = planned
    again = adaflex.plan(model(), calls()[0], calibration=calls(), plan=path, on_broken="warn")
    assert again.planned.plan.choices == made.planned.plan.choices
    x, program = calls()[5]["x"], made.compile()
    assert torch.equal(again.compile()(x), program(x))
    program.save(tmp_path / "half.ada")
    assert torch.equal(adaflex.load(tmp_path / "half.ada")(x), program(x))


def test_widths_join_precision_and_skips_in_one_plan() -> None:
    made = adaflex.plan(
        model(),
        calls()[0],
        calibration=calls(),
        axes=["precision", "sparsity", "skip"],
        memory="0.3x",
        objective="loss",
        pin=[("gate", "w8a8-*width:128/256"), ("up", "skip")],
        on_broken="warn",
    )
    found = made.planned
    decision = decision_of(found.table, found.plan)
    assert {kept_of(decision.encodings[site]) for site in ("gate.weight", "fill.weight", "out.weight")} == {128}
    assert decision.encodings["gate.weight"].family == "w8a8" and "up.weight" not in decision.encodings
    assert len(decision.skipped) == 1
    assert next(each for each in found.verdict.promises if each.name == "memory").held


def test_through_torch_compile() -> None:
    """The first call's length is not that of calibration: the plan is taken over by another graph."""
    torch._dynamo.reset()
    given = model()
    options = {"calibration": calls(), "axes": ["sparsity"], "memory": "0.85x", "objective": "loss"}
    compiled = torch.compile(given, backend="adaflex", options=options)
    with torch.no_grad():
        for x in (calls()[4]["x"][:9], calls()[4]["x"]):
            assert float((compiled(x) - given(x)).norm() / given(x).norm()) < 0.01
    for planning in adaflex.programs(compiled):
        shapes = {constant.name: constant.shape for constant in planning.decided.assembled.program.constants}
        assert shapes["fill.weight"] == (INNER // 2, WIDE) and shapes["fill.bias"] == (INNER // 2,)


def test_a_width_on_disk_is_the_same_width(planned) -> None:  # type: ignore[no-untyped-def]
    table = planned[0].planned.table
    tier = Tier("disk", bandwidth=((1 << 12, 10**9),))
    both = placed(table, Placement((("up.weight",), ("down.weight",)), tier))
    chosen = {site.id: f"{site.id}|fp32" for site in both.sites}
    narrow = {"up.weight": "up.weight|fp32-width:128/256@disk", "down.weight": "down.weight|fp32-width:128/256"}
    assert not faults(both, Budget(), chosen | narrow)
    torn = narrow | {"down.weight": "down.weight|fp32-width:192/256@disk"}
    assert [fault.kind for fault in faults(both, Budget(), chosen | torn)] == ["link"]
