"""lim-zd, unified-layer-skip, laptop-diff, single axes and two steps: rules hold, the joint plan is never worse."""

import itertools

import pytest

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.generate import Shape, budgets_of, realistic
from adaflex.solver.others.orders import (
    even_skips,
    layer_knapsack,
    published_skips,
    single_axis,
    two_level,
    two_step,
    unified_layer_skip,
)
from adaflex.solver.table import Budget, Choice, Cost, CostTable, Site

TABLE = realistic(Shape(blocks=4, cuts=3))
STREAMED = realistic(Shape(blocks=2, cuts=1, tiers=True, link=4.0, casts=False))


def longest_run(skipped: list[int]) -> int:
    return max((len(list(g)) for _, g in itertools.groupby(enumerate(skipped), lambda p: p[1] - p[0])), default=0)


@pytest.mark.parametrize(("count", "kept"), [(24, 16), (32, 21), (32, 16), (12, 4)])
def test_even_skips_are_spread(count: int, kept: int) -> None:
    skipped = even_skips(count, kept)
    assert len(skipped) == count - kept and 0 not in skipped and count - 1 not in skipped
    assert longest_run(skipped) <= -(-count // kept)
    assert even_skips(count, count) == []


def test_published_rule_skips_in_one_run_at_mild_speedups() -> None:
    assert longest_run(published_skips(24, 16)) == 8
    assert longest_run(published_skips(32, 21)) == 11


def test_two_level_lies_between_uniform_and_joint() -> None:
    budget = budgets_of(TABLE, 0.3)
    chosen, plan = two_level(TABLE, budget), allocate(TABLE, budget)
    assert chosen is not None and not faults(TABLE, budget, chosen) and plan.value is not None
    assert totals(TABLE, chosen).loss >= plan.value * (1 - 1e-9)


@pytest.mark.parametrize("axis", ["precision", "sparsity", "skip", "placement"])
def test_single_axis_is_bounded_by_joint(axis: str) -> None:
    for table, budget in ((TABLE, budgets_of(TABLE, 0.4)), (STREAMED, budgets_of(STREAMED, 0.7, 1.4))):
        chosen = single_axis(axis)(table, budget)  # type: ignore[arg-type]
        plan = allocate(table, budget, time_limit_s=3, gap=0.02)
        assert plan.value is not None
        if chosen is not None:
            assert not faults(table, budget, chosen)
            assert totals(table, chosen).loss >= (plan.bound or 0.0) * (1 - 1e-9)
            taken = {c.axis for c in table.choices if c.id in set(chosen.values())}
            assert taken <= {axis, "keep"}


def test_two_step_is_bounded_by_joint() -> None:
    budget = budgets_of(STREAMED, 0.3, 0.9)
    chosen, plan = two_step(STREAMED, budget), allocate(STREAMED, budget, time_limit_s=3, gap=0.02)
    assert chosen is not None and not faults(STREAMED, budget, chosen)
    assert plan.bound is not None and totals(STREAMED, chosen).loss >= plan.bound * (1 - 1e-9)
    assert two_step(STREAMED, Budget()) is None


def blocks(count: int) -> CostTable:
    sites = tuple(Site(f"b{i}", "linear", 100, 400) for i in range(count))
    keep = [Choice(f"b{i}:keep", (f"b{i}",), Cost(100, (10,), 0.0), axis="keep") for i in range(count)]
    skip = [Choice(f"b{i}:skip", (f"b{i}",), Cost(0, (0,), (i * 7 % 5 + 1) / 10), axis="skip") for i in range(count)]
    return CostTable(sites, (*keep, *skip))


def test_knapsack_over_blocks_equals_exhaustive_search() -> None:
    table, budget = blocks(8), Budget(memory_bytes=500)
    chosen = layer_knapsack(table, budget)
    least = min(
        sum((i * 7 % 5 + 1) / 10 for i in out) for k in (3, 4, 5) for out in itertools.combinations(range(8), k)
    )
    assert chosen is not None and totals(table, chosen).loss == pytest.approx(least)
    even = unified_layer_skip(table, budget)
    assert even is not None and not faults(table, budget, even) and totals(table, even).loss >= least
