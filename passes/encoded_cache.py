"""Repaired tensors kept between runs, so that a plan that was made once is not repaired again.

In: what the losses' cache is keyed by, and a folder. Out: ``EncodedCache``: one file for each (site, encoding) that a
plan took. A file that cannot be read is one that is not there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adaflex.passes.menu import Encoded
from adaflex.passes.score_cache import Key
from adaflex.solver.table import Encoding

log = logging.getLogger("adaflex.passes")

FOLDER = "encoded"
FORMAT = 1


class EncodedCache:
    """The encoded tensors of one model on one set of calibration data."""

    def __init__(self, folder: Path, key: Key) -> None:
        self.folder = folder / FOLDER
        self.key = key.digest()

    def get(self, site: str, encoding: Encoding) -> Encoded | None:
        """The tensor stored for this choice; None where there is none, or a damaged one."""
        try:
            with self._path(site, encoding).open("rb") as file, np.load(file, allow_pickle=False) as held:
                shape = tuple(int(size) for size in held["shape"])
                entries = [name.split(":") for name in held.files if name != "shape"]
                parts = {name: _tensor(held[f"{name}:{dtype}"], dtype) for name, dtype in entries}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as fault:
            log.warning("a kept tensor of '%s' cannot be read (%s); it is made again", site, fault)
            return None
        return Encoded(encoding, shape, parts)

    def put(self, site: str, encoded: Encoded) -> None:
        """Keep a tensor; where the folder cannot be written nothing is kept, and that is logged."""
        held = {
            f"{name}:{str(part.dtype).removeprefix('torch.')}": _array(part) for name, part in encoded.parts.items()
        }
        path = self._path(site, encoded.encoding)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, held | {"shape": np.array(encoded.shape, dtype=np.int64)})
        except OSError as fault:
            log.info("a repaired tensor could not be kept (%s)", fault)

    def _path(self, site: str, encoding: Encoding) -> Path:
        wanted = json.dumps([FORMAT, self.key, site, asdict(encoding)], sort_keys=True)
        return self.folder / f"{hashlib.sha256(wanted.encode()).hexdigest()[:32]}.npz"


def _array(part: Tensor) -> np.ndarray:
    """The tensor's bytes: numpy lacks some of torch's types."""
    dense = part.detach().contiguous()
    return dense.reshape(-1).view(torch.uint8).reshape(*dense.shape, dense.element_size()).numpy()


def _tensor(array: np.ndarray, dtype: str) -> Tensor:
    wanted = getattr(torch, dtype)
    if not isinstance(wanted, torch.dtype) or array.dtype != np.uint8 or array.shape[-1] != wanted.itemsize:
        raise ValueError(f"{array.dtype} bytes do not hold {dtype}")
    return torch.from_numpy(array.copy()).reshape(-1).view(wanted).reshape(array.shape[:-1])


def _write(path: Path, held: dict[str, np.ndarray]) -> None:
    """Whole or not at all: a reader never sees half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **held)  # type: ignore[arg-type]
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
