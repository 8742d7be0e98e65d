"""One test for each kind of bad input, and for the words of the error: the field, the value, the way out."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adaflex
from adaflex.api import ModelPlan
from adaflex.cli import main
from adaflex.errors import BudgetError, BuildError, CacheError, CalibrationError, CaptureError, OptionError
from tests.surface.tiny_model import calls, model

TINY = str(Path(__file__).resolve().parents[1] / "surface" / "tiny_model.py")


@pytest.fixture
def before_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was scored")

    monkeypatch.setattr("adaflex.planning.score", refuse)


def poisoned(value: float) -> nn.Module:
    made = model()
    with torch.no_grad():
        made.up.weight[3, 5] = value
    return made


# --- NaN or Inf in a weight ---


def test_a_weight_with_nan_keeps_its_form_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    from adaflex.allowed import check_finite

    sites = sites_of(poisoned(float("nan")))
    check_finite(sites, strict=False)
    assert "up.weight" in caplog.text and "NaN" in caplog.text
    assert sites.offers["up.weight"] == (sites.keep["up.weight"],) and len(sites.offers["down.weight"]) > 1


@pytest.mark.usefixtures("before_scoring")
def test_a_weight_with_inf_is_an_error_under_strict() -> None:
    with pytest.raises(OptionError, match=r"up\.weight.*strict"):
        adaflex.plan(poisoned(float("inf")), calls(), strict=True)


def sites_of(made: nn.Module) -> Any:
    from adaflex.codegen.kernels.menu import MENU
    from adaflex.passes.export_door import from_export
    from adaflex.passes.menu import Machine
    from adaflex.passes.sites import find_sites

    capture, weights = from_export(made, (), calls(1)[0])
    return find_sites(capture, weights, MENU, Machine("portable", 1))


# --- errors before scoring ---


class Constant(nn.Module):
    """Answers the same to everything."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x) * 0


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no calls": (lambda: adaflex.plan(model(), [], loss=0.1), CalibrationError, "no calls"),
    "misshapen": (
        lambda: adaflex.plan(model(), calls(1)[0], calibration=[{"x": torch.zeros(4, 65)}]),
        CalibrationError,
        r"'x' of call 0.*65",
    ),
    "missing argument": (
        lambda: adaflex.plan(model(), calls(1)[0], calibration=[{"y": torch.zeros(4, 64)}]),
        CalibrationError,
        "lacks 'x'",
    ),
    "NaN in calibration": (
        lambda: adaflex.plan(model(), calls(1)[0], calibration=[{"x": torch.full((4, 64), float("nan"))}]),
        CalibrationError,
        "NaN or Inf",
    ),
    "unknown option": (lambda: adaflex.plan(model(), calls(), memroy=1), OptionError, "memroy.*memory"),
    "malformed budget": (lambda: adaflex.plan(model(), calls(), memory="12 mib"), OptionError, "mib.*MiB"),
    "misshapen example": (lambda: adaflex.plan(model(), {"x": torch.zeros(4, 65)}), CaptureError, "64"),
    "unknown layer": (lambda: adaflex.plan(model(), calls(), pin={"dwon": "bf16"}), OptionError, r"dwon.*down\.weight"),
    "unknown choice": (lambda: adaflex.plan(model(), calls(), pin={"down": "int5"}), OptionError, "int5"),
    "no saved plan": (lambda: adaflex.plan(model(), calls(), plan="missing.json"), OptionError, "missing.json"),
    "meta device": (lambda: adaflex.plan(model().to("meta"), calls()), CaptureError, "meta"),
    "impossible memory": (lambda: adaflex.plan(model(), calls(), memory=1000), BudgetError, r"least.*KiB"),
    "impossible bits": (lambda: adaflex.plan(model(), calls(), bits=0.5), BudgetError, r"bits=0\.5.*bits per weight"),
    "pins against a budget": (
        lambda: adaflex.plan(model(), calls(), pin={"*": "fp32"}, bits=16),
        BudgetError,
        "bits=16.*pins",
    ),
}


@pytest.mark.usefixtures("before_scoring")
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_before_anything_is_scored(name: str) -> None:
    attempt, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        attempt()


@pytest.mark.usefixtures("before_scoring")
def test_a_saved_plan_whose_sizes_no_longer_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"schema": "adaflex.saved/1"}')
    with pytest.raises(OptionError, match="sizes no longer hold; plan again"):
        adaflex.plan(model(), calls(), plan=str(path))


def test_constant_outputs_are_refused() -> None:
    with pytest.raises(CalibrationError, match="everywhere"):
        adaflex.plan(Constant().eval().requires_grad_(False), calls())


@pytest.mark.usefixtures("before_scoring")
def test_a_named_cache_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADAFLEX_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(CacheError, match="ADAFLEX_CACHE_DIR"):
        from adaflex.native import cache_folder

        cache_folder("native")


@pytest.mark.usefixtures("before_scoring")
def test_planning_under_such_a_cache_scores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADAFLEX_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(CacheError, match=r"ADAFLEX_CACHE_DIR=.*file.*unset it"):
        adaflex.plan(model(), calls())


# --- impossible budgets, through the shell ---


