"""Prices kept between runs: of this machine and compiler only, and only calm ones."""

from pathlib import Path

import pytest

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
