"""An oracle for small packing problems: every order of lowest placement, every choice of pairs and spaces."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from adaflex.solver.table import Buffer


def live(b: Buffer) -> set[int]:
    return {t for t in range(b.first, b.end) if not any(low <= t < high for low, high in b.gaps)}


def families(buffers: Sequence[Buffer], joined: Iterable[tuple[str, str]] = ()) -> list[list[Buffer]]:
    """Buffers that share a place, by aliases and pairs."""
    pairs = [(b.id, b.alias) for b in buffers if b.alias] + list(joined)
    found = [{b.id} for b in buffers]
    for one, other in pairs:
        a, b = (next(s for s in found if name in s) for name in (one, other))
        if a is not b:
            found.remove(b)
            a |= b
    return [[b for b in buffers if b.id in names] for names in found]


def brute_height(
    buffers: Sequence[Buffer], separate: Iterable[tuple[str, str]] = (), joined: Iterable[tuple[str, str]] = ()
) -> int | None:
    """Least height; None where pinned buffers overlap, or a family is pinned in two ways or kept apart."""
    items = families(buffers, joined)
    lives = [set().union(*(live(b) if b.size_bytes else set() for b in item)) for item in items]
    size = [max(b.size_bytes for b in item) for item in items]
    apart = {frozenset((k, m)) for k, one in enumerate(items) for m, other in enumerate(items)
             for a, b in separate if a in {x.id for x in one} and b in {x.id for x in other}}  # fmt: skip
    pins = [{b.offset for b in item} - {None} for item in items]
    if any(len(p) > 1 for p in pins) or any(len(pair) == 1 for pair in apart):
        return None

    def clash(i: int, j: int) -> bool:
        return bool(size[i] and size[j]) and (bool(lives[i] & lives[j]) or frozenset((i, j)) in apart)

    fixed = {i: int(next(iter(p))) for i, p in enumerate(pins) if p}
    for i, j in itertools.combinations(fixed, 2):
        if clash(i, j) and fixed[i] < fixed[j] + size[j] and fixed[j] < fixed[i] + size[i]:
            return None
    best = None
    for order in itertools.permutations([i for i in range(len(items)) if i not in fixed]):
        at = dict(fixed)
        for i in order:
            others = [(at[j], at[j] + size[j]) for j in at if clash(i, j)]
            place = 0
            while (size[i] and any(
                place < high and place + size[i] > low for low, high in others
            )) or any(place % b.alignment for b in items[i]):  # fmt: skip
                place += 1
            at[i] = place
        height = max((at[i] + size[i] for i in at if size[i]), default=0)
        best = height if best is None else min(best, height)
    return best


def brute_in_place(buffers: Sequence[Buffer], pairs: Sequence[tuple[str, str]]) -> int | None:
    """Least height over all sets of pairs that may be joined."""
    by_id = {b.id: b for b in buffers}
    fine = [(a, b) for a, b in pairs if by_id[a].first < by_id[b].first == by_id[a].end - 1 < by_id[b].end]
    heights = []
    for count in range(len(fine) + 1):
        for chosen in itertools.combinations(fine, count):
            once = all(len({pair[k] for pair in chosen}) == count for k in (0, 1))
            height = brute_height(buffers, joined=chosen) if once else None
            heights += [] if height is None else [height]
    return min(heights, default=None)


def brute_spaces(buffers: Sequence[Buffer], sizes: dict[str, int]) -> int | None:
    """Least bytes times steps times places down the list of wishes over all ways that fit; None: there is none."""
    best = None
    wishes = [b.spaces or tuple(sizes) for b in buffers]
    for way in itertools.product(*(range(len(w)) for w in wishes)):
        cost = sum(r * b.size_bytes * (b.end - b.first) for r, b in zip(way, buffers, strict=True))
        if best is not None and cost >= best:
            continue
        where = {b.id: w[r] for b, w, r in zip(buffers, wishes, way, strict=True)}
        if any(where[b.id] != where[b.alias] for b in buffers if b.alias):
            continue
        heights = [
            (brute_height([b for b in buffers if where[b.id] == s]), most)
            for s, most in sizes.items()
            if s in where.values()
        ]
        if all(height is not None and height <= most for height, most in heights):
            best = cost
    return best
