"""Where the parts of an artifact lie in its file, and how a file replaces another without ever being half written.

In: pieces of bytes. Out: a file that is the old one or the new one at every moment, whatever happens.

    64 bytes   preamble: magic, format version, bytes of the header, bytes of the file, SHA-256 of the header
    header     ASCII JSON, padded with spaces to a multiple of 4096 bytes (counted from the start of the file)
    weights    the constants in order of use, each aligned to 64 bytes, gaps zero
    streamed   (versions 4, 6) the constants that are read from disk at every call, in blocks of whole pages, gaps zero
    native     built kernels, each aligned to 4096 bytes, gaps zero
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adaflex.errors import ArtifactError

MAGIC = b"\x93ADAFLEX"
VERSION = 3
STREAMING = 4  # files with streamed weights, which older readers would not serve
KNOWN = (VERSION, STREAMING, 5, 6)  # 5 and 6: the same of programs in which windows slide over images
PAGE = 4096
PREAMBLE = struct.Struct("<8sIIQQ32s")  # magic, version, reserved, header bytes, file bytes, SHA-256 of the header
MOST_HEADER = 64 << 20
MOST_FILE = 1 << 46
CHUNK = 8 << 20

Piece = bytes | memoryview


@dataclass(frozen=True)
class Preamble:
    """The fixed first bytes of a file."""

    version: int
    header_bytes: int
    file_bytes: int
    digest: bytes  # of the header


def page(size: int) -> int:
    """``size`` rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def write_preamble(preamble: Preamble) -> bytes:
    """The first 64 bytes."""
    return PREAMBLE.pack(MAGIC, preamble.version, 0, preamble.header_bytes, preamble.file_bytes, preamble.digest)


def read_preamble(raw: bytes, path: Path, file_bytes: int) -> Preamble:
    """The preamble of a file of ``file_bytes``, its sizes checked before anything of that size is read."""
    if len(raw) < PREAMBLE.size or raw[: len(MAGIC)] != MAGIC:
        raise ArtifactError(f"'{path}' is no AdaFlex artifact; give a file that .save() or `adaflex compile` wrote")
    _, version, reserved, header, size, digest = PREAMBLE.unpack(raw[: PREAMBLE.size])
    if version not in KNOWN:
        raise ArtifactError(
            f"'{path}' has format version {version}, this AdaFlex reads versions {KNOWN[0]} to {KNOWN[-1]}; "
            "install the version that wrote it, or save it again"
        )
    if size != file_bytes:
        raise ArtifactError(
            f"'{path}' has {file_bytes} bytes but was written with {size}; it was cut short or added to: copy it again"
        )
    if reserved or not 0 < header <= MOST_HEADER or PREAMBLE.size + header > file_bytes:
        raise ArtifactError(f"'{path}' claims a header of {header} bytes in a file of {file_bytes}; it is damaged")
    return Preamble(version, header, size, digest)


def replace_file(path: Path, pieces: Iterable[Piece]) -> None:
    """Make ``path`` hold ``pieces``: a temporary file beside it, synced, then renamed over it.

    Raises ``ArtifactError`` naming the file where the system refuses; ``path`` is then as it was.
    """
    try:
        remove_leftovers(path)
        with _temporary(path) as (descriptor, name):
            for piece in pieces:
                _write_all(descriptor, memoryview(piece))
            os.fsync(descriptor)
            name.replace(path)
        _sync_folder(path.parent)
    except OSError as problem:
        raise ArtifactError(
            f"cannot write '{path}': {problem.strerror or problem}; free space or choose another folder "
            "(a file that was there before is unchanged)"
        ) from problem


def _write_all(descriptor: int, data: memoryview) -> None:
    data = data.cast("B")
    while data:
        data = data[os.write(descriptor, data[:CHUNK]) :]


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[int, Path]]:
    """A new file beside ``path``, locked while its writer lives, removed where it was not renamed away."""
    descriptor, name = _create(path)
    try:
        yield descriptor, name
    except BaseException:
        with contextlib.suppress(OSError):
            name.unlink()
        raise
    finally:
        os.close(descriptor)


def _create(path: Path) -> tuple[int, Path]:
    while True:
        name = path.with_name(f"{_prefix(path)}{os.urandom(6).hex()}.tmp")
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:  # else another writer took it for a leftover before it was locked
                return descriptor, name
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                name.unlink()
            raise
        os.close(descriptor)


def _prefix(path: Path) -> str:
    return f".{path.name}.adaflex-"


def remove_leftovers(path: Path) -> None:
    """Remove temporary files that killed writers of ``path`` left: those that nobody holds the lock of."""
    for name in sorted(path.parent.glob(f"{_prefix(path)}*.tmp")):
        with contextlib.suppress(OSError):
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                name.unlink()
            finally:
                os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last; some file systems cannot sync a folder, and need not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
