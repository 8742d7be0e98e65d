"""JSON of files that may be hostile: no duplicate keys, no NaN, bounded depth, one way to write each value.

In: bytes. Out: plain data, or ``ArtifactError``; and back to bytes, the same bytes for equal data.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from adaflex.errors import ArtifactError

MOST_DEPTH = 160
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_STEP = np.zeros(256, np.int8)
_STEP[[ord("["), ord("{")]] = 1
_STEP[[ord("]"), ord("}")]] = -1


def depth(raw: bytes) -> int:
    """How deep brackets nest, strings left out, found without recursion."""
    brackets = np.frombuffer(_STRINGS.sub(b"", raw), np.uint8)
    return int(np.cumsum(_STEP[brackets], dtype=np.int64).max(initial=0))


def loads(raw: bytes, what: str) -> Any:
    """The value of ``raw``; ``what`` names it in errors."""
    if depth(raw) > MOST_DEPTH:
        raise ArtifactError(f"{what} nests more than {MOST_DEPTH} deep; no AdaFlex wrote this file")
    try:
        return json.loads(raw.decode("ascii"), object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as problem:
        raise ArtifactError(f"{what} is no valid JSON ({problem}); the file is damaged, save it again") from None


def dumps(value: Any, what: str) -> bytes:
    """``value`` as ASCII JSON, keys sorted. ``ArtifactError`` for what JSON cannot hold."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise ArtifactError(f"{what} cannot be saved ({problem}); give plain JSON values only") from None
    raw = text.encode("ascii")
    if depth(raw) > MOST_DEPTH:
        raise ArtifactError(f"{what} nests more than {MOST_DEPTH} deep; flatten it")
    return raw


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r:.60} stands twice in one object")
    return made


def _constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")
