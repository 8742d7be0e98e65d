"""The examples run whole, on a model that is planned in seconds instead of the real encoder."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.surface.tiny_model import calls, model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("02_offline_artifact", "03_pins_axes_saved_plan", "sentences"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["02_offline_artifact", "03_pins_axes_saved_plan"])
def test_it_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "subject", lambda: (model(), calls(1)[0], calls(8)))
    monkeypatch.setattr(module, "FIRST", "up", raising=False)
    result = module.main(loss=0.02)
    out = capsys.readouterr().out
    if name.startswith("02"):
        assert 0 < result <= 0.03 and "imported to run it: []" in out
    else:
        assert result == sorted(result) and len(result) >= 1  # less memory never costs less loss
        assert "stall: allowed" in out and "skip mlp" in out
        assert "applied again without scoring" in out and "w4" not in out.partition("objective")[0].replace("w4a8", "")
