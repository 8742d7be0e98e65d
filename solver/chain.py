"""What streaming costs at given prices: the ring and its waits are kept, blocks are decided one after the other.

In: a ``CostTable``, its ``Program``, prices of the columns. Out: the least value of any plan at those prices and the
choices that reach it. The LP spreads streaming evenly over fractions of sites; here each block streams whole sites,
two neighbours share the ring, and a link that has to wait for compute has lost that time.

Dynamic programming over the bytes (in units) that a block stages. Where it simplifies it never overstates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaflex.solver.model import INFINITE, Program, places
from adaflex.solver.table import CostTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Way = tuple[tuple[int, ...], ...]  # the groups of each part that together cover a block

SHARES: Floats = np.array([0.0, 0.5, 1.0])  # of lost link time that may be charged to what is computed meanwhile
MOST_UNITS = 2048  # steps of the ring's grid
CLASSES = 4  # of what the first block stages
MOST_WAYS = 16  # ways to cover a block by columns over several sites


@dataclass(frozen=True)
class Pass:
    """One run along the chain: its value, the units each block stages, and the share charged to it (an index)."""

    value: float
    staged: tuple[int, ...]
    shares: tuple[int, ...]


@dataclass(frozen=True)
class Chain:
    """The columns in groups of equal sites and staged units; the blocks as the ways to cover their sites."""

    order: Ints  # columns by group
    starts: Ints  # first place in ``order`` of each group
    units: tuple[int, ...]  # staged by a column of each group
    blocks: tuple[tuple[Way, ...], ...]
    outside: Way  # groups of each site in no block
    unit: int  # bytes
    rate: float  # nanoseconds per byte of the fastest link
    compute: Floats  # nanoseconds per column, 0 outside the blocks
    load: Floats  # at ``rate``

    def prices(self, columns: Floats, wait: float) -> Floats:
        """Prices by share: link time instead of compute, plus a share of the compute that the link may wait for."""
        busy = columns - wait * (self.compute - self.load)
        return busy + SHARES[:, None] * wait * self.compute

    def tables(self, prices: Floats, most: int) -> list[Floats]:
        """Per block the least price of staging exactly so many units: shares x (most + 1)."""
        lows = np.minimum.reduceat(prices[:, self.order], self.starts, axis=1)
        return [np.minimum.reduce([self._steps(way, lows, most)[-1] for way in ways]) for ways in self.blocks]

    def _steps(self, way: Way, lows: Floats, most: int) -> list[Floats]:
        """Least prices by units staged after each part of a way, and before the first."""
        now = np.full((len(lows), most + 1), INFINITE)
        now[:, 0] = 0.0
        found = [now]
        for groups in way:
            new = np.full_like(now, INFINITE)
            for group in groups:
                shift = self.units[group]
                if shift <= most:
                    part = new[:, shift:]
                    np.minimum(part, now[:, : most + 1 - shift] + lows[:, group, None], out=part)
            found.append(new)
            now = new
        return found

    def run(self, tables: Sequence[Floats], wait: float, size: int, *, strict: bool = False) -> Pass:
        """The cheapest chain with a ring of ``size`` units, shared by every two neighbours.

        The link is ahead by at most a block: loading one faster than the block before it is computed loses the
        difference. Any share of it bounds that from below; the best is taken for each number of units staged. The
        last and the first block share the ring by classes of what the first stages, ``strict`` so that they fit.
        """
        lost = SHARES[:, None] * (wait * self.rate * self.unit) * np.arange(size + 1)
        edges = np.linspace(0, size + 1, CLASSES + 1).astype(np.int64)
        first = np.full((CLASSES, len(SHARES), size + 1), INFINITE)
        for number, (low, high) in enumerate(itertools.pairwise(edges)):
            first[number, :, low:high] = tables[0][:, low:high]
        values, picked = [first], list[Ints]()
        for table in tables[1:]:
            before = np.minimum.accumulate(values[-1], axis=2)[:, :, ::-1] - lost
            share = np.argmax(before, axis=1)
            picked.append(share)
            values.append(table[:, : size + 1] + np.take_along_axis(before, share[:, None], axis=1))
        most = size - (edges[1:] - 1 if strict else edges[:-1])
        ends = [float(values[-1][number, 0, : limit + 1].min()) for number, limit in enumerate(most)]
        kind = int(np.argmin(ends))
        staged, shares = [int(np.argmin(values[-1][kind, 0, : most[kind] + 1]))], [0]
        for value, shared in zip(values[-2::-1], picked[::-1], strict=True):
            shares.append(int(shared[kind, staged[-1]]))
            staged.append(int(np.argmin(value[kind, shares[-1], : size + 1 - staged[-1]])))
        return Pass(ends[kind], tuple(staged[::-1]), tuple(shares[::-1]))

    def rest(self, columns: Floats) -> float:
        """The least price of the sites outside all blocks."""
        lows = np.minimum.reduceat(columns[self.order], self.starts)
        return float(sum(lows[list(groups)].min() for groups in self.outside))

    def taken(self, made: Pass, prices: Floats, columns: Floats) -> list[int]:
        """The columns of a run along the chain, and the cheapest ones outside it."""
        found: list[int] = []
        for ways, staged, share in zip(self.blocks, made.staged, made.shares, strict=True):
            lows = np.minimum.reduceat(prices[share : share + 1, self.order], self.starts, axis=1)
            steps = [self._steps(way, lows, staged) for way in ways]
            best = min(range(len(ways)), key=lambda k: float(steps[k][-1][0, staged]))
            found += [self._least(g, prices[share]) for g in self._back(ways[best], steps[best], lows[0], staged)]
        for groups in self.outside:
            found.append(min((self._least(g, columns) for g in groups), key=lambda c: float(columns[c])))
        return sorted(found)

    def _back(self, way: Way, steps: Sequence[Floats], lows: Floats, staged: int) -> Iterator[int]:
        """The groups by which a way reaches ``staged`` units, last part first."""
        for groups, before in zip(way[::-1], steps[-2::-1], strict=True):
            fits = [g for g in groups if self.units[g] <= staged]
            group = min(fits, key=lambda g: float(before[0, staged - self.units[g]] + lows[g]))
            staged -= self.units[group]
            yield group

    def _least(self, group: int, prices: Floats) -> int:
        end = self.starts[group + 1] if group + 1 < len(self.starts) else len(self.order)
        members = self.order[self.starts[group] : end]
        return int(members[np.argmin(prices[members])])


def chain_of(table: CostTable, program: Program, phase: int, reach: float) -> Chain | None:
    """The chain of a table whose ring holds two blocks; None where it has none or a column spans blocks.

    ``reach`` is the largest ring of interest in bytes: the grid is made for it.
    """
    costs = [choice.cost for choice in table.choices]
    stage = np.array([c.stage_bytes for c in costs], dtype=np.int64)
    load = np.array([c.stream_ns[phase] if c.stream_ns else 0 for c in costs], dtype=np.float64)
    used = stage > 0
    if min(table.ring_depth, len(table.blocks)) != 2 or not np.any(used) or np.any(load[~used] > 0):
        return None
    unit = max(int(np.gcd.reduce(stage[used])), int(np.ceil(reach / MOST_UNITS)), 1)
    where = places(table)
    inside = np.array([where.block(choice) is not None for choice in table.choices])
    rate = float(np.min(load[used] / stage[used]))
    compute = np.array([c.time_ns[phase] for c in costs], dtype=np.float64)
    grouped = Grouped(table, program, stage // unit)
    if grouped.blocks is None:
        return None
    return Chain(
        np.array(grouped.order, dtype=np.int64),
        np.array(grouped.starts, dtype=np.int64),
        tuple(grouped.units),
        grouped.blocks,
        grouped.outside,
        unit,
        rate,
        compute * inside,
        rate * stage * inside,
    )


class Grouped:
    """The open columns by the sites they cover and the units they stage; ``blocks`` is None where no chain exists."""

    def __init__(self, table: CostTable, program: Program, units: Ints) -> None:
        by_cover: dict[tuple[str, ...], dict[int, list[int]]] = {}
        for column, choice in enumerate(table.choices):
            if program.upper[column] > 0.0:
                by_cover.setdefault(tuple(sorted(choice.sites)), {}).setdefault(int(units[column]), []).append(column)
        self.order: list[int] = []
        self.starts: list[int] = []
        self.units: list[int] = []
        self.parts: dict[tuple[str, ...], tuple[int, ...]] = {}
        for cover, groups in by_cover.items():
            first = len(self.starts)
            for staged, columns in sorted(groups.items()):
                self.starts.append(len(self.order))
                self.order += columns
                self.units.append(staged)
            self.parts[cover] = tuple(range(first, len(self.starts)))
        held = [set(block) for block in table.blocks]
        home = {site: number for number, block in enumerate(table.blocks) for site in block}
        self.outside = tuple(self.parts.get((site.id,), ()) for site in table.sites if site.id not in home)
        torn = any(
            len(cover) > 1 and (cover[0] not in home or not set(cover) <= held[home[cover[0]]]) for cover in self.parts
        )
        ways = [] if torn else [self._ways(block) for block in table.blocks]
        fine = not torn and all(self.outside) and all(0 < len(found) <= MOST_WAYS for found in ways)
        self.blocks = tuple(ways) if fine else None

    def _ways(self, block: Sequence[str]) -> tuple[Way, ...]:
        """Every way to cover the sites of a block exactly (a few more than allowed, at most)."""
        wide = [cover for cover in self.parts if len(cover) > 1 and cover[0] in block]
        found: list[Way] = []

        def extend(left: tuple[str, ...], way: Way) -> None:
            if not left:
                found.append(way)
            elif len(found) <= MOST_WAYS:
                for cover in ((left[0],), *wide):
                    if left[0] in cover and set(cover) <= set(left) and cover in self.parts:
                        extend(tuple(site for site in left if site not in cover), (*way, self.parts[cover]))

        extend(tuple(block), ())
        return tuple(found)
