"""Golden files: texts under tests/golden that a test compares with what is made now.

To write them anew: ``python -m pytest -p tests.golden_files --update-golden <tests>``, then read the difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The switch that rewrites instead of comparing."""
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


def check(name: str, text: str, config: pytest.Config) -> None:
    """Assert that tests/golden/<name> holds ``text``; with --update-golden, make it so."""
    path = FOLDER / name
    if config.getoption("--update-golden", default=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path} is missing; make it with: python -m pytest -p tests.golden_files --update-golden"
    assert text == path.read_text(), f"{path} differs; look at it with --update-golden and git diff"
