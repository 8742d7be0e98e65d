"""lgreco-dp: least bytes within an error, never above it, never larger than the uniform default, within 1 %."""

import pytest

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.others.single_budget import lgreco_dp
from adaflex.solver.table import Budget
from tests.methods.tables import layers, middle, rows


@pytest.mark.parametrize("seed", range(30))
def test_at_the_error_of_uniform_4_bits(seed: int) -> None:
    made = layers(seed, sites=24, widths=(2, 3, 4, 6, 8))
    default = {c.sites[0]: c.id for row in rows(made) for c in row if c.encoding is not None and c.encoding.bits == 4}
    limit = Budget(loss=totals(made, default).loss, objective="memory")
    chosen, smallest = lgreco_dp(made, limit), allocate(made, limit).value
    assert chosen is not None and smallest is not None and not faults(made, limit, chosen)
    assert smallest <= totals(made, chosen).peak_bytes <= 1.01 * smallest
    assert totals(made, chosen).peak_bytes <= totals(made, default).peak_bytes


@pytest.mark.parametrize("seed", range(10))
def test_bisected_for_bytes_it_is_near_the_optimum(seed: int) -> None:
    made = layers(seed, sites=24, widths=(2, 3, 4, 6, 8))
    budget = middle(made)
    chosen, best = lgreco_dp(made, budget), allocate(made, budget).value
    assert chosen is not None and best is not None and not faults(made, budget, chosen)
    assert best * (1 - 1e-9) <= totals(made, chosen).loss <= best * 1.03


def test_impossible_is_an_answer() -> None:
    made = layers(0)
    assert lgreco_dp(made, Budget(memory_bytes=10)) is None
    assert lgreco_dp(made, Budget(loss=0.0)) is None and lgreco_dp(made, Budget()) is None
