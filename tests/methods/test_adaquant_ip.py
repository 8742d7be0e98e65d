"""adaquant-ip: the one-hot program equals exhaustive search, primal and dual agree, no random plan is better."""

import random

import numpy as np
import pytest

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.others.single_budget import adaquant_ip
from adaflex.solver.table import Budget
from tests.methods.tables import layers, middle, rows

FLOOR = 1e-6  # of each layer's loss, as published


@pytest.mark.parametrize("seed", range(50))
def test_the_program_equals_exhaustive_search_over_8_layers_and_3_widths(seed: int) -> None:
    made = layers(seed)
    budget = middle(made)
    loss, size = np.zeros(1), np.zeros(1)
    for row in rows(made):
        loss = np.add.outer(loss, [c.cost.loss for c in row]).ravel()
        size = np.add.outer(size, [c.cost.size_bytes for c in row]).ravel()
    assert len(loss) == 3**8 and budget.memory_bytes is not None
    least = float(loss[size <= budget.memory_bytes].min())
    chosen = adaquant_ip(made, budget)
    assert chosen is not None and not faults(made, budget, chosen)
    assert totals(made, chosen).loss <= least * (1 + 1e-3) + 8 * FLOOR
    assert allocate(made, budget).value == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_primal_and_dual_agree(seed: int) -> None:
    made = layers(seed)
    budget = middle(made)
    plan = allocate(made, budget)
    assert plan.totals is not None
    back = allocate(made, Budget(loss=plan.totals.loss, objective="memory"))
    assert back.totals is not None and budget.memory_bytes is not None
    assert back.totals.peak_bytes <= plan.totals.peak_bytes <= budget.memory_bytes


@pytest.mark.parametrize("seed", range(5))
def test_no_random_plan_within_the_bytes_is_better(seed: int) -> None:
    made, rng = layers(seed, sites=16), random.Random(seed)
    budget = middle(made)
    chosen = adaquant_ip(made, budget)
    assert chosen is not None
    met = 0
    while met < 100:
        plan = {c.sites[0]: c.id for c in (rng.choice(row) for row in rows(made))}
        if not faults(made, budget, plan):
            met += 1
            assert totals(made, plan).loss >= totals(made, chosen).loss - 16 * FLOOR


def test_impossible_is_an_answer() -> None:
    assert adaquant_ip(layers(0), Budget(memory_bytes=10)) is None and adaquant_ip(layers(0), Budget()) is None
