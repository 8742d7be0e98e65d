"""unified-layer-skip: evenly spread skips come one by one where the published rule skips in one run."""

import itertools

import pytest

from adaflex.solver.check import faults, totals
from adaflex.solver.others.orders import even_skips, published_skips, unified_layer_skip
from adaflex.solver.table import Budget
from tests.methods.tables import blocks, skip_loss


def longest_run(skipped: list[int]) -> int:
    return max((len(list(g)) for _, g in itertools.groupby(enumerate(skipped), lambda p: p[1] - p[0])), default=0)


@pytest.mark.parametrize(("count", "kept"), [(24, 16), (32, 21), (32, 16), (12, 4)])
def test_even_skips_are_spread(count: int, kept: int) -> None:
    skipped = even_skips(count, kept)
    assert len(skipped) == count - kept and 0 not in skipped and count - 1 not in skipped
    assert longest_run(skipped) <= -(-count // kept)
    assert longest_run(skipped) == 1 or kept <= count / 2
    assert even_skips(count, count) == []


def test_the_published_rule_skips_in_one_run_at_mild_speedups() -> None:
    assert longest_run(published_skips(24, 16)) == 8
    assert longest_run(published_skips(32, 21)) == 11


def test_the_published_rule_keeps_first_last_and_multiples_of_its_interval() -> None:
    assert [k for k in range(24) if k not in published_skips(24, 5)] == [0, 6, 12, 18, 23]


@pytest.mark.parametrize("kept", range(2, 9))
def test_the_set_is_an_even_one_within_the_bytes(kept: int) -> None:
    table, budget = blocks(9), Budget(memory_bytes=100 * kept)
    chosen = unified_layer_skip(table, budget)
    assert chosen is not None and not faults(table, budget, chosen)
    skipped = [int(s[1:]) for s, c in chosen.items() if c.endswith("skip")]
    fitting = [even_skips(9, count) for count in range(2, kept + 1)]
    assert skipped in fitting
    assert totals(table, chosen).loss == pytest.approx(min(sum(map(skip_loss, out)) for out in fitting))
