"""Keeps the streamed weights of a plan in a file of the cache, for as long as the system keeps caches.

In: their bytes. Out: a ``Stream`` over a file that is named by its content: written once, whole or not at all, checked
before it is used again. It may be deleted at any time: a program that runs keeps what it opened.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from adaflex.errors import StreamError
from adaflex.native import cache_folder
from adaflex.runtime.artifact_file import Piece, replace_file
from adaflex.runtime.stream import PAGE, REQUEST, Stream, open_stream

log = logging.getLogger("adaflex.stream")

FOLDER = "streams"  # of the cache


def keep(data: NDArray[np.uint8]) -> Stream:
    """The bytes, whole pages of them, as a file of the cache. Raises ``ArtifactError`` where it cannot be written."""
    assert len(data) % PAGE == 0
    name = hashlib.sha256(data.data).hexdigest()
    path = cache_folder(FOLDER) / f"{name[:32]}.bin"
    found = _known(path, len(data), name)
    if found is None:
        replace_file(path, [cast(Piece, data.data)])
        found = open_stream(path)
    return found


def _known(path: Path, size: int, name: str) -> Stream | None:
    """A file that an earlier plan left, if its content is what its name says."""
    if not path.exists():
        return None
    try:
        stream = open_stream(path)
        if stream.size_bytes == size and digest(stream) == name:
            return stream
        log.warning("'%s' is damaged: it is written again", path)
    except StreamError as problem:
        log.warning("%s: it is written again", problem)
    return None


def digest(stream: Stream) -> str:
    """SHA-256 of all its bytes, read past the page cache."""
    whole = hashlib.sha256()
    for start in range(0, stream.size_bytes, REQUEST):
        whole.update(stream.load(start, min(REQUEST, stream.size_bytes - start)).data)
    return whole.hexdigest()
