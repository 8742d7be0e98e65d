"""Measured losses on a small transformer: what they are, that plans add up, cut and resumed runs, estimates."""

import math
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from adaflex.codegen.kernels.menu import MENU
from adaflex.errors import CalibrationError, OptionError
from adaflex.passes.calibration import Calibration, samples
from adaflex.passes.estimate import Estimator
from adaflex.passes.export_door import from_export
from adaflex.passes.losses import Judge
from adaflex.passes.menu import Machine
from adaflex.passes.rewrite import rewrite, run
from adaflex.passes.score import Scores, bf16_plan, cast_loss, name_of, score
from adaflex.passes.score_cache import ScoreCache, key_of
from adaflex.passes.sites import find_sites
from adaflex.solver.table import Encoding

MACHINE = Machine("avx512", 2)


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p.unflatten(-1, (2, -1)).transpose(1, 2) for p in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Small(nn.Module):
    """Embedding, two layers, a head: sharp enough that losses differ."""

    def __init__(self, width: int = 64, classes: int = 30) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.layers = nn.Sequential(Layer(width), Layer(width))
        self.head = nn.Linear(width, classes)
        with torch.no_grad():
            for each in self.modules():
                if isinstance(each, nn.Linear):
                    each.weight.mul_(2.0)
                    each.weight[:, ::9].mul_(3.0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(ids)))


@pytest.fixture(scope="module")
def small() -> Any:
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (24, 12))
    model = Small().eval().requires_grad_(False)
    capture, weights = from_export(model, (ids[:4],), None, ({0: Dim("b", min=1, max=64)},))
    return capture, weights, find_sites(capture, weights, MENU, MACHINE), Calibration(list(ids.split(1)))


@pytest.fixture(scope="module")
def scores(small: Any) -> Scores:
    capture, weights, sites, data = small
    return score(capture, weights, sites, MENU, data)


def test_every_offer_has_a_loss(small: Any, scores: Scores) -> None:
    _, _, sites, _ = small
    assert set(scores.loss) == {(site, each) for site, offers in sites.offers.items() for each in offers}
    assert all(scores.loss[site, keep] == 0 for site, keep in sites.keep.items())
    assert all(value > 0 for (site, each), value in scores.loss.items() if each != sites.keep[site])
    assert set(scores.source.values()) == {"measured"} and scores.kind == "squared relative error"
    assert set(scores.skip_loss) == {block.id for block in sites.blocks} and len(sites.blocks) == 6
    down = {each.family: scores.loss["layers.0.down.weight", each] for each in sites.offers["layers.0.down.weight"]}
    assert down["fp32"] < down["bf16"] < down["w8"] < down["w8a8"] < down["w4"]


def test_a_loss_is_that_of_the_rewritten_model(small: Any, scores: Scores) -> None:
    """Measured by suffix execution, checked by running the whole rewritten graph on the same samples."""
    capture, weights, sites, data = small
    calls = samples(capture, data).fit
    for site in ("embed.weight", "layers.1.qkv.weight", "head.weight"):
        for encoding in sites.offers[site][1:3]:
            graph = rewrite(capture, sites, MENU, {site: scores.encoded(site, encoding)})
            assert scores.loss[site, encoding] == pytest.approx(by_hand(capture, weights, graph, calls), rel=1e-3)
    graph = rewrite(capture, sites, MENU, {}, [sites.blocks[0].id])
    assert scores.skip_loss[sites.blocks[0].id] == pytest.approx(by_hand(capture, weights, graph, calls), rel=1e-3)


def by_hand(capture: Any, weights: Any, graph: Any, calls: Any) -> float:
    total, count = 0.0, 0
    for inputs in calls:
        found, original = run(graph, weights, inputs)[0].double(), capture.run(weights, inputs)[0].double()
        for y, y0 in zip(found, original, strict=True):
            total += float((y - y0).square().sum() / y0.square().sum())
            count += 1
    return total / count


def test_plans_add_up(small: Any, scores: Scores) -> None:
    _, _, sites, _ = small
    plan = bf16_plan(sites)
    together = scores.plan_loss(plan, held=False)
    assert together <= scores.bf16_loss < 4 * together  # which casts the activations too
    assert 0.5 < together / sum(scores.loss[each] for each in plan.items()) < 2
    ratios = []
    for seed in range(10):
        chosen = {site: random.Random(f"{seed}{site}").choice(offers) for site, offers in sites.offers.items()}
        ratios.append(scores.plan_loss(chosen, held=False) / sum(scores.loss[each] for each in chosen.items()))
    assert 0.7 < sorted(ratios)[5] < 1.4
    assert scores.plan_loss(dict(sites.keep)) == 0


def test_the_scored_tensor_is_the_one_handed_out(small: Any, scores: Scores) -> None:
    capture, weights, sites, data = small
    again = score(capture, weights, sites, MENU, data, deadline=0.0)
    encoding = next(each for each in sites.offers["head.weight"] if each.family == "w4")
    first, second = scores.encoded("head.weight", encoding), again.tensors({"head.weight": encoding})["head.weight"]
    assert scores.encoded("head.weight", encoding) is first and first.encoding.rounding == "compensated"
    assert all(torch.equal(part, second.parts[name]) for name, part in first.parts.items())


