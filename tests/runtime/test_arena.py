"""The greedy packer: nothing overlaps, and it is never far above what must be live."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from adaflex.runtime.arena import ALIGNMENT, Piece, lower_bound, overlaps, pack

NUMBERS = st.tuples(st.integers(0, 5000), st.integers(0, 12), st.integers(1, 6))
PIECES = st.lists(NUMBERS.map(lambda t: Piece(t[0], t[1], t[1] + t[2])), min_size=1, max_size=14)


@given(PIECES)
@settings(max_examples=200, deadline=None)
def test_packings_are_sound(pieces: list[Piece]) -> None:
    found = pack(pieces)
    assert all(offset % ALIGNMENT == 0 for offset in found.offsets)
    assert found.height >= lower_bound(pieces)
    for i, (a, low) in enumerate(zip(pieces, found.offsets, strict=True)):
        assert low + a.size_bytes <= found.height
        for b, other in list(zip(pieces, found.offsets, strict=True))[:i]:
            together = any(a.first <= t < a.end and b.first <= t < b.end for t in range(20))
            assert not together or low + a.size_bytes <= other or other + b.size_bytes <= low
    assert not overlaps(pieces, found.offsets)


def test_an_overlap_is_found() -> None:
    pieces = [Piece(100, 0, 2), Piece(100, 1, 3), Piece(100, 2, 4)]
    assert overlaps(pieces, (0, 64, 0)) == [(0, 1), (1, 2)]
    assert not overlaps(pieces, (0, 128, 0))


def test_buffers_one_after_the_other_share() -> None:
    assert pack([Piece(1000, 0, 1), Piece(1000, 1, 2), Piece(1000, 2, 3)]).height == 1024
