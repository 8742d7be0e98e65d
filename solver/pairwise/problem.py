"""Problems of one strategy per node with costs of pairs and a limit on memory over time, and what an answer costs.

In: the JSON of the ASPLOS 2025 contest on intra-operator parallelism (github.com/google/iopddl). Out: a
``PairProblem``; ``value_of`` is the authority on an answer, in exact integers, and shares nothing with the search.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaflex.errors import TableError

NEVER = 10**18  # a cost of this size forbids what it stands for


@dataclass(frozen=True)
class Node:
    """What is decided: a cost and bytes per strategy; its bytes are held in ``first <= time < end``."""

    costs: tuple[int, ...]
    usages: tuple[int, ...]
    first: int
    end: int


@dataclass(frozen=True)
class Edge:
    """The cost of a pair of strategies, row by row of the first node's."""

    first: int
    second: int
    costs: tuple[int, ...]


@dataclass(frozen=True)
class PairProblem:
    """Nodes, edges, and how many bytes may be held at any time (None: any number)."""

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    limit: int | None = None


def value_of(problem: PairProblem, chosen: Sequence[int]) -> tuple[int, int]:
    """(cost, most bytes held at any time) of one strategy per node; a cost of at least 10**18 is forbidden."""
    cost = sum(node.costs[pick] for node, pick in zip(problem.nodes, chosen, strict=True))
    for edge in problem.edges:
        width = len(problem.nodes[edge.second].costs)
        cost += edge.costs[chosen[edge.first] * width + chosen[edge.second]]
    change: dict[int, int] = defaultdict(int)
    for node, pick in zip(problem.nodes, chosen, strict=True):
        if node.first < node.end:
            change[node.first] += node.usages[pick]
            change[node.end] -= node.usages[pick]
    held = most = 0
    for _, by in sorted(change.items()):
        held += by
        most = max(most, held)
    return cost, most


def is_pair_problem(values: Any) -> bool:
    """Whether parsed JSON has the contest's outer form."""
    return isinstance(values, Mapping) and isinstance(values.get("problem"), Mapping)


def pair_problem(values: Any, where: str) -> PairProblem:
    """The problem that parsed JSON stands for; ``TableError`` names the place in ``where`` that does not fit."""
    body = _object(values, "problem", where)
    nodes, edges = _object(body, "nodes", where), body.get("edges", {"nodes": [], "costs": []})
    limit = body.get("usage_limit")
    if limit is not None:
        limit = _integer(limit, f"{where}: usage_limit")
    lives = _list(nodes, "intervals", f"{where}: nodes")
    costs = _list(nodes, "costs", f"{where}: nodes")
    usages = _list(nodes, "usages", f"{where}: nodes")
    if not len(lives) == len(costs) == len(usages):
        raise TableError(f"{where}: nodes has {len(lives)} intervals, {len(costs)} costs and {len(usages)} usages")
    made = tuple(_node(*parts, f"{where}: node {k}") for k, parts in enumerate(zip(lives, costs, usages, strict=True)))
    ends, tables = _list(edges, "nodes", f"{where}: edges"), _list(edges, "costs", f"{where}: edges")
    if len(ends) != len(tables):
        raise TableError(f"{where}: edges has {len(ends)} pairs of nodes and {len(tables)} tables of costs")
    pairs = tuple(_edge(made, *parts, f"{where}: edge {k}") for k, parts in enumerate(zip(ends, tables, strict=True)))
    return PairProblem(str(body.get("name", "")), made, pairs, limit)


def _object(values: Any, name: str, where: str) -> Mapping[str, Any]:
    part = values.get(name) if isinstance(values, Mapping) else None
    if not isinstance(part, Mapping):
        raise TableError(f"{where}: {name} is missing or no object")
    return part


def _list(values: Any, name: str, where: str) -> list[Any]:
    part = values.get(name) if isinstance(values, Mapping) else None
    if not isinstance(part, list):
        raise TableError(f"{where}: {name} is missing or no list")
    return part


def _integer(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value <= NEVER:
        raise TableError(f"{where} is {value!r:.40}; it must be an integer from 0 to 10**18")
    return value


def _integers(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TableError(f"{where} is no list")
    return tuple(_integer(part, where) for part in value)


def _node(life: Any, costs: Any, usages: Any, where: str) -> Node:
    times = _integers(life, f"{where}, interval")
    own, held = _integers(costs, f"{where}, costs"), _integers(usages, f"{where}, usages")
    if len(times) != 2 or not own or len(own) != len(held):
        raise TableError(f"{where} needs an interval of two times and as many usages as costs, at least one")
    return Node(own, held, *times)


def _edge(nodes: Sequence[Node], ends: Any, costs: Any, where: str) -> Edge:
    pair, table = _integers(ends, f"{where}, nodes"), _integers(costs, f"{where}, costs")
    if len(pair) != 2 or max(pair) >= len(nodes):
        raise TableError(f"{where} must join two of the {len(nodes)} nodes")
    need = len(nodes[pair[0]].costs) * len(nodes[pair[1]].costs)
    if len(table) != need:
        raise TableError(f"{where} has {len(table)} costs for {need} pairs of strategies")
    return Edge(*pair, table)
