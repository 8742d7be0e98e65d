"""Is a packing valid? Shares nothing with the packers, and takes anybody's offsets.

In: ``Buffer``s, offsets by id, a capacity. Out: ``PackFault``s, each naming its kind and its buffers.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaflex.solver.table import Buffer


@dataclass(frozen=True)
class PackFault:
    """One broken rule of a packing."""

    kind: str  # missing, unknown, negative, misaligned, capacity, moved pin, alias, overlap, separation, space
    text: str
    buffers: tuple[str, ...]


def validate(
    buffers: Sequence[Buffer],
    offsets: Mapping[str, int],
    *,
    capacity: int | None = None,
    alignment: int = 1,
    separate: Sequence[tuple[str, str]] = (),
    in_place: Sequence[tuple[str, str]] = (),
) -> list[PackFault]:
    """Every rule that ``offsets`` break; an empty list means that the packing is valid (one address space).

    Pairs ``in_place`` (input, output) may share bytes where the input's last step is the output's first, at one offset.
    """
    known = {buffer.id for buffer in buffers}
    found = [
        PackFault("unknown", f"offset for unknown buffer {name!r}", (name,)) for name in offsets if name not in known
    ]
    placed = [buffer for buffer in buffers if buffer.id in offsets]
    found += [PackFault("missing", f"buffer {b.id!r} has no offset", (b.id,)) for b in buffers if b.id not in offsets]
    for b in placed:
        at = offsets[b.id]
        if at < 0:
            found.append(PackFault("negative", f"buffer {b.id!r} is at {at}", (b.id,)))
        if at % b.alignment or at % alignment:
            found.append(
                PackFault("misaligned", f"buffer {b.id!r} is at {at}, alignment {max(b.alignment, alignment)}", (b.id,))
            )
        if capacity is not None and b.size_bytes and at + b.size_bytes > capacity:
            text = f"buffer {b.id!r} ends at {at + b.size_bytes}, beyond the capacity {capacity}"
            found.append(PackFault("capacity", text, (b.id,)))
        if b.offset is not None and at != b.offset:
            found.append(PackFault("moved pin", f"buffer {b.id!r} is pinned at {b.offset} and placed at {at}", (b.id,)))
        if b.alias and b.alias in offsets and offsets[b.alias] != at:
            text = f"buffer {b.id!r} is at {at}, the one it aliases, {b.alias!r}, at {offsets[b.alias]}"
            found.append(PackFault("alias", text, (b.id, b.alias)))
    by_id = {buffer.id: buffer for buffer in placed}
    shared = {
        frozenset(pair)
        for pair in in_place
        if by_id[pair[0]].end - 1 == by_id[pair[1]].first and offsets[pair[0]] == offsets[pair[1]]
    }
    found += [fault for fault in overlaps(placed, offsets) if frozenset(fault.buffers) not in shared]
    for one, other in separate:
        if one in by_id and other in by_id:
            a, b = by_id[one], by_id[other]
            if not a.size_bytes or not b.size_bytes:
                continue  # no bytes, none shared
            if offsets[one] < offsets[other] + b.size_bytes and offsets[other] < offsets[one] + a.size_bytes:
                found.append(PackFault("separation", f"buffers {one!r} and {other!r} share bytes", (one, other)))
    return found


def overlaps(buffers: Sequence[Buffer], offsets: Mapping[str, int]) -> list[PackFault]:
    """Pairs that are live at the same step and share bytes: one sweep over time, live places kept in order."""
    root = {buffer.id: buffer.alias or buffer.id for buffer in buffers}

    def family(name: str) -> str:
        seen = set()
        while root.get(name, name) != name and name not in seen:
            seen.add(name)
            name = root[name]
        return min(seen | {name}) if root.get(name, name) != name else name

    events: list[tuple[int, int, int, int, str]] = []
    for number, b in enumerate(buffers):
        at = b.first
        for low, high in [*sorted(b.gaps), (b.end, b.end)]:
            if at < low and b.size_bytes:
                events += [(at, 1, offsets[b.id], number, b.id), (low, 0, offsets[b.id], number, b.id)]
            at = max(at, high)
    found = []
    live: list[tuple[int, int]] = []  # (offset, number), ascending
    widest = max((b.size_bytes for b in buffers), default=0)
    for _, starts, offset, number, name in sorted(events):
        if not starts:
            live.pop(bisect_left(live, (offset, number)))
            continue
        end = offset + buffers[number].size_bytes
        for other_offset, other in live[bisect_left(live, (offset - widest, -1)) : bisect_left(live, (end, -1))]:
            b = buffers[other]
            if other_offset + b.size_bytes > offset and family(b.id) != family(name):
                found.append(
                    PackFault(
                        "overlap", f"buffers {b.id!r} and {name!r} are live together and share bytes", (b.id, name)
                    )
                )
        insort(live, (offset, number))
    return found
