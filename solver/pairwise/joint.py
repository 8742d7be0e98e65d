"""A cost table as a network: for tables with pair terms that are too large for the joint program.

In: a ``CostTable``, a ``Wish``, choices that are ruled out. Out: ``Outcome`` fields offered by the network's search.
Covers, implications and links become forbidden pairs, spacings and budgets become rows of room. What is neither
(stalls, casts or pair terms within a budget, a peak that is minimised) does not fit: ``joint`` then gives None.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaflex.solver.lagrange import relaxed
from adaflex.solver.objective import Wish, scale_of
from adaflex.solver.pairwise.choose import Found, Patience, solve
from adaflex.solver.pairwise.network import Floats, Network, Run
from adaflex.solver.table import CostTable

Verified = Callable[[Mapping[str, str]], float | None]  # the value of choices by site, None where they break a rule


@dataclass(frozen=True)
class Joint:
    """A network whose nodes are the table's sites; ``options`` are columns of the table, by site."""

    net: Network
    options: tuple[tuple[int, ...], ...]

    def choices(self, table: CostTable, whole: Sequence[int]) -> dict[str, str]:
        """Choices by site of one option per node."""
        taken = zip(table.sites, self.options, whole, strict=True)
        return {site.id: table.choices[columns[pick]].id for site, columns, pick in taken}


def fits(table: CostTable, wish: Wish) -> bool:
    """Whether costs and budgets are sums over sites and pairs of sites as a network has them."""
    streams = any(c.cost.stage_bytes or any(c.cost.stream_ns) for c in table.choices)
    timed = any(limit is not None for limit in wish.budget.latency_ns)
    paired = table.pairs and wish.budget.loss is not None
    peak = wish.objective == "memory" and len(table.cuts) != 1
    return not (streams or paired or peak or (table.casts and (timed or wish.objective == "latency")))


def joint(table: CostTable, wish: Wish, excluded: Collection[str] = ()) -> Joint | None:
    """The table as a network, in units of the program's objective; None where it does not fit one."""
    if not fits(table, wish):
        return None
    task = relaxed(table, wish, excluded)
    index = {site.id: k for k, site in enumerate(table.sites)}
    options: list[list[int]] = [[] for _ in table.sites]
    for column, choice in enumerate(table.choices):
        for site in choice.sites:
            options[index[site]].append(column)
    home = [index[choice.sites[0]] for choice in table.choices]  # where a column's costs are counted
    spaced = [np.isin(np.arange(len(home)), _columns(table, s.choices)).astype(float) for s in table.spacings]
    use = np.array([*task.use, *spaced]).reshape(-1, len(home))
    room = np.array([*task.limit, *(float(s.most) for s in table.spacings)])
    costs, held = [], []
    for node, columns in enumerate(options):
        own = np.array([home[c] == node for c in columns])
        cost = np.where(own, task.cost[columns], 0.0)
        costs.append(np.where(task.free[columns], cost, np.inf))
        held.append(_runs(np.where(own, use[:, columns], 0.0)))
    net = Network(costs, held, [{} for _ in options], room)
    less = sum(min(0.0, pair.loss) for pair in table.pairs) if wish.objective == "loss" else 0.0
    net.constant = task.constant - less  # pair terms are tables here
    _add_tables(net, table, wish, (options, index))
    return Joint(net, tuple(map(tuple, options)))


def _columns(table: CostTable, names: Collection[str]) -> list[int]:
    wanted = set(names)
    return [column for column, choice in enumerate(table.choices) if choice.id in wanted]


def _runs(use: Floats) -> list[Run]:
    """Rows x options as runs of rows with equal use."""
    count = len(use)
    new = [row for row in range(count) if row == 0 or not np.array_equal(use[row], use[row - 1])]
    return [(a, b, use[a]) for a, b in zip(new, [*new[1:], count], strict=False) if use[a].any()]


def _add_tables(net: Network, table: CostTable, wish: Wish, where: tuple[list[list[int]], dict[str, int]]) -> None:
    options, index = where
    place = [{column: k for k, column in enumerate(columns)} for columns in options]
    ids = {choice.id: column for column, choice in enumerate(table.choices)}
    tables: dict[tuple[int, int], Floats] = defaultdict(lambda: np.zeros(0))

    def at(i: int, j: int) -> Floats:
        if (i, j) not in tables:
            tables[i, j] = np.zeros((len(options[i]), len(options[j])))
        return tables[i, j]

    def forbid(i: int, first: Sequence[bool], j: int, second: Sequence[bool]) -> None:
        at(i, j)[np.outer(np.array(first), np.array(second))] = np.inf

    for column, choice in enumerate(table.choices):
        first, *others = [index[site] for site in choice.sites]
        for other in others:  # all its sites take it, or none
            one, two = [c == column for c in options[first]], [c == column for c in options[other]]
            forbid(first, one, other, [not v for v in two])
            forbid(first, [not v for v in one], other, two)
        for needed in choice.requires:
            i, j = first, index[table.choices[ids[needed]].sites[0]]
            forbid(i, [c == column for c in options[i]], j, [c != ids[needed] for c in options[j]])
    for link in table.links:
        value = {ids[name]: text for name, text in link.attribute}
        for one_site, other_site in zip(link.sites, link.sites[1:], strict=False):
            i, j = index[one_site], index[other_site]
            mine, theirs = ([value.get(c, "") for c in options[k]] for k in (i, j))
            at(i, j)[np.array([[a != b for b in theirs] for a in mine])] = np.inf
    if wish.objective == "loss":
        for pair in table.pairs:
            a, b = ids[pair.first], ids[pair.second]
            i, j = index[table.choices[a].sites[0]], index[table.choices[b].sites[0]]
            at(i, j)[place[i][a], place[j][b]] += pair.loss
    for (i, j), made in tables.items():
        net.join(i, j, made)


def search(
    table: CostTable,
    wish: Wish,
    excluded: Collection[str],
    verified: Verified,
    patience: Patience,
    slack: float = 0.0,
) -> tuple[Found, dict[str, str] | None] | None:
    """What the network's search finds, in the objective's own unit; None where the table does not fit a network.

    ``slack``: by how much a verified value may lie above the network's only because it is rounded up.
    """
    made = joint(table, wish, excluded)
    if made is None or time.perf_counter() > patience.deadline:
        return None
    unit = scale_of(table, wish.objective)

    def judge(whole: Sequence[int]) -> float | None:
        value = verified(made.choices(table, whole))
        return None if value is None else value / unit

    found = solve(made.net, judge, patience, whole_costs=False, slack=slack / unit)
    if found.closed:  # as close as floating point tells
        found.bound = found.value
    found.bound *= unit
    found.value *= unit
    return found, made.choices(table, found.choice) if found.choice is not None else None
