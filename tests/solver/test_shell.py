"""``adaflex allocate`` and ``adaflex pareto``: JSON, exit codes, explanations, malformed tables."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaflex.cli import main
from adaflex.errors import AdaflexError, TableError
from adaflex.solver.allocate import allocate
from adaflex.solver.generate import Shape, realistic, small_table
from adaflex.solver.plan import Plan
from adaflex.solver.table import Budget, Choice, Cost, CostTable, Encoding, Site
from adaflex.solver.table_json import digest, from_json, schema, to_json
from adaflex.solver.units import parse_bytes, parse_time, show_bytes, show_time

CAPTURED = Path(__file__).parents[2] / "examples" / "minilm_table.json.gz"


def table() -> CostTable:
    sites = tuple(Site(f"s{i}", "linear", 1000, 4000) for i in range(4))
    choices = []
    for number, site in enumerate(sites):
        for bits in (16, 8, 4):
            cost = Cost(125 * bits, (10 * bits + number,), 0.0 if bits == 16 else 4.0**-bits * (number + 1))
            axis = "keep" if bits == 16 else "precision"
            choices.append(Choice(f"{site.id}:{bits}", (site.id,), cost, Encoding(f"w{bits}", bits), axis=axis))
    return CostTable(sites, tuple(choices), baseline_bytes=8000, baseline_ns=(700,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "table.json"
    file.write_text(to_json(table()))
    return file


def test_allocate_prints_the_documented_fields(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", str(path), "--memory", "0.5x", "--latency", "400ns", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    fields = {"status", "objective", "cost", "bound", "gap", "limit", "budgets", "choices", "seconds", "solver"}
    assert fields | {"table_digest"} <= set(answer)
    assert answer["status"] == "optimal" and answer["table_digest"] == digest(table())
    assert answer["totals"]["peak_bytes"] <= 4000


def test_impossible_budget_says_what_is_possible(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", str(path), "--memory", "1900", "--loss", "0.001"]) == 3
    said = capsys.readouterr().out
    assert "memory is at least 2000 bytes" in said and "cannot be met even alone" in said and "nearest" in said
    assert main(["allocate", str(path), "--memory", "2100", "--loss", "0.0001", "--objective", "loss"]) == 3
    said = capsys.readouterr().out
    assert "conflicting: memory, loss" in said and "memory alone" in said and "loss alone" in said


def test_pins_and_explanations(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    words = ["allocate", str(path), "--memory", "4500", "--objective", "loss", "--output", str(out)]
    assert main([*words, "--pin", "s0=w16", "--forbid", "re:s[12]=w4", "--explain", "s0"]) == 0
    plan = from_json(Plan, out.read_bytes())
    assert plan.choice_of("s0") == "s0:16" and plan.choice_of("s1") != "s1:4"
    assert "s0:16: taken" in capsys.readouterr().out
    assert main(["allocate", str(path), "--memory", "2000", "--pin", "*=w16"]) == 3
    assert "without the pins" in capsys.readouterr().out
    for bad in (["--pin", "nosite=w4"], ["--pin", "s0=w5"], ["--pin", "s0"], ["--pin", "re:[=w4"]):
        assert main(["allocate", str(path), *bad]) == 2
    assert main([*words, "--explain", "nosite"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--memory", "much"], ["--memory", "-5"], ["--latency", "decode=1ms"], ["--latency", "1 year"],
        ["--loss", "nan"], ["--loss", "-1"], ["--bits", "x"], ["--tier", "memory"], ["--tier", "none=5"],
        ["--time-limit", "0"], ["--objective", "beauty"], ["--memory", "zx"],
    ],
)  # fmt: skip
def test_bad_budgets_are_usage_errors(path: Path, words: list[str]) -> None:
    assert main(["allocate", str(path), *words]) == 2


def test_pareto_is_monotone(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = ["--csv", str(tmp_path / "c.csv"), "--plot", str(tmp_path / "c.svg")]
    assert main(["pareto", str(path), "--objective", "loss", "--points", "5", "--json", *files]) == 0
    costs = [plan["cost"] for plan in json.loads(capsys.readouterr().out)]
    assert costs == sorted(costs, reverse=True) and costs[-1] == 0.0
    assert (tmp_path / "c.svg").read_text().startswith("<svg")
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 6
    for over, values in (("latency", "300ns,500ns"), ("bits", "4,9"), ("loss", "0.01,0.1"), ("tier:memory", "3KB,9KB")):
        assert main(["pareto", str(path), "--over", over, "--values", values]) == 0
    assert main(["pareto", str(path), "--values", "10,20"]) == 3
    assert main(["pareto", str(path), "--over", "beauty", "--values", "1"]) == 2
    assert main(["pareto", str(path), "--points", "0"]) == 2


def test_a_table_captured_from_a_model_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", str(CAPTURED), "--memory", "30MiB", "--loss", "0.03", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "optimal" and answer["gap"] <= 1e-6
    assert answer["totals"]["peak_bytes"] <= 30 << 20 and answer["totals"]["loss"] <= 0.03**2


@pytest.mark.parametrize(
    "words",
    [["--loss", "0.03"], ["--over", "loss"], ["--memory", "24MiB", "--over", "latency"], ["--over", "bits"], []],
    ids=" ".join,
)
def test_a_sweep_spans_what_the_other_budgets_leave(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The tightest point is possible, and no two say the same plan over and over."""
    assert main(["pareto", str(CAPTURED), *words, "--points", "5", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert all(plan["status"] in ("optimal", "feasible") for plan in plans)
    costs = [plan["cost"] for plan in plans]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) >= 3


def test_module_runs_too(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "adaflex.solver", "allocate", str(path), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == "optimal"


def test_no_torch_is_imported() -> None:
    code = "import sys, adaflex.solver.allocate, adaflex.solver.memplan; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("seed", range(40))
def test_tables_survive_json(seed: int) -> None:
    made = small_table(seed)
    again = from_json(CostTable, to_json(made))
    assert again == made and digest(again) == digest(made)


def test_schema_accepts_what_is_written() -> None:
    import jsonschema

    for seed in range(10):
        jsonschema.validate(json.loads(to_json(small_table(seed))), schema(CostTable))
    jsonschema.validate(json.loads(to_json(realistic(Shape(blocks=2)))), schema(CostTable))
    plan = allocate(table(), Budget(memory_bytes=4000))
    jsonschema.validate(json.loads(to_json(plan)), schema(Plan))
    assert from_json(Plan, to_json(plan)) == plan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sites": 3}, r"\$\.sites is 3"),
        ({"extra": 1}, r"\$\.extra is not a field"),
        ({"schema": "adaflex.table/9"}, "says schema"),
        ({"time_scale": [1]}, "must have 2"),
        ({"default_loss": "x"}, "must be a number"),
        ({"baseline_bytes": True}, "whole number"),
        ({"baseline_bytes": 1 << 70}, r"below 2\*\*62"),
        ({"choices": [{"id": "a", "sites": ["s0"]}]}, "cost is missing"),
        (
            {
                "choices": [
                    {"id": "a", "sites": [], "cost": {"size_bytes": 1, "time_ns": [1], "loss": 0, "source": "hearsay"}}
                ]
            },
            "one of",
        ),
    ],
)
def test_malformed_tables_name_the_path(change: dict[str, object], said: str) -> None:
    values = json.loads(to_json(table())) | change
    with pytest.raises(TableError, match=said):
        from_json(CostTable, json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "nul", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 99999, "1" * 9999, b"\xff"])
