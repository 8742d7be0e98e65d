"""The staging ring: a thread reads the weights of the next block while the one before it is computed.

In: a ``Stream``, the blocks of a program in the order of use. Out: ``wait(block)`` gives the address of its bytes,
``release(block)`` lets the reader go on; after the last block it reads the first one again, for the next call.

Blocks are read in turn to the low and to the high end of the ring, which is as large as the two largest neighbours: the
block that is computed and the one that is read never meet. Block b is read once block b-2 was released.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Sequence

from adaflex.errors import StreamError
from adaflex.runtime.program import Prefetch
from adaflex.runtime.stream import Stream, padded, pages

DEPTH = 2  # blocks in the ring: the one computed and the one read


def ring_bytes(blocks: Sequence[Prefetch]) -> int:
    """Bytes of the ring: the largest two neighbours together, the last and the first block among them."""
    sizes = [padded(block.size_bytes) for block in blocks]
    if len(sizes) <= 1:
        return sum(sizes)
    return max(size + sizes[(place + 1) % len(sizes)] for place, size in enumerate(sizes))


class _State:
    """What the reader shares with its ring; it does not keep the ring itself alive."""

    def __init__(self, stream: Stream, blocks: Sequence[Prefetch]) -> None:
        self.stream, self.blocks = stream, tuple(blocks)
        self.memory = pages(ring_bytes(blocks))
        self.depth = min(DEPTH, len(blocks))
        self.changed = threading.Condition()
        self.read, self.released = 0, 0  # blocks so far, over all calls
        self.error: BaseException | None = None
        self.stopped = False

    def place(self, turn: int) -> tuple[int, int]:
        """Where the block of a turn lies in the ring: first byte and end."""
        size = padded(self.blocks[turn % len(self.blocks)].size_bytes)
        high = turn % 2 and self.depth > 1
        return (len(self.memory) - size, len(self.memory)) if high else (0, size)


def _reader(state: _State) -> None:
    """The thread: reads block after block, round and round, until it is stopped or a read fails."""
    view = state.memory.data
    while True:
        with state.changed:
            state.changed.wait_for(lambda: state.stopped or state.read < state.released + state.depth)
            if state.stopped:
                return
        block = state.blocks[state.read % len(state.blocks)]
        start, end = state.place(state.read)
        try:
            state.stream.read(view[start:end], block.offset)
        except BaseException as problem:
            with state.changed:
                state.error = problem
                state.changed.notify_all()
            return
        with state.changed:
            state.read += 1
            state.changed.notify_all()


def _stop(state: _State) -> None:
    with state.changed:
        state.stopped = True
        state.changed.notify_all()


class Ring:
    """Serves one call at a time. ``waited_ns``: how long calls have waited for the disk so far."""

    def __init__(self, stream: Stream, blocks: Sequence[Prefetch]) -> None:
        self._state = _State(stream, blocks)
        self._process = os.getpid()
        self.size_bytes = len(self._state.memory)
        self.waited_ns = 0
        self._base = self._state.memory.ctypes.data
        threading.Thread(target=_reader, args=(self._state,), name="adaflex-reader", daemon=True).start()
        weakref.finalize(self, _stop, self._state)

    def wait(self, block: int) -> int:
        """The address of a block's bytes, once they are there. Blocks are asked for in order, call after call.

        Raises ``StreamError`` where the reader failed; the ring is of no use then.
        """
        state = self._state
        if os.getpid() != self._process:
            raise StreamError("the process was forked after the program's first call; make programs in the child")
        turn = state.released // len(state.blocks) * len(state.blocks) + block
        start = time.perf_counter_ns()
        with state.changed:
            state.changed.wait_for(lambda: state.read > turn or state.error is not None)
            if state.read <= turn:
                raise self._fault() from state.error
        self.waited_ns += time.perf_counter_ns() - start
        return self._base + state.place(turn)[0]

    def _fault(self) -> StreamError:
        problem = self._state.error
        if isinstance(problem, StreamError):
            return StreamError(str(problem))
        return StreamError(f"reading the streamed weights in '{self._state.stream.path}' failed: {problem!r}")

    def release(self, count: int = 1) -> None:
        """The next ``count`` blocks in order are not needed any more in this call."""
        with self._state.changed:
            self._state.released += count
            self._state.changed.notify_all()

    def close(self) -> None:
        """End the reader."""
        _stop(self._state)
