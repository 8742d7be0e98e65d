"""Packs buffers with lives into one arena, quickly, when a program first meets a shape.

In: sizes and half-open lives. Out: offsets without overlap between buffers that live at the same time, and the height.
The planner of ``adaflex.solver`` packs the maximum shape better; this one needs nothing but itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Piece:
    """``size_bytes`` live in ``first <= time < end``."""

    size_bytes: int
    first: int
    end: int


@dataclass(frozen=True)
class Packing:
    """One offset per piece, and the bytes they span."""

    offsets: tuple[int, ...]
    height: int


ORDERS: tuple[Callable[[Piece], tuple[int, ...]], ...] = (
    lambda piece: (-piece.size_bytes, piece.first),
    lambda piece: (-piece.size_bytes * (piece.end - piece.first), piece.first),
    lambda piece: (piece.first, -piece.size_bytes),
    lambda piece: (-(piece.end - piece.first), -piece.size_bytes),
)


def pack(pieces: Sequence[Piece]) -> Packing:
    """The lowest of four greedy packings (by size, area, start, length), each placing a piece in its lowest gap."""
    best: Packing | None = None
    for order in ORDERS:
        found = _place(pieces, sorted(range(len(pieces)), key=lambda k: (*order(pieces[k]), k)))
        if best is None or found.height < best.height:
            best = found
    assert best is not None
    return best


def _place(pieces: Sequence[Piece], order: Sequence[int]) -> Packing:
    offsets = [0] * len(pieces)
    placed: list[int] = []
    height = 0
    for k in order:
        piece = pieces[k]
        taken = sorted((offsets[j], offsets[j] + _padded(pieces[j])) for j in placed if _meet(pieces[j], piece))
        at = 0
        for low, high in taken:
            if low - at >= _padded(piece):
                break
            at = max(at, high)
        offsets[k] = at
        placed.append(k)
        height = max(height, at + _padded(piece))
    return Packing(tuple(offsets), height)


def _padded(piece: Piece) -> int:
    return -(-piece.size_bytes // ALIGNMENT) * ALIGNMENT


def _meet(a: Piece, b: Piece) -> bool:
    return a.first < b.end and b.first < a.end


def overlaps(pieces: Sequence[Piece], offsets: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of pieces that live at the same time on the same bytes: the independent check of a packing."""
    bad = []
    for i, a in enumerate(pieces):
        for j in range(i):
            b = pieces[j]
            apart = offsets[i] + a.size_bytes <= offsets[j] or offsets[j] + b.size_bytes <= offsets[i]
            if a.size_bytes and b.size_bytes and _meet(a, b) and not apart:
                bad.append((j, i))
    return bad


def lower_bound(pieces: Sequence[Piece]) -> int:
    """The most bytes that live at one time: no packing is lower."""
    times = sorted({piece.first for piece in pieces})
    return max((sum(_padded(p) for p in pieces if p.first <= t < p.end) for t in times), default=0)
