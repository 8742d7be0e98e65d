"""lim-zd: with sites in order of sensitivity the share moved to the low width costs least, and the joint plan less."""

import random

import numpy as np
import pytest

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.generate import Shape, budgets_of, realistic
from adaflex.solver.others.orders import two_level
from tests.methods.tables import layers, middle, rows


def area(losses: list[tuple[float, float]], order: list[int]) -> float:
    """Mean loss over all counts of sites lowered, in an order."""
    kept = sum(high for high, _ in losses)
    found = [kept]
    for site in order:
        found.append(found[-1] + losses[site][1] - losses[site][0])
    return float(np.mean(found))


@pytest.mark.parametrize("seed", range(10))
def test_sensitivity_order_beats_random_and_reversed_order(seed: int) -> None:
    made = layers(seed, sites=24, widths=(2, 8))
    losses = [(row[1].cost.loss, row[0].cost.loss) for row in rows(made)]
    order = sorted(range(24), key=lambda k: losses[k][1] - losses[k][0])
    rng = random.Random(seed)
    mixed = [area(losses, rng.sample(order, 24)) for _ in range(20)]
    assert area(losses, order) < min(mixed) and max(mixed) < area(losses, order[::-1])


@pytest.mark.parametrize("seed", range(10))
def test_two_levels_follow_that_order_and_fill_the_bytes(seed: int) -> None:
    made = layers(seed, sites=12, widths=(2, 8), unit=1000)
    budget = middle(made, 0.6)
    chosen = two_level(made, budget)
    assert chosen is not None and not faults(made, budget, chosen)
    gain = {row[0].sites[0]: row[0].cost.loss - row[1].cost.loss for row in rows(made)}
    high = {site for site, choice in chosen.items() if choice.endswith(":8")}
    assert 0 < len(high) < 12 and min(gain[s] for s in high) >= max(gain[s] for s in gain if s not in high)
    following = max((s for s in gain if s not in high), key=lambda s: gain[s])
    assert faults(made, budget, chosen | {following: f"{following}:8"})  # no further one fits


def test_the_joint_plan_is_never_worse() -> None:
    table = realistic(Shape(blocks=4, cuts=3))
    for share in (0.2, 0.3, 0.4, 0.6):
        budget = budgets_of(table, share)
        chosen, plan = two_level(table, budget), allocate(table, budget)
        assert chosen is not None and not faults(table, budget, chosen) and plan.bound is not None
        assert totals(table, chosen).loss >= plan.bound * (1 - 1e-9)
