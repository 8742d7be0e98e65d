"""An artifact comes back as it was saved: same program, same bytes, mapped; and a save is all or nothing."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adaflex.errors import ArtifactError
from adaflex.runtime import artifact, artifact_file
from tests.runtime import sample


def test_it_comes_back(tmp_path: Path) -> None:
    digest = sample.save(tmp_path / "m.adaflex")
    made = sample.load(tmp_path / "m.adaflex")
    without_digests = [c.__class__(**{**vars(c), "digest": ""}) for c in made.program.constants]
    assert without_digests == list(sample.program().constants)
    assert made.program.steps == sample.program().steps and made.program.slots == sample.program().slots
    assert torch.equal(made.weights, sample.weights())
    assert made.manifest == sample.MANIFEST
    assert made.digest == digest and not made.native and not made.has_native


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    sample.save(tmp_path / "a")
    turned = dict(reversed(sample.MANIFEST.items()))
    artifact.write(tmp_path / "b", sample.program(), sample.weights(), turned)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = sample.load(tmp_path / "a")
    artifact.write(tmp_path / "c", again.program, again.weights, again.manifest)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def test_weights_are_mapped_not_copied_and_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "m"
    sample.save(path)
    made = sample.load(path)
    assert made.weights.data_ptr() % 64 == 0
    address = made.weights.data_ptr()
    line = next(
        line
        for line in Path("/proc/self/maps").read_text().splitlines()
        if int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16)
    )
    assert line.split()[1].startswith("r--") and line.endswith(str(path))


def test_mapped_weights_outlive_the_artifact_and_the_file(tmp_path: Path) -> None:
    sample.save(tmp_path / "m")
    weights = sample.load(tmp_path / "m").weights[64:128]
    (tmp_path / "m").unlink()
    assert torch.equal(weights, sample.weights()[64:128])


def test_built_kernels_are_handed_out_only_to_who_trusts_the_file(tmp_path: Path) -> None:
    kernels = {"avx512.so": b"\x7fELF" + bytes(5000), "avx2.so": b"two"}
    digest = sample.save(tmp_path / "m", kernels)
    assert sample.load(tmp_path / "m").has_native and sample.load(tmp_path / "m").native == {}
    assert sample.load(tmp_path / "m", False).native == {}
    assert sample.load(tmp_path / "m", True).native == kernels
    assert sample.load(tmp_path / "m", digest).native == kernels
    with pytest.raises(ArtifactError, match="not the file you trust"):
        sample.load(tmp_path / "m", "sha256:" + "0" * 64)


def test_no_path_and_no_pickle_in_the_file(tmp_path: Path) -> None:
    sample.save(tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    assert str(tmp_path).encode() not in raw and b"/" not in raw[64:4000]


def test_weights_with_stray_bytes_are_not_written(tmp_path: Path) -> None:
    for place in (1055 + 32, 1151):
        weights = sample.weights()
        weights[place] = 1
        with pytest.raises(ArtifactError, match="not zero"):
            artifact.write(tmp_path / "m", sample.program(), weights, {})
    assert not list(tmp_path.iterdir())


def test_a_file_gets_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    sample.save(tmp_path / "m")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("m", "other")}
    assert len(modes) == 1


def test_leftovers_of_dead_writers_are_removed_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "m"
    (tmp_path / ".m.adaflex-dead.tmp").write_bytes(b"half")
    (tmp_path / ".other.adaflex-dead.tmp").write_bytes(b"of another file")
    with artifact_file._temporary(path) as (_, living):
        sample.save(path)
        assert living.exists()
        living.unlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.adaflex-dead.tmp", "m"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample.save(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()

    def full(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ArtifactError, match=r"cannot write '.*m': No space left on device; free space"):
        sample.save(tmp_path / "m", {"a.so": b"x"})
    assert (tmp_path / "m").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:100])))
    sample.save(tmp_path / "m")
    assert torch.equal(sample.load(tmp_path / "m").weights, sample.weights())


@pytest.mark.parametrize("change", [lambda p: p / "no" / "m", lambda p: p])
def test_impossible_places_are_named(tmp_path: Path, change: Callable[[Path], Path]) -> None:
    with pytest.raises(ArtifactError, match="cannot write"):
        sample.save(change(tmp_path))
    assert not list(tmp_path.iterdir())
