"""In-place pairs: an operator's output may take the place of an input that dies there. Which pairs shall, is chosen.

In: ``Buffer``s, pairs (input, output) that may share a place. Out: a ``Packing`` with the pairs that do. A pair can be
*joined* where the input's last step is the output's first; both then lie at one offset and hold the larger size for
both lives, as aliases do. Of an input's outputs (an output's inputs) at most one can be joined with it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from adaflex.errors import TableError
from adaflex.solver.pack.packing import Packing
from adaflex.solver.pack.problem import live_sums, problem
from adaflex.solver.pack.search import pack
from adaflex.solver.table import Buffer

Pairs = tuple[tuple[str, str], ...]
MOST_SETS = 256  # sets of pairs up to which every one is tried, which proves


def pack_in_place(
    buffers: Sequence[Buffer],
    in_place: Sequence[tuple[str, str]],
    *,
    capacity: int | None = None,
    alignment: int = 1,
    separate: Sequence[tuple[str, str]] = (),
    time_limit_s: float = 10.0,
    native: bool = True,
) -> Packing:
    """Pack as ``pack`` does, joining those pairs of ``in_place`` that lower the height; never above joining none.

    ``in_place`` of the answer are the pairs joined. With few sets of pairs all are tried, so that ``optimal`` and
    ``infeasible`` are proven over all of them. Raises ``TableError`` for buffers or pairs that make no sense.
    """
    begin = time.perf_counter()
    pairs = joinable(buffers, in_place, separate)
    sets, every = sets_of(buffers, pairs)
    bound = joined_bound(buffers, pairs, separate, alignment)
    best: Packing | None = None
    blamed: dict[str, None] = {}
    proven, nodes = every, 0
    for number, chosen in enumerate(sets):
        left = time_limit_s - (time.perf_counter() - begin)
        if best is not None and left <= 0:
            proven = False
            break
        most = capacity if best is None or capacity is not None else best.height - 1
        part = max(0.05, left / (2 if number < 2 else max(2, len(sets) - number)))
        made = pack(
            buffers, capacity=most, alignment=alignment, separate=separate, time_limit_s=part, native=native,
            joined=chosen,
        )  # fmt: skip
        if capacity is None and made.status == "fits":  # it is lower: by how much?
            left = time_limit_s - (time.perf_counter() - begin)
            made = pack(
                buffers, alignment=alignment, separate=separate, time_limit_s=max(0.05, left / 2), native=native,
                joined=chosen,
            )  # fmt: skip
        nodes += made.nodes
        blamed.update(dict.fromkeys(made.blame))
        proven = proven and (
            made.status in ("infeasible", "optimal") or (capacity is not None and made.status == "fits")
        )
        if made.offsets and (best is None or not best.offsets or made.height < best.height):
            best = replace(made, in_place=chosen)
        elif best is None:
            best = made
        if best.offsets and best.height <= (bound if capacity is None else capacity):
            break
    assert best is not None
    return _answer(
        replace(best, nodes=nodes, seconds=time.perf_counter() - begin), bound, capacity, proven, tuple(blamed)
    )


def _answer(best: Packing, bound: int, capacity: int | None, proven: bool, blamed: tuple[str, ...]) -> Packing:
    """The best packing with the status that all sets together give it."""
    best = replace(best, capacity=capacity, bound=bound)
    if capacity is None:
        if not best.offsets:
            return best
        least = best.height if proven else bound
        return replace(best, status="optimal" if best.height <= least else "packed", bound=least, blame=(), reason="")
    if best.offsets and best.height <= capacity:
        return replace(best, status="fits", blame=(), reason="")
    if proven or bound > capacity:
        reason = best.reason or f"no placement of these buffers keeps within {capacity} bytes"
        bound = max(bound, capacity + 1)
        return replace(
            best, status="infeasible", offsets=(), height=0, bound=bound, blame=blamed, reason=reason, in_place=()
        )
    return replace(best, status="unknown", blame=(), reason="")


def joinable(
    buffers: Sequence[Buffer], in_place: Sequence[tuple[str, str]], separate: Sequence[tuple[str, str]] = ()
) -> Pairs:
    """The pairs whose input dies at the output's first step, and which nothing keeps apart."""
    by_id = {buffer.id: buffer for buffer in buffers}
    apart = {frozenset(pair) for pair in separate}
    found = []
    for pair in in_place:
        for name in pair:
            if name not in by_id:
                raise TableError(f"an in-place pair names unknown buffer {name!r}")
        one, other = by_id[pair[0]], by_id[pair[1]]
        if one is other:
            raise TableError(f"buffer {one.id!r} cannot be in place of itself")
        plain = not (one.alias or other.alias or one.gaps or other.gaps)
        pins = {one.offset, other.offset} - {None}
        meet = one.first < other.first == one.end - 1 and other.first < other.end
        if meet and plain and len(pins) < 2 and frozenset(pair) not in apart:
            found.append((one.id, other.id))
    targets = {b.alias for b in buffers if b.alias}
    return tuple(dict.fromkeys(p for p in found if not targets & set(p)))


