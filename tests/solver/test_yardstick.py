"""Public instances of the ASPLOS 2025 contest, read where they lie; the long ones behind ``make test-yardstick``."""

import json
import os
from pathlib import Path

import pytest

from adaflex.cli import main
from adaflex.solver.pairwise.core import library
from adaflex.solver.pairwise.problem import PairProblem, pair_problem, value_of
from adaflex.solver.table_json import parse, read_bytes

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "iopddl"
FULL = os.environ.get("YARDSTICK") == "full"


def path_of(name: str) -> Path:
    path = DATA / f"asplos-2025-iopddl-{name}.json.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    if library() is None:
        pytest.skip("no C++ compiler here")
    return path


def allocated(name: str, seconds: float, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """What the shell prints, checked against the file."""
    path = path_of(name)
    assert main(["allocate", str(path), "--time-limit", str(seconds), "--json"]) == 0
    made: dict[str, object] = json.loads(capsys.readouterr().out)
    problem: PairProblem = pair_problem(parse(read_bytes(path)), name)
    choices = made["choices"]
    assert isinstance(choices, dict)
    cost, most = value_of(problem, [choices[str(i)] for i in range(len(problem.nodes))])
    assert cost == made["cost"] and problem.limit is not None and most <= problem.limit
    assert isinstance(made["bound"], int) and made["bound"] <= cost
    assert isinstance(made["seconds"], float) and made["seconds"] <= seconds + 5.0
    return made


@pytest.mark.parametrize(("name", "cost"), [("B", 532_843), ("G", 217_039)])
def test_small_instances_are_proven(name: str, cost: int, capsys: pytest.CaptureFixture[str]) -> None:
    made = allocated(name, 60.0, capsys)
    assert (made["status"], made["cost"], made["bound"]) == ("optimal", cost, cost)


@pytest.mark.skipif(not FULL, reason="long: make test-yardstick")
@pytest.mark.parametrize(
    ("name", "seconds", "most", "least"),
    [
        ("V", 60.0, 1_650_000, 1_280_000),
        ("K", 180.0, 2_400_000_000, 1_800_000_000),
        ("P", 240.0, 665_000_000_000, 651_000_000_000),
    ],
)
def test_large_instances_reach_the_contest(
    name: str, seconds: float, most: int, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    made = allocated(name, seconds, capsys)
    assert isinstance(made["cost"], int) and made["cost"] <= most
    assert isinstance(made["bound"], int) and made["bound"] >= least
