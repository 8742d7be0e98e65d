"""A head that is the embedding's table, through both doors: one storage, counted once, measured with both its uses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adaflex
from adaflex.api import ModelPlan
from adaflex.passes.menu import TIED
from adaflex.verifying import decision_of

WIDTH, WORDS, TOKENS = 64, 300, 12


class Decoder(nn.Module):
    """A language model: a table, positions, two blocks, the table again as the head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(WIDTH), "up": nn.Linear(WIDTH, 128), "down": nn.Linear(128, WIDTH)})
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = x + block["down"](nn.functional.gelu(block["up"](block["norm"](x))))  # type: ignore[index]
        return self.head(self.norm(x))


def model() -> Decoder:
    torch.manual_seed(0)
    return Decoder().eval().requires_grad_(False)


def calls(count: int = 8) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(0, WORDS, (2, TOKENS), generator=generator),) for _ in range(count)]


def options() -> dict[str, Any]:
    return {"calibration": calls(), "memory": "0.6x", "axes": ["precision"], "threads": 1, "on_broken": "warn"}


@pytest.fixture(scope="module")
def planned() -> ModelPlan:
    return adaflex.plan(model(), calls()[0], **options())


def test_one_site_one_constant_and_the_bytes_promised(planned: ModelPlan) -> None:
    found = planned.planned
    (site,) = (each for each in found.table.sites if each.op == TIED)
    chosen = dict(found.plan.choices)[site.id]
    (choice,) = (each for each in found.table.choices if each.id == chosen)
    assert choice.encoding is not None and choice.encoding.bits < 32
    (stored,) = (each for each in found.assembled.program.constants if each.size_bytes >= WORDS * WIDTH)
    assert stored.name == "words.weight" and stored.size_bytes == choice.cost.size_bytes
    (memory,) = (each for each in found.verdict.promises if each.name == "memory")
    assert memory.held and memory.measured is not None and memory.planned is not None
    assert found.assembled.weights.numel() == found.executor.memory(calls()[0])["weights"]
    assert found.plan.totals.size_bytes == found.assembled.weights.numel()
    assert found.table.baseline_bytes >= 4 * sum(each.numel() for each in {*model().parameters()} if each.dim() == 2)


def test_its_loss_is_that_of_both_uses(planned: ModelPlan) -> None:
    """Measured again by hand: the table replaced, which both the lookup and the head read."""
    found = planned.planned
    (encoding,) = (each for each in found.sites.offers["words.weight"] if each.family == "w8")
    stored = found.scores.encoded("words.weight", encoding)
    codes, scale = stored.parts["codes"], stored.parts["scale"]
    other, ratios = model(), []
    with torch.no_grad():
        other.words.weight.copy_(codes * scale)
        for (ids,) in calls()[:6]:  # the rest is held out
            off, right = (other(ids) - model()(ids)).flatten(1), model()(ids).flatten(1)
            ratios += (off.square().sum(1) / right.square().sum(1)).tolist()
    measured = found.scores.loss["words.weight", encoding]
    assert measured == pytest.approx(sum(ratios) / len(ratios), rel=0.2)  # its kernel also rounds activations to bf16


def test_outputs_through_both_doors_and_an_artifact(planned: ModelPlan, tmp_path: Path) -> None:
    program = planned.compile()
    ids = calls()[7][0]
    wanted = model()(ids)
    error = float((program(ids) - wanted).norm() / wanted.norm())
    (loss,) = (each for each in planned.planned.verdict.promises if each.name == "loss")
    assert loss.measured is not None and error**2 < 3 * loss.measured
    path = tmp_path / "tied.ada"
    program.save(path)
    assert torch.equal(adaflex.load(path, threads=1)(ids), program(ids))
    assert path.stat().st_size < planned.planned.plan.totals.size_bytes + 40_000
    torch._dynamo.reset()
    compiled = torch.compile(model(), backend="adaflex", fullgraph=True, options=options())
    with torch.no_grad():
        output = compiled(ids)
    (other,) = adaflex.programs(compiled)[:1]
    table = {each.id: each for each in other.table.choices}
    picked = next(table[name] for site, name in other.plan.choices if "words" in site)
    assert picked.encoding is not None and picked.encoding.bits < 32
    assert float((output - wanted).norm() / wanted.norm()) ** 2 < 3 * loss.measured


def test_decisions_name_the_table_once(planned: ModelPlan) -> None:
    decision = decision_of(planned.planned.table, planned.planned.plan)
    assert [name for name in decision.encodings if "words" in name or "head" in name] == ["words.weight"]