def test_broken_json_is_one_sentence(text: str | bytes) -> None:
    with pytest.raises(TableError) as caught:
        from_json(CostTable, text)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_table_crashes(data: st.DataObject) -> None:
    values = json.loads(to_json(table()))
    junk = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=4)
        | st.lists(st.integers(), max_size=2)
    )
    place: object = values
    for _ in range(data.draw(st.integers(1, 4))):
        if isinstance(place, dict) and place:
            key: object = data.draw(st.sampled_from(sorted(place)))
        elif isinstance(place, list) and place:
            key = data.draw(st.integers(0, len(place) - 1))
        else:
            break
        inner = place[key]  # type: ignore[index]
        if data.draw(st.booleans()) or not isinstance(inner, dict | list):
            place[key] = data.draw(junk)  # type: ignore[index]
            break
        place = inner
    try:
        plan = allocate(from_json(CostTable, json.dumps(values)), Budget(memory_bytes=4000), time_limit_s=2)
        assert plan.status in ("optimal", "infeasible", "feasible")
    except AdaflexError as fault:
        assert "\n" not in str(fault)


def test_units() -> None:
    assert (parse_bytes("64KiB"), parse_bytes("1.5 MB"), parse_bytes("1_000")) == (65536, 1_500_000, 1000)
    assert (parse_time("8ms"), parse_time("350us"), parse_time("0.5")) == (8_000_000, 350_000, 500_000_000)
    for text in ("", "5 parsec", "-3", "1e99GB", "NaN"):
        with pytest.raises(AdaflexError):
            parse_bytes(text)
    assert show_bytes(100) == "100 bytes" and show_bytes(20 << 20) == "20.00 MiB" and show_time(8e6) == "8.000 ms"
    assert show_time(5) == "5 ns"


def test_text_and_numbers_of_kinds_of_their_own_are_written_as_what_they_are() -> None:
    class Version(str):
        """As torch gives its version."""

    class Bytes(int):
        pass

    given = realistic(Shape(blocks=1, cuts=2))
    plain = replace(given, machine=(("torch", "2.13"),), baseline_bytes=7)
    other = replace(given, machine=(("torch", Version("2.13")),), baseline_bytes=Bytes(7))
    assert to_json(other) == to_json(plain) and digest(other) == digest(plain)
