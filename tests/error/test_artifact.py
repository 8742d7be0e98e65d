"""Damaged and hostile artifacts: each is refused with a sentence that names what is wrong."""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaflex.errors import ArtifactError
from tests.runtime import sample


def change(key: str, value: Any) -> Callable[[bytes], bytes]:
    """A forged file in which one entry of the header, "a.b.0.c", has another value."""

    def forge(raw: bytes) -> bytes:
        def apply(header: Any) -> None:
            *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
            for part in path:
                header = header[part]
            header[last] = value

        return sample.forged(raw, apply)

    return forge


def flipped(raw: bytes, place: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :]


def duplicate_keys(raw: bytes) -> bytes:
    text = json.dumps(sample.header(raw))
    return sample.signed(raw, text.replace('"hints":', '"hints": [4], "hints":').encode())


def text_of(raw: bytes, make: Callable[[str], str]) -> bytes:
    return sample.signed(raw, make(json.dumps(sample.header(raw))).encode())


def future(raw: bytes) -> bytes:
    return sample.signed(raw, json.dumps(sample.header(raw)).encode(), 99)


def past(raw: bytes) -> bytes:
    return sample.signed(raw, json.dumps(sample.header(raw)).encode(), 1)


def with_size(word: str) -> Callable[[bytes], bytes]:
    """The first fixed number of columns spelled as ``word``."""
    return lambda raw: text_of(raw, lambda text: text.replace('"columns": 8', f'"columns": {word}', 1))


def huge_header(raw: bytes) -> bytes:
    magic, version, zero, _, size, digest = struct.unpack("<8sIIQQ32s", raw[:64])
    return struct.pack("<8sIIQQ32s", magic, version, zero, 1 << 62, size, digest) + raw[64:]


def bomb(raw: bytes) -> bytes:
    """A small file that says its weights are an exabyte."""

    def grow(header: Any) -> None:
        header["weights"]["size_bytes"] = 1 << 60
        header["program"]["constants"][0]["size_bytes"] = 1 << 59

    return sample.forged(raw, grow)


def overlap(raw: bytes) -> bytes:
    def move(header: Any) -> None:
        header["program"]["constants"][1]["offset"] = 960

    return sample.forged(raw, move)