def test_an_impossible_budget_is_exit_code_three(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"{TINY}:tiny", "--memory", "1KiB"]) == 3
    assert "least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "nowhere:model"], "nowhere"),
        (["plan", "model"], "MODULE:CALLABLE"),
        (["plan", f"{TINY}:tinny"], "tiny"),
        (["plan", f"{TINY}:only_model"], "must return"),
        (["plan", f"{TINY}:failing"], "no weights on this machine"),
        (["plan", "missing.py:tiny"], "missing.py"),
        (["plan", f"{TINY}:tiny", "--loss", "-1"], "loss"),
        (["plan", f"{TINY}:tiny", "--axes", "depth"], "depth"),
        (["plan", f"{TINY}:tiny", "--pin", "up"], "SITE=CHOICE"),
        (["plan", f"{TINY}:tiny", "--calibration", "calls.txt"], "npz"),
        (["compile", f"{TINY}:tiny", "-o", "no/such/folder/x"], "folder"),
        (["run", "missing.adaflex", "x.npz"], "missing.adaflex"),
        (["inspect", TINY], "tiny_model.py"),
        (["explain", TINY], "JSON"),
        (["verify", TINY], "tiny_model.py"),
        (["cache", "burn"], ""),
        (["bake"], ""),
    ],
)
def test_usage_errors_are_exit_code_two(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


# --- unusual inputs of a program ---


@pytest.fixture(scope="module")
def planned() -> ModelPlan:
    return adaflex.plan(model(), calls(), pin={"*": "fp32"}, threads=1)


def inputs(kind: str) -> Tensor:
    torch.manual_seed(3)
    return {
        "empty": torch.zeros(0, 64),
        "not contiguous": torch.randn(64, 8).t(),
        "expanded": torch.randn(1, 64).expand(6, 64),
        "every other row": torch.randn(12, 64)[::2],
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "not contiguous", "expanded", "every other row"])
def test_unusual_inputs_give_what_eager_gives(planned: ModelPlan, kind: str) -> None:
    x = inputs(kind)
    found, wanted = planned.compile()(x), model()(x)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [((torch.zeros(4, 65),), "65"), ((torch.zeros(4, 64, dtype=torch.int64),), "int64"), ((), "missing")],
)
def test_inputs_of_another_kind_are_named(planned: ModelPlan, given: tuple[Tensor, ...], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        planned.compile()(*given)


class Mixed(nn.Module):
    """A float32 linear, then a float64 one."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)).double())


def test_float64_weights_are_not_offered_and_compute_as_in_eager() -> None:
    torch.manual_seed(0)
    mixed = Mixed().eval().requires_grad_(False)
    made = adaflex.plan(mixed, calls(4), threads=1, pin={"*": "fp32"})
    assert [site.id for site in made.table.sites] == ["up.weight"]
    x = calls(1)[0]["x"]
    torch.testing.assert_close(made.compile()(x), mixed(x), rtol=1e-5, atol=1e-5)


class Numbers(nn.Module):
    """Takes whole numbers of two widths: row numbers, and a count that is widened."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(10, 64), nn.Linear(64, 64)

    def forward(self, ids: Tensor, counts: Tensor) -> Tensor:
        return self.up(self.table(ids)) * counts.unsqueeze(-1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_whole_numbers_as_inputs_give_what_eager_gives(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made = Numbers().eval().requires_grad_(False)
    given = [(torch.randint(10, (4, 6), dtype=dtype), torch.randint(9, (4, 6), dtype=dtype)) for _ in range(4)]
    found = adaflex.plan(made, given, threads=1, pin={"table*": "embed32", "up*": "fp32"}).compile()
    torch.testing.assert_close(found(*given[0]), made(*given[0]), rtol=1e-5, atol=1e-5)


# --- caches and compilers ---


def child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)


PLAN = """
import adaflex, torch
from tests.surface.tiny_model import calls, model
p = adaflex.plan(model(), calls(4), pin={"*": "fp32"}, threads=1).compile()
x = calls(1)[0]["x"]
print(float((p(x) - model()(x)).norm()) < 1e-3)
"""


def test_without_a_compiler_reference_bodies_run_and_it_is_said(tmp_path: Path) -> None:
    done = child(PLAN, ADAFLEX_CXX="no-such-compiler", ADAFLEX_CACHE_DIR=str(tmp_path))
    assert done.stdout.strip() == "True", done.stderr
    assert done.stderr.count("no C++ compiler was found") == 1


def test_an_unwritable_default_cache_is_replaced_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = "from adaflex.native import cache_folder; print(cache_folder('native')); print(cache_folder('native'))"
    env = {"XDG_CACHE_HOME": str(tmp_path / "file"), "ADAFLEX_CACHE_DIR": ""}
    done = child(code, **env)
    first, second = done.stdout.split()
    assert first == second and Path(first).is_dir() and done.stderr.count("not writable") == 1


def compiler(folder: Path, script: str) -> str:
    path = folder / "cxx"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo fake 1.0 && exit 0\n{script}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo 'unit.cpp:1: error: no such thing' >&2; exit 1", "no such thing"), ("sleep 60", "0.5 s")],
)
def test_a_compiler_that_fails_or_hangs_is_named_with_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    from adaflex.native import build

    monkeypatch.setenv("ADAFLEX_CXX", compiler(tmp_path, script))
    monkeypatch.setenv("ADAFLEX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ADAFLEX_BUILD_TIMEOUT", "0.5")
    with pytest.raises(BuildError, match=said) as caught:
        build("int x;")
    assert ".cpp" in str(caught.value)


# --- Ctrl-C ---


def test_ctrl_c_is_exit_code_130() -> None:
    code = (
        "import sys, signal, os, adaflex.planning as p\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job starts with it ignored
        "p.score = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT) or __import__('time').sleep(30)\n"
        f"from adaflex.cli import main; raise SystemExit(main(['plan', '{TINY}:tiny']))"
    )
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "kept" in err
    assert time.perf_counter() - start < 45
