"""Makes a network smaller without losing an optimum: what is forbidden, determined, dominated, or needs no room.

In: a ``Network``. Out: the same network, smaller, changed in place. Whole costs below 2**53 stay exact in float64.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from adaflex.solver.pairwise.network import Floats, Ints, Network

FEW = 256  # neighbours
LARGE = 4_000_000  # entries beyond which dominance is not looked for and nodes are not eliminated


def reduce(net: Network, deadline: float, waiting: Iterable[int] | None = None) -> bool:
    """Apply every rule until none applies (or time ends); False where nothing is allowed. ``waiting``: nodes to begin
    with, all where None.
    """
    if np.any(net.room < 0):
        return False
    queue = sorted(net.open if waiting is None else waiting)
    while queue and time.perf_counter() < deadline:  # in rounds: a node with many neighbours waits for all of them
        later: set[int] = set()
        for i in queue:
            if i not in net.open:
                continue
            if time.perf_counter() > deadline:
                break
            around = set(net.near[i])
            if _allowed(net, i):
                later |= around
            if not len(net.cost[i]) or not _settle_use(net, i):
                return False
            if _dominated(net, i):
                later |= around
            later |= _separable(net, i)
            later |= _single(net, i) or _determines(net, i) or _eliminated(net, i)
        queue = sorted(later & net.open)
    return True


def _allowed(net: Network, i: int) -> bool:
    """Drop options that are forbidden alone or with everything of a neighbour, or that need more than there is."""
    fine = np.isfinite(net.cost[i])
    for table in net.near[i].values():
        fine &= np.isfinite(table).any(axis=1)
    for a, b, use in net.held[i]:
        fine &= use <= net.room[a:b].min()
    if fine.all():
        return False
    net.keep(i, np.nonzero(fine)[0])
    return True


def _settle_use(net: Network, i: int) -> bool:
    """What every option uses is taken from the room (False: there is not as much); runs of equal rows are added up."""
    lives: dict[tuple[int, int], Floats] = {}
    for a, b, use in net.held[i]:
        lives[a, b] = lives[a, b] + use if (a, b) in lives else use
    net.held[i] = []
    for (a, b), use in lives.items():
        least = float(use.min())
        if least:
            net.room[a:b] -= least
            if net.room[a:b].min() < 0:
                return False
        if (use > least).any():
            net.held[i].append((a, b, use - least))
    return True


def _dominated(net: Network, i: int) -> bool:
    """Drop an option where another uses no more and costs no more whatever the neighbours do."""
    count = len(net.cost[i])
    if count < 2 or max([t.size for t in net.near[i].values()], default=0) * count > LARGE:
        return False
    no_more = net.cost[i][None, :] <= net.cost[i][:, None] if not net.near[i] else np.ones((count, count), dtype=bool)
    for _, _, use in net.held[i]:
        no_more &= use[None, :] <= use[:, None]
    np.fill_diagonal(no_more, False)
    if not no_more.any():
        return False
    more = net.cost[i][None, :] - net.cost[i][:, None]  # by taking the second in place of the first
    with np.errstate(invalid="ignore"):
        for table in net.near[i].values():
            apart = table[None, :, :] - table[:, None, :]
            apart[np.broadcast_to(np.isinf(table)[:, None, :], apart.shape)] = -np.inf
            more = more + apart.max(axis=2)
    worse = no_more & (more <= 0.0)
    gone = np.zeros(count, dtype=bool)
    for k in np.nonzero(worse.any(axis=1))[0]:
        gone[k] = bool((worse[k] & ~gone).any())
    if not gone.any():
        return False
    net.keep(i, np.nonzero(~gone)[0])
    return True


def _separable(net: Network, i: int) -> set[int]:
    """A table that is a sum of one cost for each end is no table. Returns the nodes to look at again."""
    changed = set()
    for j in list(net.near[i]):
        table = net.near[i][j]
        own = table[:, :1]
        if np.isfinite(table).all() and not ((table - own) - (table - own)[:1]).any():
            net.cost[i] = net.cost[i] + own[:, 0]
            net.cost[j] = net.cost[j] + (table - own)[0]
            del net.near[i][j], net.near[j][i]
            changed |= {i, j}
    return changed


def _single(net: Network, i: int) -> set[int]:
    """A node with one option is decided."""
    if len(net.cost[i]) > 1:
        return set()
    around = set(net.near[i])
    net.constant += float(net.cost[i][0])
    for j, table in net.close(i, lambda chosen: chosen.update({i: 0})).items():
        net.cost[j] = net.cost[j] + table[0]
    return around


def _determines(net: Network, i: int) -> set[int]:
    """Where each option allows exactly one of a neighbour, the neighbour is part of this node."""
    again: set[int] = set()
    for j in list(net.near[i]):
        if len(net.near[j]) > max(len(net.near[i]), FEW):
            continue  # moving all its tables takes too long; where both determine each other, i joins j in its turn
        allowed = np.isfinite(net.near[i][j])
        if (allowed.sum(axis=1) == 1).all():
            again |= {i, *_joined(net, i, j, allowed.argmax(axis=1))}
    return again


def _joined(net: Network, i: int, j: int, to: Ints) -> set[int]:
    """Make a node part of another, whose options say by ``to`` what it takes; returns the nodes it was next to."""

    def back(chosen: dict[int, int]) -> None:
        chosen[j] = int(to[chosen[i]])

    net.cost[i] = net.cost[i] + net.cost[j][to] + net.near[i][j][np.arange(len(to)), to]
    net.held[i] = net.held[i] + [(a, b, use[to]) for a, b, use in net.held[j]]
    moved = net.close(j, back)
    for k, other in moved.items():
        if k != i:
            net.join(i, k, other[to])
    return set(moved)


def _eliminated(net: Network, i: int) -> set[int]:
    """A node that uses nothing and has at most two neighbours follows them at least cost."""
    around = list(net.near[i])
    if i not in net.open or net.held[i] or len(around) > 2:
        return set()
    shape = [len(net.cost[j]) for j in around]
    if len(net.cost[i]) * int(np.prod(shape)) > LARGE:
        return set()
    total = net.cost[i].reshape(-1, *[1] * len(around))
    for k, j in enumerate(around):
        axes = [1] * len(around)
        axes[k] = shape[k]
        total = total + net.near[i][j].reshape(-1, *axes)
    pick, least = total.argmin(axis=0), total.min(axis=0)

    def back(chosen: dict[int, int]) -> None:
        chosen[i] = int(pick[tuple(chosen[j] for j in around)])

    net.close(i, back)
    if not around:
        net.constant += float(least)
    elif len(around) == 1:
        net.cost[around[0]] = net.cost[around[0]] + least
    else:
        net.join(around[0], around[1], least)
    return set(around)


def tighten(net: Network) -> set[int]:
    """Drop rows that nothing can fill, and of rows used by the same nodes all but the tightest; returns the nodes
    whose use changed.
    """
    count = len(net.room)
    if not count:
        return set()
    most, edge = np.zeros(count + 1), np.zeros(count + 1, dtype=bool)
    edge[0] = True
    for i in net.open:
        for a, b, use in net.held[i]:
            most[a] += use.max()
            most[b] -= use.max()
            edge[a] = edge[b] = True
    full = np.cumsum(most)[:-1] * (1 + 1e-12) > net.room
    group = np.cumsum(edge[:-1]) - 1  # rows between which no run begins or ends
    kept = np.zeros(count, dtype=bool)
    order = np.lexsort((net.room, group))
    kept[order[np.concatenate(([True], group[order][1:] != group[order][:-1]))]] = True
    kept &= full
    new = np.concatenate(([0], np.cumsum(kept)))
    changed = set()
    for i in net.open:
        runs = [(int(new[a]), int(new[b]), use) for a, b, use in net.held[i]]
        left = [run for run in runs if run[0] < run[1]]
        if len(left) < len(runs) or len({run[:2] for run in left}) < len(left):
            changed.add(i)
        net.held[i] = left
    net.room = net.room[kept]
    return changed


def simplify(net: Network, deadline: float) -> bool:
    """All rules, rows included, until nothing changes; False where nothing is allowed."""
    tighten(net)
    if not reduce(net, deadline):
        return False
    while time.perf_counter() < deadline:
        changed = tighten(net)
        if not changed:
            break
        if not reduce(net, deadline, changed):
            return False
    return True
