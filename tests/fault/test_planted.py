"""The tests are tested: faults planted by script are caught by the oracles that the suite runs, all but one at most."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adaflex.native import compiler
from tests.fault.planted import FAULTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_planted_faults_are_caught() -> None:
    script = ROOT / "tests" / "fault" / "planted.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("") == "", f"without a fault the oracles already fail: {found}"
    assert "GONE" not in found.values(), {name for name, text in found.items() if text == "GONE"}
    missed = [name for name, text in found.items() if not text]
    assert len(found) == len(FAULTS) >= 20 and len(missed) <= 1, f"not caught: {missed}"
