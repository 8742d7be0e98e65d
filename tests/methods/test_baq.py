"""baq: bits in closed form beat every perturbation, lose the same everywhere, and gain GM/AM over uniform."""

import numpy as np
import pytest

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.others.single_budget import baq, closed_form_bits, uniform
from adaflex.solver.table import Budget
from tests.methods.tables import layers, middle


@pytest.mark.parametrize("seed", range(20))
def test_closed_form_beats_perturbations_and_losses_are_equal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c, n = rng.lognormal(0.0, 1.0, 40), rng.integers(1, 5, 40).astype(float)
    bits = closed_form_bits(c, n, 4.0)
    assert float(bits @ n) == pytest.approx(4.0 * n.sum())
    per_weight = c / n * 4.0**-bits
    assert float(np.ptp(per_weight[bits > 0]) / per_weight[bits > 0].max()) < 1e-9
    least = float(c @ 4.0**-bits)
    for _ in range(1000):
        step = rng.normal(0.0, 0.3, 40)
        step -= (step @ n) / n.sum()
        other = np.maximum(bits + step, 0.0)
        other *= (4.0 * n.sum()) / float(other @ n)
        assert least <= float(c @ 4.0**-other) * (1 + 1e-12)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_the_gain_over_uniform_is_the_geometric_over_the_arithmetic_mean(sigma: float) -> None:
    c = np.random.default_rng(1).lognormal(0.0, sigma, 64)
    bits = closed_form_bits(c, np.ones(64), 6.0)
    assert bits.min() > 0.0
    gain = float(c @ 4.0**-bits) / float(c.sum() * 4.0**-6.0)
    assert gain == pytest.approx(float(np.exp(np.log(c).mean()) / c.mean()), rel=1e-9)


def test_components_below_zero_are_held_there_and_the_rest_solved_again() -> None:
    bits = closed_form_bits(np.array([1e-9, 1.0, 1.0]), np.ones(3), 1.0)
    assert bits[0] == 0.0 and bits[1:] == pytest.approx([1.5, 1.5])


@pytest.mark.parametrize("seed", range(20))
def test_whole_bits_hold_the_exact_bytes_between_uniform_and_optimum(seed: int) -> None:
    made = layers(seed, sites=20, widths=(2, 3, 4, 6, 8))
    budget = middle(made)
    chosen, plain = baq(made, budget), uniform(made, budget)
    best = allocate(made, budget).value
    assert chosen is not None and plain is not None and best is not None and not faults(made, budget, chosen)
    assert best * (1 - 1e-9) <= totals(made, chosen).loss <= totals(made, plain).loss


def test_impossible_is_an_answer() -> None:
    assert baq(layers(0), Budget(memory_bytes=10)) is None and baq(layers(0), Budget()) is None
