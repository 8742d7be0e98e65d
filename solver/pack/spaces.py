"""Several address spaces: each buffer goes to the first space it prefers in which it still fits.

In: ``Buffer``s with preferences, ``Space``s with capacities. Out: a ``Packing`` with the space of every buffer. What a
placement *costs* is bytes times steps away from the first choice. Aliases stay together.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from adaflex.errors import TableError
from adaflex.solver.pack.files import Space
from adaflex.solver.pack.packing import Packing, PackStatus
from adaflex.solver.pack.search import pack
from adaflex.solver.table import Buffer

MOST_PLACEMENTS = 4096  # ways to spread buffers over spaces up to which all are looked at, cheapest first


@dataclass(frozen=True)
class Unit:
    """Buffers that must lie in one space: one alone, or aliases; the spaces it may use, best first."""

    buffers: tuple[Buffer, ...]
    wishes: tuple[str, ...]

    def cost(self, rank: int) -> int:
        """Bytes times steps, for each space that was preferred to the one it gets."""
        return rank * sum(b.size_bytes * (b.end - b.first) for b in self.buffers)


@dataclass
class Spread:
    """What is known of a problem while buffers are spread over spaces; each question is asked once."""

    spaces: dict[str, int]
    alignment: int
    separate: Sequence[tuple[str, str]]
    deadline: float
    native: bool
    nodes: int = 0
    known: dict[tuple[str, frozenset[str]], Packing] = field(default_factory=dict)

    def pack(self, space: str, buffers: Sequence[Buffer], seconds: float) -> Packing:
        """Whether these buffers fit in a space."""
        names = frozenset(b.id for b in buffers)
        found = self.known.get((space, names))
        if found is None:
            pairs = [pair for pair in self.separate if names >= set(pair)]
            found = pack(
                buffers, capacity=self.spaces[space], alignment=self.alignment, separate=pairs,
                time_limit_s=max(0.05, seconds), native=self.native,
            )  # fmt: skip
            self.nodes += found.nodes
            self.known[space, names] = found
        return found

    def left(self) -> float:
        """Seconds left."""
        return self.deadline - time.perf_counter()


def pack_spaces(
    buffers: Sequence[Buffer],
    spaces: Sequence[Space],
    *,
    alignment: int = 1,
    separate: Sequence[tuple[str, str]] = (),
    time_limit_s: float = 10.0,
    native: bool = True,
) -> Packing:
    """Place every buffer in one of its spaces (all of them, in the order given, where it names none).

    Buffers that gain least from a better space (fewest bytes times steps) leave it first when it is too full; where
    there are few ways to spread the buffers the cheapest of all is found. Status ``fits``, ``infeasible`` (proven:
    ``blame`` names buffers) or ``unknown``. One space gives what ``pack`` gives.
    """
    begin = time.perf_counter()
    names = {b.id for b in buffers}
    for pair in separate:
        for name in pair:
            if name not in names:
                raise TableError(f"a separation names unknown buffer {name!r}")
    sizes = {space.name: space.capacity_bytes for space in spaces}
    units = units_of(buffers, list(sizes))
    spread = Spread(sizes, alignment, separate, begin + time_limit_s, native)
    for unit in units:
        biggest = max(unit.buffers, key=lambda b: b.size_bytes)
        if not any(sizes[name] >= biggest.size_bytes for name in unit.wishes):
            text = f"buffer {biggest.id!r} of {biggest.size_bytes} bytes is larger than every space it may use"
            return Packing("infeasible", (), 0, biggest.size_bytes, None, (biggest.id,), text, 0, 0.0, "size")
    few = math.prod(len(unit.wishes) for unit in units) <= MOST_PLACEMENTS
    ranks, failed = (cheapest if few else leave_first)(units, spread)
    seconds = time.perf_counter() - begin
    if ranks is None:
        return _refused(failed, spread, seconds)
    where = {b.id: unit.wishes[rank] for unit, rank in zip(units, ranks, strict=True) for b in unit.buffers}
    offsets: dict[str, int] = {}
    for space in sizes:
        offsets.update(spread.pack(space, [b for b in buffers if where[b.id] == space], 1.0).offsets)
    height = max((offsets[b.id] + b.size_bytes for b in buffers), default=0)
    found = tuple((b.id, offsets[b.id]) for b in buffers)
    placed = tuple((b.id, where[b.id]) for b in buffers)
    return Packing("fits", found, height, 0, None, (), "", spread.nodes, seconds, "spaces", placed)


def _refused(failed: tuple[str, Packing, bool] | None, spread: Spread, seconds: float) -> Packing:
    """The answer where no way was found: proven or not, with the last space that was too full."""
    if failed is None:
        return Packing("unknown", (), 0, 0, None, (), "out of time", spread.nodes, seconds, "spaces")
    space, made, proven = failed
    status: PackStatus = "infeasible" if proven else "unknown"
    blame = made.blame or tuple(sorted({name for _, names in spread.known for name in names}))
    reason = f"{space}: {made.reason or 'too full in every way to spread the buffers'}"
    return Packing(status, (), 0, made.bound, spread.spaces[space], blame, reason, spread.nodes, seconds, "spaces")


def units_of(buffers: Sequence[Buffer], order: list[str]) -> list[Unit]:
    """Families of aliases with the spaces all of them may use, in the preference of the first."""
    by_id = {b.id: b for b in buffers}
    family = {b.id: b.id for b in buffers}
    for b in buffers:
        unknown = [name for name in b.spaces if name not in order]
        if unknown:
            raise TableError(f"buffer {b.id!r} prefers unknown space {unknown[0]!r}; there are {', '.join(order)}")
        if b.alias:
            if b.alias not in by_id:
                raise TableError(f"buffer {b.id!r} is an alias of unknown buffer {b.alias!r}")
            old, new = family[b.id], family[b.alias]
            family = {name: new if of == old else of for name, of in family.items()} if old != new else family
    groups: dict[str, list[Buffer]] = {}
    for b in buffers:
        groups.setdefault(family[b.id], []).append(b)
    units = []
    for members in groups.values():
        wishes = [n for n in (members[0].spaces or order) if all(n in (m.spaces or order) for m in members)]
        if not wishes:
            raise TableError(f"buffer {members[0].id!r} and its aliases have no space in common")
        units.append(Unit(tuple(members), tuple(wishes)))
    return units


def cheapest(units: Sequence[Unit], spread: Spread) -> tuple[list[int] | None, tuple[str, Packing, bool] | None]:
    """The way of least cost in which every space holds what it gets, or what failed: all ways are looked at."""
    ways = itertools.product(*(range(len(unit.wishes)) for unit in units))
    ranked = sorted(ways, key=lambda way: (sum(u.cost(r) for u, r in zip(units, way, strict=True)), way))
    failed: tuple[str, Packing, bool] | None = None
    proven = True
    for way in ranked:
        if failed is not None and spread.left() <= 0:
            return None, (failed[0], failed[1], False)
        for space in spread.spaces:
            here = [b for u, r in zip(units, way, strict=True) if u.wishes[r] == space for b in u.buffers]
            made = spread.pack(space, here, min(1.0, spread.left() / 4))
            if made.status != "fits":
                proven = proven and made.status == "infeasible"
                failed = space, made, proven
                break
        else:
            return list(way), None
    if failed is not None and len(ranked) > 1:  # buffers of one way are no proof for the others
        blame = tuple(dict.fromkeys(name for made in spread.known.values() for name in made.blame))
        failed = failed[0], Packing("infeasible", (), 0, failed[1].bound, None, blame), proven
    return None, failed


def leave_first(units: Sequence[Unit], spread: Spread) -> tuple[list[int] | None, tuple[str, Packing, bool] | None]:
    """Where a space is too full, the buffers that gain least from it leave for their next choice."""
    place = [0] * len(units)
    moved = True
    while moved:
        moved = False
        for space in spread.spaces:
            while True:
                here = [k for k, u in enumerate(units) if u.wishes[place[k]] == space]
                buffers = [b for k in here for b in units[k].buffers]
                made = spread.pack(space, buffers, min(1.0, spread.left() / 2))
                if made.status == "fits":
                    break
                free = [
                    k for k in here
                    if place[k] + 1 < len(units[k].wishes) and all(b.offset is None for b in units[k].buffers)
                ]  # fmt: skip
                blamed = [k for k in free if any(b.id in made.blame for b in units[k].buffers)] or free
                if not blamed or spread.left() < -1.0:
                    alone = len(spread.spaces) == 1 and made.status == "infeasible"
                    return None, (space, made, alone)
                out = min(blamed, key=lambda k: (units[k].cost(1), k))
                place[out] += 1
                moved = True
    return place, None
