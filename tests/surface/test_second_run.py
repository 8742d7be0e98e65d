"""What was measured once is not measured again: losses of choices and of plans, repaired tensors, prices."""

from pathlib import Path

import pytest
import torch

import adaflex
from tests.surface.tiny_model import WIDE, calls, model


def test_a_second_plan_of_the_same_model_scores_nothing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaflex.pricing.CALM", 1e9)  # a loaded machine's prices do for this
    torch.manual_seed(0)
    many = [{"x": torch.randn(64, WIDE)} for _ in range(16)]

    def planned() -> str:
        return adaflex.plan(model(), calls(1)[0], calibration=many, loss=0.02, threads=1).to_json()

    planned()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("adaflex.passes.score.joint_loss", refuse)
    monkeypatch.setattr("adaflex.passes.score._Run._score", refuse)
    monkeypatch.setattr("adaflex.passes.encoder.Encoder.encode_at", refuse)
    monkeypatch.setattr("adaflex.pricing._bench", refuse)
    planned()
