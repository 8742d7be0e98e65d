"""The GPU benchmark runs end to end without a GPU: tiny sizes, kernels interpreted, every answer right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.gpu"]


def test_dry_run(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    target = tmp_path / "report.json"
    done = subprocess.run(
        [*COMMAND, "--dry", "--json", str(target)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(target.read_text())["rows"]
    assert len(rows) == 8 and all(0 < row["error"] <= row["allowed"] for row in rows)
    assert "MISSED" not in done.stdout and "WRONG" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so() -> None:
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no CUDA device" in done.stdout
