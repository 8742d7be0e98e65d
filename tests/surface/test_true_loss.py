"""What a correction learned of built plans is known to the next run before it chooses: the same question, one plan."""

from pathlib import Path
from types import SimpleNamespace

import adaflex
from adaflex.passes.score_cache import Key, ScoreCache
from adaflex.runtime.verdict import Promise, Verdict
from adaflex.true_loss import TrueLoss
from tests.surface.tiny_model import calls, model


def test_another_run_expects_what_a_built_plan_lost_beyond_the_reference(tmp_path: Path) -> None:
    planned = adaflex.plan(model(), calls(4), threads=1, objective="memory", loss=0.5, on_broken="warn").planned
    assert planned.plan.choices != planned.uniform.choices
    scores = SimpleNamespace(plan_loss=lambda encodings, skipped: 0.25)

    def fresh() -> TrueLoss:
        kept = ScoreCache(tmp_path, Key("model", "calls", "error"))
        return TrueLoss(scores, kept, planned.model.data, planned.machine)  # type: ignore[arg-type]

    assert fresh()(planned.table, planned.uniform) == 0.25
    verdict = Verdict((Promise("loss", "error", 0.25, 0.25, 0.5),), planned.verdict.same_data, "here")
    fresh().learn(planned.table, planned.plan, verdict)
    assert fresh()(planned.table, planned.uniform) == 0.5 and fresh()(planned.table, planned.plan) == 0.5