PICKLE = b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x08echo bad\x85R."
PATH_SECTION = {"name": "../x", "offset": 4096, "size_bytes": 0, "sha256": ""}
STEP, SLOT, CONSTANT = "program.steps", "program.slots", "program.constants"
ATTACKS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda raw: b"", "cut short"),
    "not ours": (lambda raw: b"PK\x03\x04" + raw[4:], "no AdaFlex artifact"),
    "pickle": (lambda raw: PICKLE.ljust(4096, b"\0"), "no AdaFlex artifact"),
    "truncated": (lambda raw: raw[:-100], "cut short or added to"),
    "cut in the preamble": (lambda raw: raw[:40], "cut short"),
    "trailing data": (lambda raw: raw + b"\0", "cut short or added to"),
    "bit flip in the header": (lambda raw: flipped(raw, 900), "header"),
    "bit flip in the weights": (lambda raw: flipped(raw, 4096 * (len(raw) // 4096) + 77), "constant 0"),
    "bit flip between constants": (lambda raw: flipped(raw, len(raw) - 1), "not zero"),
    "future version": (future, "format version 99"),
    "past version": (past, "format version 1, this AdaFlex reads versions 3 to 6"),
    "future program": (change("format", 99), "program of format 99"),
    "huge header": (huge_header, "claims a header"),
    "sizes of a bomb": (bomb, "end at byte"),
    "overlapping constants": (overlap, "overlaps another"),
    "constant not aligned": (change(f"{CONSTANT}.1.offset", 1025), "not aligned"),
    "constant outside": (change(f"{CONSTANT}.1.offset", 1 << 40), "ends at byte"),
    "negative length": (change(f"{CONSTANT}.0.size_bytes", -1024), "size_bytes is -1024"),
    "shape and bytes differ": (change(f"{CONSTANT}.1.shape", [9]), "said to hold"),
    "NaN size": (with_size("NaN"), "NaN"),
    "infinite size": (with_size("1e999"), "columns is inf"),
    "deep JSON": (lambda raw: sample.signed(raw, b"[" * 100_000 + b"]" * 100_000), "nests more than"),
    "deep objects": (lambda raw: text_of(raw, lambda t: '{"a":' * 999 + t + "}" * 999), "nests more than"),
    "duplicate keys": (duplicate_keys, "stands twice"),
    "unknown key": (change("program.python", "import os"), "unknown key 'python'"),
    "unknown entry": (change("pickle", "gASV"), "does not have the entries"),
    "unknown kernel file": (change(f"{STEP}.0.header", "gemm_from_the_future.h"), "gemm_from_the_future.h"),
    "path as kernel file": (change(f"{STEP}.0.header", "../../etc/passwd"), "../../etc/passwd"),
    "C text as function": (change(f"{STEP}.0.function", 'gemm_f32); system("id"); ('), "no name of a kernel"),
    "C text in a template": (change(f"{STEP}.0.function", "gemm<64>(); f<1>"), "no name of a kernel"),
    "C text as a size": (change("program.symbols", ["s0]; system(0); s[0"]), "malformed"),
    "size that nobody declared": (change(f"{SLOT}.3.rows", "s7"), "does not declare"),
    "library op of another library": (change(f"{STEP}.3.op", "os.system.default"), "not an ATen op"),
    "library op that writes": (change(f"{STEP}.3.op", "aten.add_.Tensor"), "writes to its inputs"),
    "library op that opens files": (change(f"{STEP}.3.op", "aten.from_file.default"), "no computation"),
    "library op that saves": (change(f"{STEP}.3.op", "aten.save.default"), "no computation"),
    "dunder op": (change(f"{STEP}.3.op", "aten.__class__.__init__"), "op"),
    "slot that does not exist": (change(f"{STEP}.0.a", 99), "number 99"),
    "store into the weights": (change(f"{STEP}.2.region.stores", [{"value": 4, "slot": 4}]), "writes to slot 4"),
    "store into an input": (change(f"{STEP}.1.out.slot", 0), "writes to slot 0"),
    "value before it is made": (change(f"{STEP}.2.region.ops.3.args", [3, 4]), "operand of op 3"),
    "too many operands": (change(f"{STEP}.2.region.ops.3.args", [0, 1, 2]), "3 operands"),
    "weight part outside": (change(f"{STEP}.0.parts", [{"name": "b", "offset": 4096}]), "begins at byte 4096"),
    "slot larger than its constant": (change(f"{SLOT}.4.rows", 2), "reaches beyond"),
    "step twice": (change("program.schedule", [3, 3]), "exactly once"),
    "step never": (change("program.schedule", [3]), "exactly once"),
    "section elsewhere": (change("weights.offset", 64), "not where it must be"),
    "section named as a path": (change("native", [PATH_SECTION]), "names"),
    "unknown form": (change(f"{SLOT}.2.form", "u8t); system(0"), "unknown form"),
    "gather of a gather": (
        change(
            f"{STEP}.2.region.loads",
            [
                {"slot": 2, "strides": [8], "column": 1, "gather": 1},
                {"slot": 4, "strides": [0], "column": 1, "gather": 2},
                {"slot": 3, "strides": [8], "column": 1},
            ],
        ),
        "picks its rows",
    ),
    "digest of other bytes": (change(f"{CONSTANT}.0.digest", hashlib.sha256(b"").hexdigest()), "does not match"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    attack, message = ATTACKS[name]
    path = tmp_path / "m"
    sample.save(path)
    raw = path.read_bytes()
    made = attack(raw)
    assert made != raw
    path.write_bytes(made)
    with pytest.raises(ArtifactError) as caught:
        sample.load(path)
    assert message in str(caught.value)


def test_the_forger_of_these_tests_can_forge(tmp_path: Path) -> None:
    """A file that is signed again without a change loads: so the attacks above fail for what they change."""
    path = tmp_path / "m"
    sample.save(path)
    path.write_bytes(sample.forged(path.read_bytes(), lambda header: None))
    assert sample.load(path).manifest == sample.MANIFEST


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ArtifactError, match="no regular file"):
            sample.load(path)
    with pytest.raises(ArtifactError, match="cannot open"):
        sample.load(tmp_path / "nothing")


def test_a_link_swapped_after_opening_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is opened once: what the path points at later does not matter."""
    sample.save(tmp_path / "good")
    (tmp_path / "bad").write_bytes(b"\0" * 10_000)
    link = tmp_path / "link"
    link.symlink_to("good")
    opened = os.open

    def swap(path: Any, flags: int, *more: Any) -> int:
        descriptor = opened(path, flags, *more)
        link.unlink()
        link.symlink_to("bad")
        return descriptor

    monkeypatch.setattr(os, "open", swap)
    assert sample.load(link).manifest == sample.MANIFEST
    with pytest.raises(ArtifactError, match="no AdaFlex artifact"):
        sample.load(link)


def test_replacing_a_file_that_is_loaded_leaves_its_weights(tmp_path: Path) -> None:
    sample.save(tmp_path / "m")
    before = sample.load(tmp_path / "m")
    copy = before.weights.clone()
    sample.save(tmp_path / "m", {"a.so": b"other"})
    assert before.weights.equal(copy)
