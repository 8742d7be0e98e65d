"""Streamed weights in the cache: written once, whole or not at all, and never trusted by their name alone."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from adaflex.runtime.stream import PAGE
from adaflex.runtime.stream_file import FOLDER, digest, keep

DATA = np.random.default_rng(1).integers(0, 256, 256 * PAGE, np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAFLEX_CACHE_DIR", str(tmp_path))
    return tmp_path / FOLDER


def test_equal_bytes_are_one_file_written_once(cache: Path) -> None:
    first = keep(DATA)
    written = first.path.stat().st_mtime_ns
    assert keep(DATA.copy()).path == first.path and first.path.stat().st_mtime_ns == written
    assert keep(DATA[:PAGE]).path != first.path
    assert first.load(0, len(DATA)).tobytes() == DATA.tobytes() and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_written_again(damage: str) -> None:
    path = keep(DATA).path
    raw = bytearray(path.read_bytes())
    raw[77] ^= 1
    path.write_bytes({"flip": bytes(raw), "cut": bytes(raw[:PAGE]), "empty": b""}[damage])
    assert keep(DATA).load(0, len(DATA)).tobytes() == DATA.tobytes()


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(cache: Path) -> None:
    rng = random.Random(5)
    for number in range(30):
        data = np.random.default_rng(number).integers(0, 256, 512 * PAGE, np.uint8)
        child = os.fork()
        if child == 0:
            try:
                keep(data)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path in cache.glob("*.bin") if cache.exists() else ():
            assert path.stat().st_size == 512 * PAGE
        stream = keep(data)
        assert digest(stream).startswith(stream.path.stem)
