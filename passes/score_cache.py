"""Losses kept between runs: one JSON file for each combination of everything that a loss depends on.

In: what is scored (weights, calibration, loss) and a folder. Out: ``ScoreCache``, which finds finished losses again
and stores new ones at once; two processes may share it. ``entries`` and ``clear`` serve the command line.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from adaflex.errors import CacheError
from adaflex.passes import repair
from adaflex.passes.calibration import Samples
from adaflex.passes.capture import Capture, Weights

log = logging.getLogger("adaflex.passes")

FORMAT = 1
LOCK_TIMEOUT_S = 30
FOLDER = "scores"


@dataclass(frozen=True)
class Key:
    """Everything a loss depends on besides the choice itself: hexadecimal digests and versions."""

    model: str  # graph and weights
    calibration: str  # inputs of every fitting call
    loss: str
    repair: int = repair.VERSION
    torch: str = torch.__version__
    format: int = FORMAT

    def digest(self) -> str:
        """Names the file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """A file of the cache."""

    path: Path
    key: Key
    count: int  # losses in it
    size_bytes: int


def key_of(capture: Capture, weights: Weights, data: Samples, loss: str) -> Key:
    """The key of scoring this model on these samples; ``loss`` names the loss ("error", "kl")."""
    graph = hashlib.sha256(str(capture.graph.graph).encode())
    _digest(graph, weights)
    return Key(graph.hexdigest(), inputs_digest(data.fit), loss)


def inputs_digest(calls: Iterable[Iterable[Any]]) -> str:
    """Of the inputs of several calls."""
    digest = hashlib.sha256()
    for inputs in calls:
        _digest(digest, inputs)
    return digest.hexdigest()


def _digest(into: Any, values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, Tensor):
            dense = value.detach().cpu().contiguous()
            into.update(f"{dense.dtype}{list(dense.shape)}".encode())
            into.update(dense.reshape(-1).view(torch.uint8).numpy() if dense.numel() else b"")
        else:
            into.update(repr(value).encode())


class ScoreCache:
    """The losses of one key. ``get`` reads what was there at the start and what this process added."""

    def __init__(self, folder: Path, key: Key) -> None:
        """CacheError where the folder cannot be written, or the file belongs to another key."""
        self.key = key
        self.path = folder / FOLDER / f"{key.digest()}.json"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.losses = self._read()
        except OSError as error:
            raise CacheError(f"score cache '{folder}' cannot be used ({error}); name another folder") from error

    def get(self, name: str) -> float | None:
        """The loss stored under this name."""
        return self.losses.get(name)

    def put(self, name: str, loss: float) -> None:
        """Store a loss now, beside whatever another process has stored meanwhile."""
        self.losses[name] = loss
        with FileLock(f"{self.path}.lock", timeout=LOCK_TIMEOUT_S):
            self.losses = self._read() | self.losses
            write_json(self.path, {"key": asdict(self.key), "losses": self.losses})

    def _read(self) -> dict[str, float]:
        if not self.path.exists():
            return {}
        key, losses = _load(self.path)
        for field, value in asdict(self.key).items():
            if key.get(field) != value:
                raise CacheError(
                    f"score cache entry '{self.path.name}' has {field} {key.get(field)!r}, not {value!r}: "
                    "it belongs to something else; delete it"
                )
        return losses


def _load(path: Path) -> tuple[dict[str, Any], dict[str, float]]:
    try:
        content = json.loads(path.read_text())
        losses = {str(name): float(value) for name, value in content["losses"].items()}
        return dict(content["key"]), losses
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"score cache entry '{path.name}' is damaged ({error}); delete it") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all: a reader never sees half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=0, sort_keys=True)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def entries(folder: Path) -> list[Entry]:
    """All files of the cache, damaged ones left out with a warning."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            key, losses = _load(path)
            found.append(Entry(path, Key(**key), len(losses), path.stat().st_size))
        except (CacheError, TypeError) as error:
            log.warning("%s", error)
    return found


def clear(folder: Path) -> int:
    """Delete every file of the cache; returns how many held losses."""
    count = 0
    for path in (folder / FOLDER).glob("*.json*"):
        path.unlink(missing_ok=True)
        count += path.suffix == ".json"
    return count
