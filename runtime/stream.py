"""The file that streamed weights are read from: opened once, read past the page cache in requests of a few megabytes.

In: a file and where its streamed bytes lie; memory to read into. Out: those bytes, or ``StreamError`` with the path.
Nothing is ever mapped. Direct reads where the file system has them; else uncached buffered reads; else buffered reads
whose pages are dropped afterwards. A file may be replaced or deleted meanwhile: what was opened stays as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adaflex.errors import StreamError

PAGE = 4096  # direct reads begin and end on whole pages, in the file and in memory
REQUEST = 4 << 20  # bytes asked for at a time
HUGE = 2 << 20
UNCACHED = 0x80  # RWF_DONTCACHE of preadv2: a buffered read that leaves nothing in the page cache

Bytes = NDArray[np.uint8]


def padded(size: int) -> int:
    """``size`` rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


class Stream:
    """``size_bytes`` of an open file from byte ``offset`` on. It owns ``descriptor``, and closes it at its end."""

    def __init__(self, descriptor: int, path: Path, offset: int, size_bytes: int) -> None:
        self.path, self.offset, self.size_bytes = path, offset, size_bytes
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.way = "direct" if _set_direct(descriptor) else "uncached"

    def read(self, memory: memoryview, at: int, request: int = REQUEST) -> None:
        """Fill ``memory``, whose address and length are whole pages, from byte ``at`` of the streamed bytes."""
        done = 0
        while done < len(memory):
            piece = memory[done : done + request]
            try:
                count = self._read(piece, self.offset + at + done)
            except OSError as problem:
                raise StreamError(
                    f"cannot read the streamed weights in '{self.path}': {problem.strerror}; look at the disk"
                ) from problem
            if count == 0 or (count % PAGE and count < min(len(piece), PAGE)):
                raise StreamError(
                    f"'{self.path}' ends before its streamed weights do; it was cut short: make or copy it again"
                )
            done += count if count == len(piece) else count // PAGE * PAGE  # direct reads go on from whole pages
        if done and self.way == "dropped":
            os.posix_fadvise(self._descriptor, self.offset + at, len(memory), os.POSIX_FADV_DONTNEED)

    def _read(self, piece: memoryview, at: int) -> int:
        if self.way == "uncached":
            try:
                return os.preadv(self._descriptor, [piece], at, UNCACHED)
            except OSError:
                self.way = "dropped"  # an older kernel, or a file system without it
        try:
            return os.preadv(self._descriptor, [piece], at)
        except OSError:
            if self.way != "direct":
                raise
            _unset_direct(self._descriptor)  # the flag was taken, but reads are refused
            self.way = "uncached"
            return self._read(piece, at)

    def drop_cache(self) -> None:
        """Ask the system to forget what it keeps of the streamed bytes, so that the next read is cold."""
        os.posix_fadvise(self._descriptor, self.offset, self.size_bytes, os.POSIX_FADV_DONTNEED)

    def load(self, at: int, size: int) -> Bytes:
        """Bytes of whole pages, in fresh memory."""
        made = pages(size)
        self.read(made.data, at)
        return made

    def load_part(self, at: int, size: int) -> Bytes:
        """Bytes that need not be whole pages."""
        start = at // PAGE * PAGE
        return self.load(start, padded(at + size) - start)[at - start : at - start + size]

    def part(self, offset: int, size_bytes: int) -> Stream:
        """A part of the same opened file, by its place in the file."""
        return Stream(os.dup(self._descriptor), self.path, offset, size_bytes)


def _set_direct(descriptor: int) -> bool:
    try:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError:
        return False
    return True


def _unset_direct(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)


def open_stream(path: Path) -> Stream:
    """All of a file. ``StreamError`` where it cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        raise StreamError(f"cannot open the streamed weights '{path}': {problem.strerror}; compile again") from problem
    return Stream(descriptor, path, 0, os.fstat(descriptor).st_size)


def pages(size: int) -> Bytes:
    """Fresh private memory on whole pages, huge ones for every whole 2 MiB where the system gives them.

    Never more resident than ``size`` rounded up to pages: huge pages are asked for only where they fit.
    """
    memory = mmap.mmap(-1, padded(size) + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE
    large = size // HUGE * HUGE
    if large:
        with contextlib.suppress(OSError):  # a kernel without them: reads are slower, not wrong
            memory.madvise(mmap.MADV_HUGEPAGE, start, large)
    return whole[start : start + padded(size)]


__all__ = ["PAGE", "REQUEST", "Stream", "open_stream", "padded", "pages"]
