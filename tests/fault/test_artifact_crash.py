"""Saving is all or nothing: processes killed at random moments, and every system call failing once."""

import errno
import fcntl
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaflex.errors import ArtifactError
from adaflex.runtime import artifact
from tests.runtime import sample

KILLS = 100
CALLS = (
    (os, "open"),
    (os, "write"),
    (os, "fsync"),
    (os, "fstat"),
    (os, "unlink"),
    (os, "rename"),
    (os, "replace"),
    (fcntl, "flock"),
)


def save_version(path: Path, version: int) -> None:
    """A file of some 2 MB that says which version it is."""
    artifact.write(
        path, sample.program(), sample.weights(), {"version": version}, {"k.so": bytes([version % 251]) * 2_000_000}
    )


def version_of(path: Path) -> int:
    made = sample.load(path, trust=True)
    version = int(made.manifest["version"])
    assert made.native["k.so"] == bytes([version % 251]) * 2_000_000
    return version


def test_a_killed_save_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_version(path, 0)
    start = time.monotonic()
    save_version(path, 0)
    window = time.monotonic() - start  # follows the machine's load: half of the kills shall come too late
    rng = random.Random(3)
    seen = {"old": 0, "new": 0}
    for version in range(1, KILLS + 1):
        before = version_of(path)
        child = os.fork()
        if child == 0:
            try:
                save_version(path, version)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, 2 * window))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        after = version_of(path)
        assert after in (before, version)
        seen["new" if after == version else "old"] += 1
        window *= 0.95 if after == version else 1.05
    assert min(seen.values()) >= 5, f"the kills did not meet the save: {seen}"
    save_version(path, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


class Nth:
    """Makes the n-th of the wrapped calls fail."""

    def __init__(self, n: int) -> None:
        self.n, self.calls = n, 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.n:
                raise OSError(errno.EIO, "Input/output error")
            return function(*args, **kwargs)

        return call


def test_every_system_call_of_a_save_may_fail(tmp_path: Path) -> None:
    path = tmp_path / "m"
    sample.save(path)
    before = path.read_bytes()
    refused = 0
    for n in range(1, 200):
        (tmp_path / ".m.adaflex-left.tmp").write_bytes(b"")
        nth = Nth(n)
        with pytest.MonkeyPatch.context() as patch:
            for module, name in CALLS:
                patch.setattr(module, name, nth.wrap(getattr(module, name)))
            try:
                sample.save(path, {"a.so": bytes(1000)})
            except ArtifactError as problem:
                refused += 1
                assert "Input/output error" in str(problem) and "'" + str(path) + "'" in str(problem)
                assert path.read_bytes() == before
        if path.read_bytes() != before:
            assert sample.load(path).has_native
            path.write_bytes(before)
        if nth.calls < n:
            break
    assert nth.calls < n and refused >= 6
    sample.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
