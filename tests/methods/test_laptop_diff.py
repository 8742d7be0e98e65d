"""laptop-diff: skips as a knapsack equal exhaustive search; the report says how additive the losses are."""

import itertools
import random

import pytest

from adaflex.solver.check import totals
from adaflex.solver.others.orders import layer_knapsack, unified_layer_skip
from adaflex.solver.others.true_loss import additivity
from adaflex.solver.table import Budget
from tests.methods.tables import blocks, skip_loss


@pytest.mark.parametrize("kept", range(2, 12))
def test_the_knapsack_over_12_blocks_equals_exhaustive_search(kept: int) -> None:
    table, budget = blocks(12), Budget(memory_bytes=100 * kept)
    chosen = layer_knapsack(table, budget)
    least = min(sum(map(skip_loss, out)) for out in itertools.combinations(range(12), 12 - kept))
    assert chosen is not None and totals(table, chosen).loss == pytest.approx(least)
    even = unified_layer_skip(table, budget)
    assert even is not None and totals(table, even).loss >= least - 1e-12


def test_the_report_is_exact_for_sums_and_falls_with_interaction() -> None:
    table, rng = blocks(12), random.Random(0)
    plans = [{s.id: f"{s.id}:{rng.choice(['keep', 'skip'])}" for s in table.sites} for _ in range(200)]
    exact = additivity(table, plans, lambda c: totals(table, c).loss)
    assert exact.pearson == pytest.approx(1.0) and exact.ratio == pytest.approx(1.0) and exact.plans == 200
    found = []
    for strength in (0.02, 0.3, 3.0):
        pairs = {p: rng.gauss(0.0, strength) for p in itertools.combinations(range(12), 2)}

        def joint(chosen: dict[str, str], pairs: dict[tuple[int, int], float] = pairs) -> float:
            out = {int(s[1:]) for s, c in chosen.items() if c.endswith("skip")}
            return totals(table, chosen).loss + sum(v for (a, b), v in pairs.items() if a in out and b in out)

        found.append(additivity(table, plans, joint).pearson)  # type: ignore[arg-type]
    assert found[0] > 0.98 > found[2] and found == sorted(found, reverse=True)
