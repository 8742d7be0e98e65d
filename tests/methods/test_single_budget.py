"""rd-prune-dp, lgreco-dp, baq, adaquant-ip and greedy equal, or are bounded by, the joint program on one budget."""

import itertools
import random

import numpy as np
import pytest

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.others.single_budget import (
    adaquant_ip,
    baq,
    closed_form_bits,
    greedy,
    lgreco_dp,
    rd_prune_dp,
    uniform,
)
from adaflex.solver.table import Budget, Choice, Cost, CostTable, Encoding, Site


def table(seed: int, sites: int = 8, widths: tuple[int, ...] = (2, 4, 8)) -> CostTable:
    rng = random.Random(seed)
    made, choices = [], []
    for number in range(sites):
        site = Site(f"s{number}", "linear", 1000 * rng.randint(1, 4), 4000)
        made.append(site)
        own = rng.lognormvariate(0.0, 1.0)
        for bits in widths:
            loss = own * 4.0**-bits * rng.uniform(0.8, 1.2)
            choices.append(
                Choice(
                    f"s{number}:{bits}",
                    (site.id,),
                    Cost(site.weight_count * bits // 8, (10,), loss),
                    Encoding(f"w{bits}", bits),
                )
            )
    return CostTable(tuple(made), tuple(choices))


def middle(made: CostTable, share: float = 0.45) -> Budget:
    most = sum(site.weight_count for site in made.sites)
    return Budget(memory_bytes=int(share * most), objective="loss")


@pytest.mark.parametrize("seed", range(50))
def test_integer_program_equals_exhaustive_search(seed: int) -> None:
    made = table(seed, sites=6)
    budget = middle(made)
    by_site = [[c.id for c in made.choices if c.sites == (s.id,)] for s in made.sites]
    plans = (dict(zip((s.id for s in made.sites), ids, strict=True)) for ids in itertools.product(*by_site))
    least = min(totals(made, p).loss for p in plans if not faults(made, budget, p))
    chosen = adaquant_ip(made, budget)
    assert chosen is not None and not faults(made, budget, chosen)
    assert totals(made, chosen).loss <= least * (1 + 1e-3) + 6e-6  # its floor of 1e-6 per layer
    assert allocate(made, budget).value == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_primal_and_dual_agree(seed: int) -> None:
    made = table(seed)
    budget = middle(made)
    plan = allocate(made, budget)
    assert plan.totals is not None
    back = allocate(made, Budget(loss=plan.totals.loss, objective="memory"))
    assert back.totals is not None and budget.memory_bytes is not None
    assert back.totals.peak_bytes <= plan.totals.peak_bytes <= budget.memory_bytes


@pytest.mark.parametrize("seed", range(30))
def test_dynamic_programs_are_near_the_optimum_and_within_budget(seed: int) -> None:
    made = table(seed, sites=24, widths=(2, 3, 4, 6, 8))
    budget = middle(made)
    best = allocate(made, budget).value
    assert best is not None
    for method, slack in ((rd_prune_dp, 0.03), (lgreco_dp, 0.03)):
        chosen = method(made, budget)
        assert chosen is not None and not faults(made, budget, chosen)
        assert best * (1 - 1e-9) <= totals(made, chosen).loss <= best * (1 + slack)
    limit = Budget(loss=2 * best, objective="memory")
    smallest = allocate(made, limit).value
    chosen = lgreco_dp(made, limit)
    assert chosen is not None and smallest is not None and not faults(made, limit, chosen)
    assert smallest <= totals(made, chosen).peak_bytes <= 1.01 * smallest


@pytest.mark.parametrize("seed", range(20))
def test_closed_form_beats_perturbations_and_losses_are_equal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c, n = rng.lognormal(0.0, 1.0, 40), rng.integers(1, 5, 40).astype(float)
    bits = closed_form_bits(c, n, 4.0)
    assert float(bits @ n) == pytest.approx(4.0 * n.sum())
    per_weight = c / n * 4.0**-bits
    assert float(np.ptp(per_weight[bits > 0]) / per_weight[bits > 0].max()) < 1e-9
    least = float(c @ 4.0**-bits)
    for _ in range(50):
        step = rng.normal(0.0, 0.3, 40)
        step -= (step @ n) / n.sum()
        other = np.maximum(bits + step, 0.0)
        other *= (4.0 * n.sum()) / float(other @ n)
        assert least <= float(c @ 4.0**-other) * (1 + 1e-12)


def test_closed_form_holds_components_at_zero() -> None:
    bits = closed_form_bits(np.array([1e-9, 1.0, 1.0]), np.ones(3), 1.0)
    assert bits[0] == 0.0 and bits[1:] == pytest.approx([1.5, 1.5])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("method", [baq, greedy, uniform])
def test_others_hold_the_budget_and_are_bounded_by_the_optimum(seed: int, method: object) -> None:
    made = table(seed, sites=20, widths=(2, 3, 4, 6, 8))
    budget = middle(made)
    chosen = method(made, budget)  # type: ignore[operator]
    assert chosen is not None and not faults(made, budget, chosen)
    best = allocate(made, budget).value
    assert best is not None and totals(made, chosen).loss >= best * (1 - 1e-9)


def test_impossible_is_an_answer() -> None:
    made = table(0)
    for method in (baq, greedy, uniform, rd_prune_dp, lgreco_dp, adaquant_ip):
        assert method(made, Budget(memory_bytes=10)) is None
    assert lgreco_dp(made, Budget(loss=0.0)) is None and lgreco_dp(made, Budget()) is None
    assert rd_prune_dp(made, Budget()) is None and adaquant_ip(made, Budget()) is None and baq(made, Budget()) is None
