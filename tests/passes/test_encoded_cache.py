"""Repaired tensors kept between runs: the same again, or made again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.calibration import Calibration, samples
from adaflex.passes.encoded_cache import EncodedCache
from adaflex.passes.encoder import Encoder
from adaflex.passes.export_door import from_export
from adaflex.passes.menu import Encoded, Machine
from adaflex.passes.score_cache import Key
from adaflex.passes.sites import find_sites
from adaflex.solver.table import Encoding

KEY = Key(model="m", calibration="c", loss="error")
ENCODING = Encoding("w4", 4, 32, rounding="compensated")


def stored() -> Encoded:
    parts = {"codes": torch.arange(12, dtype=torch.int8).reshape(3, 4), "scale": torch.rand(3, 1).bfloat16()}
    return Encoded(ENCODING, (3, 4), parts)


def test_what_is_kept_comes_back_bit_for_bit(tmp_path: Path) -> None:
    EncodedCache(tmp_path, KEY).put("a.weight", stored())
    cache = EncodedCache(tmp_path, KEY)
    found = cache.get("a.weight", ENCODING)
    assert found is not None and found.shape == (3, 4) and found.encoding == ENCODING
    assert torch.equal(found.parts["codes"], stored().parts["codes"]) and found.parts["scale"].dtype is torch.bfloat16
    assert cache.get("b.weight", ENCODING) is None and cache.get("a.weight", Encoding("w4", 4, 64)) is None
    assert EncodedCache(tmp_path, Key("other", "c", "error")).get("a.weight", ENCODING) is None


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nonsense", None])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    EncodedCache(tmp_path, KEY).put("a.weight", stored())
    (path,) = (tmp_path / "encoded").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert EncodedCache(tmp_path, KEY).get("a.weight", ENCODING) is None
    assert "made again" in caplog.text


def test_a_second_encoder_repairs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8)).eval().requires_grad_(False)
    calls = Calibration([torch.randn(4096, 32) for _ in range(2)])
    capture, weights = from_export(model, calls.batches[0].args)
    sites = find_sites(capture, weights, MENU, Machine("portable", 1))
    chosen: dict[str, Any] = {
        name: next(each for each in offers if each.rounding == "compensated") for name, offers in sites.offers.items()
    }
    data = samples(capture, calls)
    first = Encoder(capture, weights, sites, MENU, data, EncodedCache(tmp_path, KEY)).encoded(chosen)
    again = Encoder(capture, weights, sites, MENU, data, EncodedCache(tmp_path, KEY))
    monkeypatch.setattr(again, "cursor", lambda _: pytest.fail("the model was run again"))
    for site, encoded in again.encoded(chosen).items():
        assert all(torch.equal(part, first[site].parts[name]) for name, part in encoded.parts.items())