def test_estimates_follow_the_measured_losses(small: Any, scores: Scores) -> None:
    estimator = Estimator(scores.encoder, scores.fit)  # type: ignore[arg-type]
    ratios = sorted(
        estimator.loss(site, scores.encoded(site, encoding)) / value
        for (site, encoding), value in scores.loss.items()
        if value > 1e-12
    )
    middle = ratios[len(ratios) // 10 : -len(ratios) // 10]
    assert 0.6 < ratios[len(ratios) // 2] < 1.6 and middle[0] > 0.3 and middle[-1] < 3


def test_a_time_limit_estimates_the_rest_and_says_so(small: Any, scores: Scores) -> None:
    capture, weights, sites, data = small
    cut = score(capture, weights, sites, MENU, data, deadline=time.monotonic() - 1)
    assert set(cut.loss) == set(scores.loss) and "estimated" in cut.source.values() and cut.skip_loss == {}
    assert any(name == "time limit" and "were estimated" in why for name, why in cut.notes)
    assert math.isclose(cut.bf16_loss, scores.bf16_loss, rel_tol=1e-6)


def test_progress_counts_to_its_total(small: Any) -> None:
    capture, weights, sites, data = small
    seen: list[tuple[int, int]] = []
    score(capture, weights, sites, MENU, data, deadline=0.0, progress=lambda done, total, _: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))


def test_an_interrupted_run_resumes(small: Any, scores: Scores, tmp_path: Path) -> None:
    capture, weights, sites, data = small
    key = key_of(capture, weights, samples(capture, data), "error")

    class Stop(Exception):
        pass

    def stop(done: int, total: int, name: str) -> None:
        if done > 12:
            raise Stop

    with pytest.raises(Stop):
        score(capture, weights, sites, MENU, data, cache=ScoreCache(tmp_path, key), progress=stop)
    kept = ScoreCache(tmp_path, key)
    assert len(kept.losses) >= 8
    planted = next(iter(kept.losses))
    kept.put(planted, 0.125)
    again = score(capture, weights, sites, MENU, data, cache=ScoreCache(tmp_path, key))
    names = {name_of(*each): value for each, value in again.loss.items()}
    assert names[planted] == 0.125, "what the cache holds is not measured again"
    rest = {each: value for each, value in again.loss.items() if name_of(*each) != planted}
    assert all(scores.loss[each] == pytest.approx(value, rel=1e-6) for each, value in rest.items())


def test_other_losses(small: Any) -> None:
    capture, weights, sites, data = small
    some = {site: (sites.keep[site], sites.offers[site][2]) for site in sites.offers}
    few = type(sites)(**(vars(sites) | {"offers": some, "blocks": ()}))
    kl = score(capture, weights, few, MENU, data, loss="kl")
    assert kl.kind == "KL divergence" and all(value >= 0 for value in kl.loss.values())
    estimator = Estimator(kl.encoder, kl.fit)  # type: ignore[arg-type]
    each, value = max(kl.loss.items(), key=lambda pair: pair[1])
    assert 0.3 < estimator.loss(each[0], kl.encoded(*each)) / value < 3
    given = score(capture, weights, few, MENU, data, loss=lambda output, batch: float(output.abs().mean()) + len(batch))
    assert all(value >= 0 for value in given.loss.values()) and max(given.loss.values()) > 0
    with pytest.raises(OptionError, match="'l2'"):
        score(capture, weights, few, MENU, data, loss="l2")  # type: ignore[arg-type]


def test_constant_outputs_are_refused() -> None:
    model = nn.Linear(8, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x = torch.randn(3, 8)
    capture, weights = from_export(model.requires_grad_(False), (x,))
    with pytest.raises(CalibrationError, match="is 0 everywhere"):
        score(capture, weights, find_sites(capture, weights, MENU, MACHINE), MENU, Calibration([x]))


def test_too_few_rows_round_to_nearest_and_say_so() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 128)
    capture, weights = from_export(nn.Sequential(nn.Linear(128, 8)).requires_grad_(False), (x,))
    found = score(capture, weights, find_sites(capture, weights, MENU, MACHINE), MENU, Calibration([x]))
    assert [name for name, _ in found.notes] == ["repair"]
    encoding = Encoding("w8a8", 8, 0, True, 0, "compensated")
    assert found.encoded("0.weight", encoding).encoding.rounding == "nearest"


class Wide(nn.Module):
    """A cast to fp32 in the model (as rotary embeddings have), fp32 products after it, and an op without bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.two((self.one(x) * scale.float()).to(x.dtype))


def test_casting_to_bf16_costs_what_it_costs_the_model() -> None:
    torch.manual_seed(0)
    model, x, scale = Wide().eval().requires_grad_(False), torch.randn(8, 16), torch.arange(16)
    capture, weights = from_export(model, (x, scale))
    data = samples(capture, Calibration([(x, scale)]))
    judge = Judge(capture, data, data.fit, "error")
    judge.start([capture.run(weights, inputs) for inputs in data.fit])
    expected, low = model(x, scale), Wide().eval().requires_grad_(False)
    low.load_state_dict(model.state_dict())
    found = low.bfloat16()(x.bfloat16(), scale).float()
    own = float((found - expected).square().sum() / expected.square().sum())
    assert own / 2 < cast_loss(capture, weights, judge) < 2 * own
