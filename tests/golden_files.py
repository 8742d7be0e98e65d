"""Golden files: texts under tests/golden that a test compares with what is made now.

To write them anew: ``python -m pytest -p tests.golden_files --update-golden <tests>``, then read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The switch that rewrites instead of comparing."""
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


def check(name: str, text: str, config: pytest.Config) -> None:
    """Assert that tests/golden/<name> holds ``text``; with --update-golden, make it so."""
    path = FOLDER / name
    shown = path.relative_to(FOLDER.parents[1])
    if config.getoption("--update-golden", default=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    again = f"python -m pytest -p tests.golden_files --update-golden {request_of()}"
    assert path.exists(), f"there is no golden file {shown} yet; write it with `{again}`, read it and add it to git"
    assert text == path.read_text(), (
        f"{shown} is not what is made now; if that is meant, write it anew with `{again}` and read `git diff {shown}`"
    )


def request_of() -> str:
    """The test that runs now, as pytest is given it."""
    return os.environ.get("PYTEST_CURRENT_TEST", "<test>").rpartition(" ")[0].partition("[")[0]
