"""Nodes to decide, tables of costs between them, and rows of which each option of a node uses some.

In: nothing of AdaFlex. Out: ``Network``, which reduce.py makes smaller and the rest of the folder solves. Forbidden is
infinite; a node may be taken out, its decision then follows from the others' (``complete``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Run = tuple[int, int, Floats]  # first row, end row, what each option uses in these rows


@dataclass
class Network:
    """Nodes still to decide, with all costs in tables of float64."""

    cost: list[Floats]
    held: list[list[Run]]
    near: list[dict[int, Floats]]  # by node: neighbour -> table [own option, the neighbour's]
    room: Floats  # what is left in each row
    open: set[int] = field(default_factory=set)
    constant: float = 0.0
    undo: list[Callable[[dict[int, int]], None]] = field(default_factory=list)
    origin: list[Ints] = field(default_factory=list)  # what each option was called at first

    def __post_init__(self) -> None:
        self.open = set(range(len(self.cost)))
        self.origin = [np.arange(len(costs)) for costs in self.cost]

    def join(self, i: int, j: int, table: Floats) -> None:
        """Add a table of costs between two nodes (or of a node with itself)."""
        if i == j:
            self.cost[i] = self.cost[i] + np.diag(table)
            return
        both = table + self.near[i][j] if j in self.near[i] else table
        self.near[i][j], self.near[j][i] = both, both.T

    def keep(self, i: int, kept: Ints) -> None:
        """Only these options of a node remain."""
        self.cost[i], self.origin[i] = self.cost[i][kept], self.origin[i][kept]
        self.held[i] = [(a, b, use[kept]) for a, b, use in self.held[i]]
        for j in self.near[i]:
            self.near[i][j] = self.near[i][j][kept]
            self.near[j][i] = self.near[i][j].T

        def back(chosen: dict[int, int]) -> None:
            chosen[i] = int(kept[chosen[i]])

        self.undo.append(back)

    def close(self, i: int, back: Callable[[dict[int, int]], None]) -> dict[int, Floats]:
        """Take a node out; returns its tables. ``back`` decides it once the others are decided."""
        tables = self.near[i]
        for j in tables:
            del self.near[j][i]
        self.near[i] = {}
        self.open.discard(i)
        self.undo.append(back)
        return tables

    def complete(self, chosen: Mapping[int, int]) -> list[int]:
        """One option for every node there ever was from one per open node."""
        whole = dict(chosen)
        for back in reversed(self.undo):
            back(whole)
        return [whole[i] for i in range(len(self.cost))]

    def trace(self, whole: Sequence[int]) -> dict[int, int] | None:
        """What the open nodes take where ``whole`` is chosen; None where one of its options is no longer there."""
        found = {}
        for i in self.open:
            at = np.nonzero(self.origin[i] == whole[i])[0]
            if not len(at):
                return None
            found[i] = int(at[0])
        return found

    def entries(self) -> int:
        """Allowed entries of all tables together."""
        return sum(int(np.isfinite(t).sum()) for i in self.open for j, t in self.near[i].items() if i < j)

    def floor(self) -> float:
        """The least of every node and table: below any choice's cost."""
        tables = sum(float(t.min()) for i in self.open for j, t in self.near[i].items() if i < j)
        return self.constant + tables + sum(float(self.cost[i].min()) for i in self.open)

    def largest(self) -> float:
        """The largest cost that is not forbidden."""
        tables = [t for i in self.open for j, t in self.near[i].items() if i < j]
        parts = [np.abs(t[np.isfinite(t)]) for t in (*tables, *(self.cost[i] for i in self.open))]
        return max((float(part.max(initial=0.0)) for part in parts), default=0.0)

    def copy(self) -> Network:
        """The same state, to be reduced further without changing this one (arrays are never changed in place)."""
        made = Network(list(self.cost), [list(h) for h in self.held], [dict(n) for n in self.near], self.room.copy())
        made.open, made.constant, made.undo = set(self.open), self.constant, list(self.undo)
        made.origin = list(self.origin)
        return made


@dataclass(frozen=True)
class Flat:
    """The open nodes as a few long arrays; nodes are numbered by their place in ``nodes``, tables are row-major."""

    nodes: list[int]
    start: Ints  # of each node's options, one more than nodes
    cost: Floats
    ends: NDArray[np.int32]  # edges x 2, the smaller number first
    offset: Ints  # of each edge's table
    tables: Floats
    spans: NDArray[np.int32]  # runs x (node, first row, end row)
    use: Floats
    option: Ints  # of each entry of ``use``
    room: Floats

    def columns(self, node: int) -> slice:
        """The options of a node in arrays by option."""
        return slice(int(self.start[node]), int(self.start[node + 1]))


def flatten(net: Network, most: float) -> Flat:
    """Arrays of what is open; nothing costs more than ``most`` above the least of its table or node."""
    nodes = sorted(net.open)
    place = {i: k for k, i in enumerate(nodes)}
    counts = [len(net.cost[i]) for i in nodes]
    pairs = [(i, j) for i in nodes for j in sorted(net.near[i]) if i < j]
    tables = [_capped(net.near[i][j], most).ravel() for i, j in pairs]
    runs = [(place[i], run) for i in nodes for run in net.held[i]]
    start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    options = [start[k] + np.arange(counts[k]) for k, _ in runs]
    return Flat(
        nodes,
        start,
        _joined([_capped(net.cost[i], most) for i in nodes]),
        np.array([(place[i], place[j]) for i, j in pairs], dtype=np.int32).reshape(-1, 2),
        np.concatenate(([0], np.cumsum([len(t) for t in tables]))).astype(np.int64),
        _joined(tables),
        np.array([(k, a, b) for k, (a, b, _) in runs], dtype=np.int32).reshape(-1, 3),
        _joined([use for _, (_, _, use) in runs]),
        np.concatenate(options) if options else np.zeros(0, dtype=np.int64),
        net.room.astype(np.float64),
    )


def _capped(values: Floats, most: float) -> Floats:
    low = float(values.min(initial=np.inf))
    return np.minimum(values, (low if np.isfinite(low) else 0.0) + most)


def _joined(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.zeros(0)
