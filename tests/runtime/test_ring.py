"""The staging ring: every block's bytes are there from wait to release, whatever fails is said in the caller."""

import errno
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaflex.errors import AdaflexError, StreamError
from adaflex.runtime import stream as module
from adaflex.runtime.program import Prefetch
from adaflex.runtime.ring import Ring, ring_bytes
from adaflex.runtime.stream import PAGE, Stream, open_stream, padded


def file_of(folder: Path, sizes: list[int]) -> tuple[Path, list[Prefetch], np.ndarray]:
    """A file of blocks with these sizes, each on whole pages."""
    blocks, at = [], 0
    for number, size in enumerate(sizes):
        blocks.append(Prefetch(number, number, at if size else 0, size))
        at += padded(size)
    content = np.random.default_rng(len(sizes)).integers(0, 256, at, np.uint8)
    path = folder / "streamed.bin"
    path.write_bytes(content.tobytes())
    return path, blocks, content


def bytes_at(address: int, size: int) -> bytes:
    import ctypes

    return ctypes.string_at(address, size)


def direct(stream: Stream) -> None:
    """As the file system has it."""


def uncached(stream: Stream) -> None:
    module._unset_direct(stream._descriptor)
    stream.way = "uncached"


def dropped(stream: Stream) -> None:
    module._unset_direct(stream._descriptor)
    stream.way = "dropped"


@pytest.mark.parametrize("way", [direct, uncached, dropped])
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.sampled_from([0, 1, 64, 4096, 5000, 70_000, 2_100_000]), min_size=1, max_size=6))
def test_each_block_is_whole_from_wait_to_release(
    tmp_path_factory: pytest.TempPathFactory, way: Callable[[Stream], None], sizes: list[int]
) -> None:
    path, blocks, content = file_of(tmp_path_factory.mktemp("ring"), sizes)
    stream = open_stream(path)
    way(stream)
    ring = Ring(stream, blocks)
    assert ring.size_bytes == ring_bytes(blocks) <= 2 * max(map(padded, sizes))
    for _ in range(4):
        for number, block in enumerate(blocks):
            if block.size_bytes:
                address = ring.wait(number)
                time.sleep(0.0005)  # the reader is at the next block meanwhile
                wanted = content[block.offset : block.offset + block.size_bytes].tobytes()
                assert bytes_at(address, block.size_bytes) == wanted
            ring.release()


def test_neighbours_share_the_ring_and_the_last_is_beside_the_first() -> None:
    def of(*sizes: int) -> int:
        return ring_bytes([Prefetch(0, 0, 0, size) for size in sizes])

    assert of() == 0 and of(5) == PAGE and of(PAGE, 3 * PAGE) == 4 * PAGE
    assert of(5 * PAGE, PAGE, 7 * PAGE) == 12 * PAGE  # the third is read, for this call, while the first is not needed
    assert of(5 * PAGE, 0, 7 * PAGE, 0) == 7 * PAGE


def test_the_next_call_s_first_block_is_read_when_the_last_but_one_is_done(tmp_path: Path) -> None:
    path, blocks, _ = file_of(tmp_path, [PAGE, PAGE, PAGE])
    ring = Ring(open_stream(path), blocks)
    for number in range(3):
        ring.wait(number)
        ring.release()
    before = ring.waited_ns
    time.sleep(0.1)
    ring.wait(0)
    assert ring.waited_ns - before < 50_000_000 and ring._state.read >= 4


def test_a_file_cut_short_is_said_in_the_caller_with_its_path(tmp_path: Path) -> None:
    path, blocks, _ = file_of(tmp_path, [PAGE, 3 * PAGE])
    stream = open_stream(path)
    os.truncate(path, 2 * PAGE)
    ring = Ring(stream, blocks)
    ring.wait(0)
    with pytest.raises(StreamError, match="cut short") as caught:
        ring.wait(1)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, RuntimeError) and isinstance(caught.value, AdaflexError)


def test_what_the_disk_reports_is_said_in_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, blocks, _ = file_of(tmp_path, [PAGE])
    stream = open_stream(path)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(StreamError, match="Input/output error"):
        Ring(stream, blocks).wait(0)


def test_without_direct_and_uncached_reads_the_page_cache_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, content = file_of(tmp_path, [3 * PAGE])
    monkeypatch.setattr(module, "_set_direct", lambda _: False)
    real, flags = os.preadv, []

    def without(descriptor: int, buffers: object, at: int, flag: int = 0) -> int:
        flags.append(flag)
        if flag:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(descriptor, buffers, at)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", without)
    stream = open_stream(path)
    assert stream.way == "uncached"
    assert stream.load(0, 3 * PAGE).tobytes() == content.tobytes() and stream.way == "dropped"
    assert stream.load_part(100, 5000).tobytes() == content[100:5100].tobytes() and flags == [module.UNCACHED, 0, 0]


def test_a_deleted_or_replaced_file_stays_as_it_was_opened(tmp_path: Path) -> None:
    path, blocks, content = file_of(tmp_path, [PAGE, PAGE])
    stream = open_stream(path)
    path.unlink()
    path.write_bytes(bytes(2 * PAGE))
    ring = Ring(stream, blocks)
    assert bytes_at(ring.wait(0), PAGE) == content[:PAGE].tobytes()
    with pytest.raises(StreamError, match=r"cannot open .*compile again"):
        open_stream(tmp_path / "nothing")


def test_the_reader_ends_with_its_ring(tmp_path: Path) -> None:
    path, blocks, _ = file_of(tmp_path, [PAGE, PAGE])
    before = set(threading.enumerate())  # rings of other tests may end meanwhile: only this one's thread counts
    ring = Ring(open_stream(path), blocks)
    ring.wait(0)
    (reader,) = (t for t in threading.enumerate() if t not in before and t.name == "adaflex-reader")
    del ring
    gc.collect()
    reader.join(10)
    assert not reader.is_alive()


def test_a_fork_after_the_first_call_is_refused_not_waited_for(tmp_path: Path) -> None:
    path, blocks, _ = file_of(tmp_path, [PAGE])
    ring = Ring(open_stream(path), blocks)
    ring.wait(0)
    ring.release()
    child = os.fork()
    if child == 0:
        try:
            ring.wait(0)
        except StreamError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
