"""Choosing by measured loss: sums that promise too much are corrected, and what measures best wins."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import adaflex
from adaflex import verifying
from adaflex.deciding import Solver, choose
from adaflex.errors import BudgetError
from adaflex.solver.generate import Shape, realistic
from adaflex.solver.plan import Plan
from adaflex.solver.table import Budget, Choice, Cost, CostTable, Encoding, Site

FAST, SLOW = Encoding("w8a8", 8), Encoding("bf16", 16)


def table(count: int = 12) -> CostTable:
    """Sites with a fast choice that loses something and a slow one that loses nothing."""
    sites = tuple(Site(f"s{n}", "linear", 64, 256) for n in range(count))
    choices = [
        Choice(f"s{n}|{encoding.family}", (f"s{n}",), Cost(64, (time + n,), loss), encoding, label=encoding.family)
        for n in range(count)
        for encoding, time, loss in ((FAST, 100, 1e-4), (SLOW, 200, 0.0))
    ]
    return CostTable(sites, tuple(choices), default_loss=6.5e-4)


def summed(scale: Callable[[int], float]) -> Callable[[CostTable, Plan], float]:
    """A true loss: what the table says, times something that depends on how many sites are fast."""

    def loss(_: CostTable, plan: Plan) -> float:
        fast = sum("w8a8" in choice for _, choice in plan.choices)
        return 1e-4 * fast * scale(fast)

    return loss


def fast_sites(plan: Plan) -> int:
    return sum("w8a8" in choice for _, choice in plan.choices)


def test_a_sum_that_promised_too_much_is_corrected_and_the_bound_stays() -> None:
    chosen = choose(table(), Budget(), Solver(None, 5.0), summed(lambda _: 1.5))
    assert fast_sites(chosen.first) == 6 and fast_sites(chosen.plan) == 4
    assert chosen.loss <= 6.5e-4 and chosen.plan.bound == chosen.first.bound
    assert chosen.plan.status == "feasible" and chosen.plan.gap is not None and chosen.plan.gap > 0


def test_a_sum_that_holds_is_not_touched() -> None:
    chosen = choose(table(), Budget(loss=5.5e-4), Solver(None, 5.0), summed(lambda _: 0.5))
    assert chosen.plan.choices == chosen.first.choices and fast_sites(chosen.plan) == 5
    assert chosen.plan.status == "optimal"


def test_the_best_uniform_plan_is_a_candidate() -> None:
    """Everything fast measures next to nothing, mixtures a lot: only the uniform plan shows it."""
    odd = summed(lambda fast: 0.1 if fast == 12 else 3.0)
    budget = Budget(loss=2e-3, objective="latency")
    chosen = choose(table(), budget, Solver(None, 5.0), odd)
    assert fast_sites(chosen.plan) == 12
    least = choose(table(), replace(budget, objective="loss"), Solver(None, 5.0), lambda *_: 1.0 - 0.01)
    assert least.measured >= 2


def test_where_nothing_holds_the_least_loss_wins() -> None:
    """Then the verdict says so."""
    chosen = choose(table(), Budget(loss=3e-4), Solver(None, 5.0), lambda _, plan: 1e-3 + 1e-5 * fast_sites(plan))
    assert fast_sites(chosen.plan) < 3


def test_diverse_plans_are_measured_where_loss_is_sought() -> None:
    """The table's best is not the best measured one: one of the plans beside it is."""
    made = realistic(Shape(blocks=4), seed=1)
    sizes = sorted(choice.cost.size_bytes for choice in made.choices)
    budget = Budget(memory_bytes=sizes[len(sizes) // 2] * len(made.sites), objective="loss")
    seen: list[Plan] = []

    def loss(_: CostTable, plan: Plan) -> float:
        seen.append(plan)
        return 1.0 / len(seen)

    chosen = choose(made, budget, Solver(None, 20.0), loss)
    assert chosen.measured >= 3 and chosen.plan.choices == seen[-1].choices


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match="no plan meets"):
        choose(table(), Budget(memory_bytes=10), Solver(None, 5.0), lambda *_: 0.0)


def test_builds_that_lose_more_than_the_reference_are_corrected(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    """Every build measures a tenth (in squares a fifth) over its reference: another plan must make up for it."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(192, 192), nn.GELU())]
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    batches = [(torch.randn(16, 192),) for _ in range(8)]
    plain = adaflex.plan(model, batches[0], calibration=batches, objective="memory", loss=0.02)
    true = verifying.loss_of
    seen: list[float] = []

    def worse(*given: object) -> float:
        seen.append(1.2 * true(*given))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(verifying, "loss_of", worse)
    asked = {promise.name: promise for promise in plain.planned.verdict.promises}["loss"]
    assert asked.measured is not None
    limit = (1.1 * asked.measured) ** 0.5
    made = adaflex.plan(model, batches[0], calibration=batches, objective="memory", loss=limit)
    verdict = made.planned.verdict
    assert verdict.held, verdict.sentence()
    assert len(seen) >= 2 and seen[0] > limit**2 >= seen[-1]
    before = len(seen)  # what was found is kept: a second run takes the plan that held at once
    again = adaflex.plan(model, batches[0], calibration=batches, objective="memory", loss=limit)
    assert again.planned.verdict.held and len(seen) == before + 1


def test_a_share_of_memory_is_of_everything_the_unchanged_model_takes() -> None:
    """Convolutions are no site: their bytes are a part of the model's all the same."""
    torch.manual_seed(0)
    layers = nn.Conv1d(16, 64, 9), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 64)
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    example = (torch.randn(2, 16, 32),)
    made = adaflex.plan(model, example, memory="1x", axes=())
    taken = made.compile().memory(*example)
    stored = sum(each.numel() * each.element_size() for each in model.parameters())
    assert stored <= taken["weights"] <= made.table.baseline_bytes == taken["total"]


class Broken(nn.Module):
    """Two pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        torch._dynamo.graph_break()
        return self.down(torch.relu(y))


@pytest.mark.parametrize("given", [True, False])
def test_pieces_say_once_what_they_are_measured_on(given: bool, caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Broken().eval().requires_grad_(False), torch.randn(8, 32)
    options = {"axes": (), "threads": 1, "calibration": [torch.randn(8, 32)] if given else None}
    compiled = torch.compile(model, backend="adaflex", options=options)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    assert len(adaflex.programs(compiled)) == 2
    assert caplog.text.count("calibration is for the whole model: losses of its pieces") == given
    assert caplog.text.count("no calibration was given") == (not given)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


def test_parameters_made_in_inference_mode_are_planned() -> None:
    torch._dynamo.reset()
    with torch.inference_mode():
        model = Whole().eval()
    compiled = torch.compile(model, backend="adaflex", options={"axes": (), "threads": 1})
    x = torch.randn(8, 32)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    assert len(adaflex.programs(compiled)) == 1
