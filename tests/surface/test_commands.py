"""The commands end to end on a tiny model: exit codes, files, and JSON that follows the documented schemas."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from adaflex.cli import main
from adaflex.commands.schemas import SCHEMAS
from adaflex.handle import load
from adaflex.reading import read_calls
from tests.surface.tiny_model import calls, model

ROOT = Path(__file__).resolve().parents[2]
TINY = f"{Path(__file__).parent / 'tiny_model.py'}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One compilation that all tests read: artifact, saved plan, report, calls, printed JSON."""
    folder = tmp_path_factory.mktemp("made")
    paths = {name: folder / name for name in ("tiny.adaflex", "plan.json", "report.html", "calls.npz")}
    np.savez(paths["calls.npz"], **{f"{n}.x": each["x"].numpy() for n, each in enumerate(calls(3))})
    words = ["compile", f"{TINY}:tiny", "-o", str(paths["tiny.adaflex"]), "--save-plan", str(paths["plan.json"])]
    words += [
        "--report",
        str(paths["report.html"]),
        "--memory",
        "80KiB",
        "--loss",
        "0.02",
        "--pin",
        "up=bf16",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "adaflex", *words, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {**paths, "printed": json.loads(done.stdout), "folder": folder}


def asked(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """Run a command with --json in this process; its answer, checked against the schema."""
    assert main([*map(str, words), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    jsonschema.validate(value, SCHEMAS[str(words[0])])
    return dict(value)


def test_compile_prints_its_plan_and_keeps_to_pins_and_budgets(made: dict[str, Any]) -> None:
    printed = made["printed"]
    jsonschema.validate(printed, SCHEMAS["compile"])
    assert {layer["layer"]: layer["choice"] for layer in printed["layers"]}["up.weight"] == "bf16"
    assert printed["verdict"]["held"]
    measured = {each["name"]: each["measured"] for each in printed["verdict"]["promises"]}
    assert measured["memory"] <= 80 * 1024 and measured["loss"] <= 0.02**2
    assert printed["artifact"]["size_bytes"] == made["tiny.adaflex"].stat().st_size


def test_the_artifact_computes_the_model(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    out = made["folder"] / "out.npz"
    value = asked(capsys, "run", made["tiny.adaflex"], made["calls.npz"], "-o", out)
    assert [row["outputs"][0]["shape"] for row in value["calls"]] == [[4, 64]] * 3
    with np.load(out) as found:
        for number, call in enumerate(calls(3)):
            wanted = model()(call["x"])
            error = np.linalg.norm(found[f"{number}.output"] - wanted.numpy()) / wanted.norm()
            assert 0 < error < 0.03


@pytest.mark.parametrize("ending", [".json", ".safetensors", ".npz"])
def test_every_format_gives_the_same_outputs(
    made: dict[str, Any], capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    call, path, out = calls(1)[0], made["folder"] / f"in{ending}", made["folder"] / f"out{ending}"
    from adaflex.reading import write_tensors

    write_tensors(path, call)
    assert main(["run", str(made["tiny.adaflex"]), str(path), "-o", str(out)]) == 0
    assert "call 0" in capsys.readouterr().out
    (found,) = read_calls(out)
    assert torch.equal(found["output"], load(made["tiny.adaflex"])(**call))


def test_inspect_tells_what_is_inside(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    value = asked(capsys, "inspect", made["tiny.adaflex"], "--constants")
    assert value["digest"] == made["printed"]["artifact"]["digest"] and not value["native"]
    assert value["parameters"] == ["x"]
    assert {"up.weight", "down.weight"} <= {each["name"] for each in value["constants"]}
    assert main(["inspect", str(made["tiny.adaflex"])]) == 0
    assert value["digest"] in capsys.readouterr().out


def test_explain_gives_every_choice_of_a_layer(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    whole = asked(capsys, "explain", made["plan.json"])
    assert whole["table_digest"] == made["printed"]["table_digest"]
    value = asked(capsys, "explain", made["plan.json"], "down")
    assert value["layer"] == "down.weight" and value["columns"][0]["why"] == "taken"
    assert main(["explain", str(made["plan.json"]), "dwon"]) == 2
    assert "down.weight" in capsys.readouterr().err


def test_explain_needs_no_torch(made: dict[str, Any]) -> None:
    code = "import sys; sys.modules['torch'] = None; from adaflex.cli import main; raise SystemExit(main(sys.argv[1:]))"
    words = ["explain", str(made["plan.json"]), "up"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "bf16" in done.stdout, done.stderr


def test_verify_measures_here(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    value = asked(capsys, "verify", made["tiny.adaflex"], "--model", f"{TINY}:tiny")
    figures = {each["name"]: each["measured"] for each in value["verdict"]["promises"]}
    assert figures["loss"] is not None and figures["memory"] > 0 and value["process_bytes"] > 0
    assert value["same_machine"]


def test_verify_finds_a_broken_promise(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The same artifact judged against a model with other weights: its loss is far from what was promised."""
    assert main(["verify", str(made["tiny.adaflex"]), "--model", f"{TINY}:other"]) == 4
    assert "BROKEN" in capsys.readouterr().out


def test_a_saved_plan_is_applied_without_scoring(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    again = made["folder"] / "again.adaflex"
    value = asked(capsys, "compile", f"{TINY}:tiny", "-o", again, "--plan", made["plan.json"])
    assert [each["choice"] for each in value["layers"]] == [each["choice"] for each in made["printed"]["layers"]]
    first, second = load(made["tiny.adaflex"]), load(again)
    assert torch.equal(first.executor.weights, second.executor.weights)
    assert main(["plan", f"{TINY}:other", "--plan", str(made["plan.json"])]) == 2
    assert "other weights" in capsys.readouterr().err


def test_a_saved_plan_is_held_to_what_was_asked_not_to_a_lowered_budget(
    made: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads(made["plan.json"].read_text())
    assert whole["asked_loss"] == pytest.approx(0.02**2)
    whole["plan"]["budget"]["loss"] = 1e-9  # as where sums promised too much
    path = made["folder"] / "lowered.json"
    path.write_text(json.dumps(whole))
    value = asked(capsys, "compile", f"{TINY}:tiny", "-o", made["folder"] / "lowered.adaflex", "--plan", path)
    assert value["verdict"]["held"]
    whole["asked_loss"] = "little"
    path.write_text(json.dumps(whole))
    assert main(["plan", f"{TINY}:tiny", "--plan", str(path)]) == 2
    assert "asked_loss" in capsys.readouterr().err


def test_a_plan_apart_from_its_table_is_refused(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads(made["plan.json"].read_text())
    whole["table"]["baseline_bytes"] = 1
    path = made["folder"] / "edited.json"
    path.write_text(json.dumps(whole))
    assert main(["plan", f"{TINY}:tiny", "--plan", str(path)]) == 2
    assert "digest" in capsys.readouterr().err


def test_the_report_is_one_page_of_its_own(made: dict[str, Any]) -> None:
    text = made["report.html"].read_text()
    outside = re.sub(r'xmlns="[^"]*"', "", text)
    assert not re.search(r"https?:|<script|<link|@import|\burl\(|\bsrc=", outside)
    assert text.count("<svg") >= 2 and "up.weight" in text and "this plan" in text
    assert re.search(r"slot \d+", text)


def test_doctor_finds_nothing_broken(capsys: pytest.CaptureFixture[str]) -> None:
    value = asked(capsys, "doctor")
    names = {each["name"] for each in value["findings"]}
    assert value["ok"] and {"processor", "torch", "capture", "cache", "solver"} <= names


def test_doctor_names_the_way_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ADAFLEX_CXX", "no-such-compiler")
    monkeypatch.setenv("ADAFLEX_ISA", "mmx")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "install g++" in out and "portable" in out


def test_cache_shows_and_clears_only_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADAFLEX_CACHE_DIR", str(tmp_path))
    for name in ("scores/a.json", "encoded/c.npz", "prices/d.json", "native/b.so", "streams/e.bin", "mine.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("12345")
    value = asked(capsys, "cache")
    assert [(part["files"], part["size_bytes"]) for part in value["parts"].values()] == [(1, 5)] * 5
    assert main(["cache", "clear", "--only", "scores"]) == 0
    assert not (tmp_path / "scores/a.json").exists() and (tmp_path / "native/b.so").exists()
    assert main(["cache", "clear"]) == 0
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["mine.txt"]


def test_every_command_has_help() -> None:
    from adaflex.cli import COMMANDS

    for name in COMMANDS:
        assert main([name, "--help"]) == 0


def test_loading_imports_neither_solver_nor_passes(made: dict[str, Any]) -> None:
    code = (
        "import sys, adaflex, torch; p = adaflex.load(sys.argv[1]); p(torch.ones(4, 64)); "
        "bad = ('pulp', 'highspy', 'networkx', 'adaflex.solver', 'adaflex.passes.capture', 'adaflex.passes.score'); "
        "print([m for m in bad if m in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(made["tiny.adaflex"])]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]"
