"""Cost tables as networks: equal to brute force, bounds below the optimum, large tables with pair terms."""

import itertools
import math
import random
import time
from dataclasses import replace

import pytest

from adaflex.solver import decide as deciding
from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.decide import Limits, rounding, verified
from adaflex.solver.generate import Shape, budgets_of, every_cover, realistic, small_budget, small_table
from adaflex.solver.objective import resolve, value_of
from adaflex.solver.pairwise.choose import Patience
from adaflex.solver.pairwise.joint import fits, search
from adaflex.solver.table import CostTable, Pair


@pytest.mark.parametrize("part", range(4))
def test_small_tables_as_networks_equal_brute_force(part: int) -> None:
    states = []
    for seed in range(part * 100, part * 100 + 100):
        table = small_table(seed)
        wish = resolve(table, small_budget(table, seed))
        if not fits(table, wish):
            continue
        slack = rounding(table, wish)
        patience = Patience(time.perf_counter() + 20.0, 12)
        made = search(table, wish, (), lambda c, t=table, w=wish: verified(t, w, c), patience, slack)
        assert made is not None
        found, choices = made
        values = [
            value_of(totals(table, chosen), wish.objective, wish.budget)
            for chosen in every_cover(table)
            if not faults(table, wish.budget, chosen)
        ]
        best = min(values, default=None)
        states.append(found.status)
        if best is None:
            assert choices is None, seed
            continue
        assert found.bound <= best + 1e-9 * abs(best), seed
        whole = len(table.phases) if wish.objective == "latency" else 0  # each phase is rounded up to a nanosecond
        assert choices is not None and math.isclose(found.value, best, rel_tol=1e-9, abs_tol=1e-12 + whole), seed
        assert not faults(table, wish.budget, choices)
    assert states.count("optimal") >= 5


def paired(blocks: int) -> CostTable:
    table = replace(realistic(Shape(blocks=blocks, casts=False), 1), casts=())
    rng = random.Random(1)
    by_site = {site.id: [c for c in table.choices if c.sites == (site.id,)] for site in table.sites}
    pairs = []
    for block in table.blocks:
        for one, other in itertools.pairwise(block):
            for a in by_site[one][:12]:
                for b in by_site[other][:12]:
                    pairs.append(Pair(a.id, b.id, rng.uniform(-0.3, 0.5) * math.sqrt(a.cost.loss * b.cost.loss)))
    return replace(table, pairs=tuple(pairs), default_loss=0.0)


def test_a_large_table_with_pair_terms_is_searched_as_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    table = paired(4)
    budget = replace(budgets_of(table, 0.35, 0.6), loss=None, objective="loss")
    monkeypatch.setattr(deciding, "MOST_PAIRED", 0)
    plan = allocate(table, budget, limits=Limits(time_s=15.0))
    assert plan.value is not None and plan.bound is not None and not faults(table, plan.budget, plan.choices)
    assert plan.bound <= plan.value * (1 + 1e-9)
    monkeypatch.setattr(deciding, "search", lambda *_: None)
    without = allocate(table, budget, limits=Limits(time_s=15.0))
    assert without.value is None or plan.value < without.value
    assert without.bound is not None and plan.bound > without.bound
    monkeypatch.setattr(deciding, "MOST_PAIRED", 100_000)
    program = allocate(table, budget, limits=Limits(time_s=15.0))
    assert program.value is not None and plan.value <= program.value * 1.02
    assert program.bound is not None and plan.bound <= program.value * (1 + 1e-9)
    print(
        plan.status, plan.value, plan.bound, plan.seconds, without.value, program.status, program.value, program.bound
    )
