"""For all tests: caches of their own, less looking for garbage, and the longest files first.

Whole files are dealt to workers, so a long one that came last would keep one waiting.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from adaflex import native
from adaflex.native import cache_folder

LONGEST = (
    "surface/test_zoo.py",
    "codegen/test_programs.py",
    "codegen/test_row_steps.py",
    "surface/test_written.py",
    "surface/test_placement.py",
    "passes/test_widths.py",
    "passes/test_capture_doors.py",
    "fault/test_planted.py",
    "codegen/test_fuzz_graphs.py",
    "surface/test_other_sizes.py",
    "surface/test_skip.py",
    "runtime/test_execute.py",
    "runtime/test_cuda.py",
    "solver/test_brute_force.py",
    "error/test_bad_input.py",
    "surface/test_width.py",
    "surface/test_tied.py",
    "passes/test_score_minilm.py",
    "surface/test_commands.py",
    "surface/test_readme.py",
)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache but for compiled libraries: these are the same for everybody, and take a second each."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "native").symlink_to(cache_folder("native"))
    monkeypatch.setenv("ADAFLEX_CACHE_DIR", str(folder))
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(LONGEST)))


def pytest_collection_finish() -> None:
    """What was imported stays: no need to look through it for garbage again and again, nor that often. And many units
    will be built: what they have in common is worth building before the first."""
    native.FEW = 0
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # at exit everything is