def sets_of(buffers: Sequence[Buffer], pairs: Pairs) -> tuple[list[Pairs], bool]:
    """Sets of pairs to try, that of most bytes first; and whether these are all there are."""
    size = {buffer.id: buffer.size_bytes for buffer in buffers}
    ranked = sorted(pairs, key=lambda p: (-min(size[p[0]], size[p[1]]), p))
    most = _greedy(ranked)
    every = list(itertools.islice(_all_sets(ranked), MOST_SETS + 1))
    if len(every) <= MOST_SETS:
        return sorted(every, key=lambda s: s != most), True
    fewer = [tuple(p for p in most if p != out) for out in most[::-1]]
    equal = tuple(p for p in most if size[p[0]] == size[p[1]])
    return list(dict.fromkeys([most, (), equal, *fewer[:MOST_SETS]])), False


def _greedy(ranked: Sequence[tuple[str, str]]) -> Pairs:
    inputs: set[str] = set()
    outputs: set[str] = set()
    found = []
    for one, other in ranked:
        if one not in inputs and other not in outputs:
            inputs.add(one)
            outputs.add(other)
            found.append((one, other))
    return tuple(found)


def _all_sets(ranked: Sequence[tuple[str, str]]) -> Iterator[Pairs]:
    """Every set of pairs in which no input and no output stands twice."""
    if not ranked:
        yield ()
        return
    first, rest = ranked[0], ranked[1:]
    for found in _all_sets(rest):
        if not any(first[0] == one or first[1] == other for one, other in found):
            yield (first, *found)
        yield found


def joined_bound(
    buffers: Sequence[Buffer], pairs: Pairs, separate: Sequence[tuple[str, str]] = (), alignment: int = 1
) -> int:
    """No packing is lower whichever pairs are joined: live bytes less the most that joins can save at each step."""
    task = problem(buffers, alignment=alignment, separate=separate)
    sums = live_sums(task).copy()
    size = {buffer.id: buffer.size_bytes for buffer in buffers}
    first = {buffer.id: buffer.first for buffer in buffers}
    saved: dict[int, list[dict[str, int]]] = {}
    for one, other in pairs:
        ends = saved.setdefault(first[other], [{}, {}])
        less = min(size[one], size[other])
        for name, end in zip((one, other), ends, strict=True):
            end[name] = max(end.get(name, 0), less)
    for step, ends in saved.items():
        if any(size[name] for name in ends[1]):
            section = int(np.searchsorted(task.times, step, side="right")) - 1
            if 0 <= section < len(sums):
                sums[section] -= min(sum(end.values()) for end in ends)
    tops = np.where(task.size > 0, np.maximum(task.pin, 0) + task.size, 0)
    return max(int(sums.max(initial=0)), int(tops.max(initial=0)))
