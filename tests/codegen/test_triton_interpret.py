"""Printed Triton kernels against float64, in Triton's interpreter: no GPU, each set of cases in its own process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
SETS = ("triton_cases", "triton_w4_cases")


def names(module: str) -> list[str]:
    """The cases that a set defines."""
    return re.findall(r"^def case_(\w+)", (ROOT / "tests" / "codegen" / f"{module}.py").read_text(), re.M)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """What every case found; all sets run at the same time."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-m", f"tests.codegen.{module}"] for module in SETS]
    started = [
        subprocess.Popen(c, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for c in commands
    ]
    found = {}
    for process in started:
        out, complaints = process.communicate(timeout=300)
        assert process.returncode == 0, complaints[-3000:]
        found.update(json.loads(out))
    return found


@pytest.mark.parametrize("case", [name for module in SETS for name in names(module)])
def test_against_float64(case: str, results: dict[str, Any]) -> None:
    checks = results[case]
    assert checks
    wrong = [f"{what}: {error} (allowed {allowed})" for what, error, allowed in checks if not error <= allowed]
    assert not wrong, "\n".join(wrong)
