"""rd-prune-dp: dynamic programming over bytes gives the integer program's own objective, never more bytes."""

import pytest

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.others.single_budget import rd_prune_dp, uniform
from adaflex.solver.table import Budget
from tests.methods.tables import layers, middle


@pytest.mark.parametrize("seed", range(20))
def test_where_sizes_are_multiples_of_its_unit_it_equals_the_program(seed: int) -> None:
    made = layers(seed, sites=12, widths=(2, 4, 6, 8), unit=4)  # bytes below 65,536: counted one by one
    budget = middle(made)
    chosen = rd_prune_dp(made, budget)
    assert chosen is not None and totals(made, chosen).loss == pytest.approx(allocate(made, budget).value, rel=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_with_rounding_it_is_near_and_never_above_the_bytes(seed: int) -> None:
    made = layers(seed, sites=24, widths=(2, 3, 4, 6, 8))
    budget = middle(made)
    chosen, plain, best = rd_prune_dp(made, budget), uniform(made, budget), allocate(made, budget).value
    assert chosen is not None and plain is not None and best is not None and not faults(made, budget, chosen)
    assert best * (1 - 1e-9) <= totals(made, chosen).loss <= min(best * 1.005, totals(made, plain).loss)


def test_impossible_is_an_answer() -> None:
    assert rd_prune_dp(layers(0), Budget(memory_bytes=10)) is None and rd_prune_dp(layers(0), Budget()) is None
