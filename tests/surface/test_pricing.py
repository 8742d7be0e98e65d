"""What a kernel is said to take is its own time: entering a segment is no part of it, nor is what came before."""

from collections.abc import Sequence

import pytest

from adaflex import pricing
from adaflex.machine import cpu, isa
from adaflex.native import compiler
from adaflex.passes.menu import Machine
from adaflex.pricing import Price, Spec
from adaflex.solver.table import Encoding

SIZES = ((64, 64), (256, 64), (64, 256))


def prices(rounds: list[list[int]], monkeypatch: pytest.MonkeyPatch, probes: Sequence[int] = ()) -> list[Price]:
    """The prices of rounds' segments, given what the probes took: all the same, if nothing is said."""
    monkeypatch.setattr(pricing, "ROUNDS", len(rounds))
    left, taken = iter(rounds), iter(probes or [1000] * len(rounds))
    monkeypatch.setattr(pricing, "_probe", lambda: next(taken))
    return pricing._timed(lambda: next(left), None)


def test_the_first_segment_only_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = prices([[15_000, 4000, 6000, 9000]] * 5, monkeypatch)
    assert found == [Price(2000, 0.0), Price(5000, 0.0)]


def test_one_slow_entry_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = prices([[15_000, 50_000, 6000]] + [[15_000, 4000, 6000]] * 4, monkeypatch)
    assert found == [Price(2000, 0.0)]


def test_one_undisturbed_entry_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where only a round with a slow entry is calm."""
    found = prices([[15_000, 40_000, 6000], [15_000, 4000, 90_000]], monkeypatch, (1000, 5000))
    assert found == [Price(2000, 0.0)]


def test_less_than_nothing_is_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = prices([[15_000, 40_000, 6000]] * 5, monkeypatch)
    assert found.time_ns == 1 and not found.calm and found.spread < float("inf")  # a table holds finite numbers


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_small_kernels_have_prices() -> None:
    """No core does a thousand multiply-adds in a nanosecond."""
    specs = [Spec(Encoding(family, bits), k, n, 64) for family, bits in (("fp32", 32), ("w8a8", 8)) for k, n in SIZES]
    found = pricing.price(specs, Machine(isa(), 1, "cpu", cpu()[0]))
    for spec, price in found.items():
        assert price.time_ns * 1000 >= spec.k * spec.n * spec.rows, (spec, price)
