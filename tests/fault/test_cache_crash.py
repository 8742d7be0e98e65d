"""Built kernels and losses kept between runs: processes killed at random moments, files cut and flipped."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adaflex import native
from adaflex.passes.score_cache import Key, ScoreCache
from adaflex.settings import settings

KILLS = 100
SOURCE = 'extern "C" int answer() { return 42; }\n'
KEY = Key(model="m", calibration="c", loss="error")
SLOW = """#!/bin/sh
case "$1" in --version) echo "slow 1"; exit;; esac
for last; do :; done
head -c 4000 {built} > "$last"; sleep 0.01; tail -c +4001 {built} >> "$last"
"""

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="needs a C++ compiler")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAFLEX_CACHE_DIR", str(tmp_path / "cache"))
    assert settings().cache_dir == tmp_path / "cache"
    return tmp_path / "cache" / "native"


def killed(work: Callable[[], object], after_s: float) -> None:
    """Do some work in a child of this process and kill it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def answer(library: Path) -> int:
    return int(ctypes.CDLL(str(library)).answer())


@needs_compiler
def test_a_killed_build_leaves_no_library_or_a_whole_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = shutil.copy(native.build(SOURCE, name="real"), tmp_path / "built.so")
    script = tmp_path / "slow"
    script.write_text(SLOW.format(built=built))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("ADAFLEX_CXX", str(script))
    start = time.monotonic()
    library = native.build(SOURCE)
    window, rng, seen = time.monotonic() - start, random.Random(5), {"none": 0, "whole": 0}
    for _ in range(KILLS):
        library.unlink(missing_ok=True)
        killed(lambda: native.build(SOURCE), rng.uniform(0, 2 * window))
        there = library.exists()
        assert native.is_whole(library) == there
        seen["whole" if there else "none"] += 1
        window *= 0.95 if there else 1.05  # follows the machine's load: half of the kills shall come too late
    assert min(seen.values()) >= 5, f"the kills did not meet the build: {seen}"
    library.unlink(missing_ok=True)
    assert answer(native.build(SOURCE)) == 42
    assert not list(cache.glob("unit*.partial"))


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other"])
def test_a_damaged_library_is_built_again_before_it_is_loaded(cache: Path, damage: str) -> None:
    library = native.build(SOURCE, name=damage)
    whole = library.read_bytes()
    place = whole.index(b"\x7fELF") + len(whole) // 2
    made = {
        "cut": whole[:-100],
        "empty": b"",
        "flipped": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
        "other": b"\x7fELF" + bytes(len(whole)),
    }[damage]
    library.write_bytes(made)
    assert not native.is_whole(library)
    assert native.build(SOURCE, name=damage) == library
    assert native.is_whole(library) and answer(library) == 42


def test_a_damaged_copy_of_trusted_kernels_is_written_again(cache: Path) -> None:
    path = native.keep(b"kernels")
    path.write_bytes(b"kern")
    assert native.keep(b"kernels") == path and path.read_bytes() == b"kernels"


def test_a_killed_process_leaves_every_loss_it_had_stored(tmp_path: Path) -> None:
    """One file in its old or its new state: what was stored before stays, and nothing is half there."""
    cache = ScoreCache(tmp_path, KEY)
    start = time.monotonic()
    cache.put("0", 0.0)
    window, rng, known, met = time.monotonic() - start, random.Random(6), {"0"}, 0
    for number in range(1, KILLS + 1):
        name = str(number)
        killed(lambda name=name: ScoreCache(tmp_path, KEY).put(name, float(name)), rng.uniform(0, 4 * window))  # type: ignore[misc]
        losses = ScoreCache(tmp_path, KEY).losses
        assert set(losses) in (known, known | {name}) and all(float(n) == loss for n, loss in losses.items())
        met += name in losses
        window *= 0.95 if name in losses else 1.05
        known = set(losses)
    assert 5 <= met <= KILLS - 5, f"the kills did not meet the writes: {met}"
