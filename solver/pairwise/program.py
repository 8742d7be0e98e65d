"""A pair problem as a ``Program``: the local polytope, with transport columns between classes of equal options.

In: a ``Network``. Out: the program solve.py runs, and what its columns mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaflex.solver.model import INFINITE, Program, Row
from adaflex.solver.pairwise.network import Floats, Ints, Network

COST = "cost"


@dataclass(frozen=True)
class Columns:
    """The first column of each open node."""

    first: dict[int, int]
    count: dict[int, int]

    def chosen(self, values: Floats) -> dict[int, int]:
        """One option per node from the values of the columns."""
        return {i: int(np.argmax(values[at : at + self.count[i]])) for i, at in self.first.items()}

    def taken(self, chosen: Mapping[int, int]) -> list[int]:
        """The columns of one option per node."""
        return [at + chosen[i] for i, at in self.first.items()]


def program_of(net: Network, numbers: Ints) -> tuple[Program, Columns]:
    """Cover and transport rows, and those of the room's rows that are named."""
    nodes = sorted(net.open)
    count = {i: len(net.cost[i]) for i in nodes}
    first = dict(zip(nodes, np.cumsum([0, *count.values()]).tolist(), strict=False))
    costs: list[float] = [float(c) for i in nodes for c in net.cost[i]]
    choices = len(costs)
    rows = [_row(f"cover {i}", first[i] + np.arange(count[i]), np.ones(count[i]), 1.0, 1.0) for i in nodes]
    for i in nodes:
        for j in sorted(net.near[i]):
            if i < j:
                rows += _transport(net.near[i][j], (first[i], first[j]), costs, f"{i} {j}")
    rows += room_rows(net, Columns(first, count), numbers)
    upper = np.full(len(costs), INFINITE)
    upper[:choices] = 1.0
    program = Program(choices, upper, np.ones(len(costs)), tuple(rows), {COST: (np.array(costs), net.constant)})
    return program, Columns(first, count)


def room_rows(net: Network, columns: Columns, numbers: Ints) -> list[Row]:
    """Some of the room's rows (ascending) over the columns of the open nodes."""
    used: list[dict[int, float]] = [{} for _ in numbers]
    for i, at in columns.first.items():
        for a, b, use in net.held[i]:
            some = [(at + s, float(use[s])) for s in np.nonzero(use)[0].tolist()]
            for row in used[int(np.searchsorted(numbers, a)) : int(np.searchsorted(numbers, b))]:
                for column, value in some:
                    row[column] = row.get(column, 0.0) + value
    return [
        Row(
            f"room {number}",
            np.array(list(row), dtype=np.int64),
            np.array(list(row.values()), dtype=np.float64),
            -INFINITE,
            float(net.room[number]),
            "room",
        )
        for number, row in zip(numbers.tolist(), used, strict=True)
    ]


def exceeded(net: Network, chosen: Mapping[int, int], most: int) -> Ints:
    """Up to ``most`` rows that choices fill beyond their room, ascending: each the worst of its neighbourhood."""
    change = np.zeros(len(net.room) + 1)
    for i, pick in chosen.items():
        for a, b, use in net.held[i]:
            change[a] += use[pick]
            change[b] -= use[pick]
    over = np.cumsum(change)[:-1] - net.room
    beside = np.concatenate(([-np.inf], over, [-np.inf]))
    peaks = np.nonzero((over > 0) & (over >= beside[:-2]) & (over > beside[2:]))[0]
    return np.sort(peaks[np.argsort(-over[peaks], kind="stable")[:most]])


def _row(name: str, columns: NDArray[np.int64], values: Floats, low: float, high: float) -> Row:
    return Row(name, columns.astype(np.int64), values, low, high)


def _transport(table: Floats, first: tuple[int, int], costs: list[float], name: str) -> list[Row]:
    """A column for each allowed pair of classes; its sums over either side are what is taken there."""
    small, own = np.unique(table, axis=0, return_inverse=True)
    small, other = np.unique(small, axis=1, return_inverse=True)
    allowed = np.isfinite(small)
    number = np.full(small.shape, -1, dtype=np.int64)
    number[allowed] = len(costs) + np.arange(int(allowed.sum()))
    costs += small[allowed].tolist()
    rows = []
    sides = ((number, own.ravel(), first[0]), (number.T, other.ravel(), first[1]))
    for which, (numbers, classes, start) in enumerate(sides):
        for k, line in enumerate(numbers):
            members, pairs = start + np.nonzero(classes == k)[0], line[line >= 0]
            values = np.concatenate((-np.ones(len(members)), np.ones(len(pairs))))
            rows.append(_row(f"pair {name} {which} {k}", np.concatenate((members, pairs)), values, 0.0, 0.0))
    return rows
