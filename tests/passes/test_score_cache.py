"""The score cache: kept between runs, shared by processes, never mixed up."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from adaflex.errors import CacheError
from adaflex.passes.calibration import Calibration, samples
from adaflex.passes.export_door import from_export
from adaflex.passes.score_cache import Key, ScoreCache, clear, entries, key_of

KEY = Key(model="m", calibration="c", loss="error")


def test_kept_and_listed_and_cleared(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path, KEY)
    assert cache.get("a") is None
    cache.put("a", 0.1 + 0.2)
    cache.put("b", 1e-300)
    again = ScoreCache(tmp_path, KEY)
    assert (again.get("a"), again.get("b")) == (0.1 + 0.2, 1e-300)
    assert ScoreCache(tmp_path, replace(KEY, loss="kl")).get("a") is None
    (entry,) = entries(tmp_path)
    assert (entry.key, entry.count) == (KEY, 2) and entry.size_bytes > 0
    assert clear(tmp_path) == 1 and entries(tmp_path) == [] and clear(tmp_path) == 0


@pytest.mark.parametrize("field", ["model", "calibration", "loss", "repair", "torch", "format"])
def test_a_foreign_entry_is_refused_by_field(tmp_path: Path, field: str) -> None:
    cache = ScoreCache(tmp_path, KEY)
    cache.put("a", 1.0)
    content = json.loads(cache.path.read_text())
    content["key"][field] = "other"
    cache.path.write_text(json.dumps(content))
    with pytest.raises(CacheError, match=f"has {field} 'other'"):
        ScoreCache(tmp_path, KEY)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": {}, "losses": {"a": "x"}}', '{"key": 1, "losses": {}}'])
def test_a_damaged_entry_is_refused_and_not_listed(tmp_path: Path, text: str) -> None:
    cache = ScoreCache(tmp_path, KEY)
    cache.path.write_text(text)
    with pytest.raises(CacheError, match="is damaged"):
        ScoreCache(tmp_path, KEY)
    assert entries(tmp_path) == []


def test_an_unusable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be used"):
        ScoreCache(tmp_path / "file", KEY)


def test_two_processes_share_one_file(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from adaflex.passes.score_cache import Key, ScoreCache\n"
        "cache = ScoreCache(Path(sys.argv[1]), Key(model='m', calibration='c', loss='error'))\n"
        "for number in range(40): cache.put(sys.argv[2] + str(number), float(number))"
    )
    started = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name]) for name in "ab"]
    assert [each.wait(120) for each in started] == [0, 0]
    losses = ScoreCache(tmp_path, KEY).losses
    assert losses == {name + str(number): float(number) for name in "ab" for number in range(40)}
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_key_follows_weights_and_data() -> None:
    x = torch.randn(4, 8)
    model = nn.Linear(8, 8).requires_grad_(False)

    def key(data: torch.Tensor, loss: str = "error") -> Key:
        capture, weights = from_export(model, (x,))
        return key_of(capture, weights, samples(capture, Calibration([data])), loss)

    first = key(x)
    assert key(x) == first and key(x.clone()) == first
    assert key(x + 1).calibration != first.calibration and key(x + 1).model == first.model
    assert key(x, "kl") != first
    model.weight[0, 0] += 1
    assert key(x).model != first.model and key(x).calibration == first.calibration
