"""Prices kept between runs: of this machine and compiler only, and only calm ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from adaflex import pricing, tabling
from adaflex.passes.menu import Machine
from adaflex.price_cache import PriceCache
from adaflex.pricing import Price, Spec
from adaflex.solver.table import Encoding

HERE = Machine("avx2", 2)
SPEC = Spec(Encoding("bf16", 16), 64, 128, 8)


def test_calm_prices_are_kept_for_this_machine(tmp_path: Path) -> None:
    noisy = Spec(Encoding("fp32"), 64, 128, 8)
    PriceCache(tmp_path, HERE).put({SPEC: Price(1200, 0.05), noisy: Price(900, 0.9)})
    kept = PriceCache(tmp_path, HERE)
    assert kept.get(SPEC) == Price(1200, 0.05) and kept.get(noisy) is None
    assert PriceCache(tmp_path, Machine("avx2", 1)).get(SPEC) is None


def test_a_damaged_file_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = PriceCache(tmp_path, HERE)
    cache.put({SPEC: Price(1200, 0.05)})
    cache.path.write_text('{"x": [1]}')
    assert PriceCache(tmp_path, HERE).get(SPEC) is None and "measured again" in caplog.text


def test_what_is_compared_is_measured_in_the_same_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Siblings together are held against each alone: kept prices of these are of another hour, and are not used."""
    monkeypatch.setenv("ADAFLEX_CACHE_DIR", str(tmp_path))
    asked: list[set[Spec]] = []

    def timed(specs: Sequence[Spec], here: Machine, progress: object) -> dict[Spec, Price]:
        asked.append(set(specs))
        return {spec: Price(100 * len(asked), 0.0) for spec in specs}

    monkeypatch.setattr(tabling, "price", timed)
    other, narrow = replace(SPEC, k=32), replace(SPEC, n=32)
    together = replace(SPEC, others=(32, 128))
    tabling.prices_of({SPEC, other, narrow}, HERE, lambda done, total: None)
    found = tabling.prices_of({SPEC, other, narrow, together}, HERE, lambda done, total: None)
    assert asked == [{SPEC, other, narrow}, {SPEC, narrow, together}]
    assert {spec: price.time_ns for spec, price in found.items()} == {SPEC: 200, other: 100, narrow: 200, together: 200}
    again = tabling.prices_of({SPEC, other, narrow, together}, HERE, lambda done, total: None)
    assert again == found and asked[2:] in ([], [set()])


def test_what_was_disturbed_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[list[Price]] = []

    def timed(segments: object, progress: object) -> list[Price]:
        tries.append([Price(90, 0.3), Price(7, 0.0)] if tries else [Price(100, 0.1), Price(300, 0.9)])
        return tries[-1]

    monkeypatch.setattr(pricing, "_timed", timed)
    other = replace(SPEC, n=64)
    assert pricing.price([SPEC, other], HERE) == {SPEC: Price(100, 0.1), other: Price(7, 0)} and len(tries) == 2
    tries.clear()
    monkeypatch.setattr(pricing, "CALM", -1.0)  # never calm
    pricing.price([SPEC, other], HERE)
    assert len(tries) == pricing.TRIES
