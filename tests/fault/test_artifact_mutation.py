"""Artifacts mutated at random: each is refused by an ArtifactError or loads equal to what was saved, fast and small."""

import json
import random
import resource
import time
from pathlib import Path
from typing import Any

from adaflex.errors import ArtifactError
from tests.runtime import sample

BLIND, FORGED = 500, 1500
VALUES = (
    0,
    1,
    -1,
    64,
    2**31,
    2**62,
    2**63,
    -(2**63),
    0.5,
    True,
    None,
    "",
    "s0",
    "x",
    [],
    {},
    [[]],
    ["+", "s0", 1],
    4095,
)


def blind(raw: bytes, rng: random.Random) -> bytes:
    """Bit flips, cuts, repeated and swapped runs of bytes."""
    made = bytearray(raw)
    kind = rng.randrange(5)
    at, other = sorted(rng.randrange(len(made)) for _ in range(2))
    if kind == 0:
        made[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del made[at:other]
    elif kind == 2:
        made[at:at] = made[at:other]
    elif kind == 3:
        made[at : at + 64], made[other : other + 64] = made[other : other + 64], made[at : at + 64]
    else:
        made[at : at + 8] = rng.randbytes(8)
    return bytes(made)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, part in inner:
        found += places(part, (*path, key))
    return found


def forged(raw: bytes, rng: random.Random) -> bytes:
    """One or two entries of the header changed, removed or doubled, and the header signed again."""

    def change(header: Any) -> None:
        for _ in range(rng.randint(1, 2)):
            *path, last = rng.choice(places(header))
            owner = header
            for key in path:
                owner = owner[key]
            kind = rng.randrange(4)
            if kind == 0:
                del owner[last]
            elif kind == 1 and isinstance(owner, list):
                owner.append(owner[last])
            elif kind == 2 and isinstance(owner[last], int):
                owner[last] += rng.choice((-64, -1, 1, 64))
            else:
                owner[last] = json.loads(json.dumps(rng.choice(VALUES)))

    return sample.forged(raw, change)


def attempt(path: Path, raw: bytes) -> bool:
    """Was the file read? If not it was refused in the one way there is."""
    path.write_bytes(raw)
    try:
        sample.load(path)
    except ArtifactError as refused:
        assert len(str(refused)) < 600
        return False
    return True


def test_mutations_are_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "m"
    sample.save(path)
    raw = path.read_bytes()
    rng = random.Random(7)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(BLIND):
        made = blind(raw, rng)
        assert not attempt(path, made) or made == raw
    for _ in range(FORGED):
        made = forged(raw, rng)
        if attempt(path, made):  # a change that AdaFlex could have written: it must then survive the way back
            header = sample.header(made)
            assert json.dumps(header["weights"]) == json.dumps(sample.header(raw)["weights"])
    assert time.monotonic() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
