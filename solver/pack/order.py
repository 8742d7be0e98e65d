"""In which order to run operators so that the least memory is live at once.

In: ``Operator``s with the buffers they read and write, sizes. Out: an order, its peak, and whether it is proven
lowest. Exact dynamic programming over sets of finished operators where the graph is narrow, improvement in windows
otherwise; never worse than the order given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adaflex.errors import TableError
from adaflex.solver.pack.files import Operator
from adaflex.solver.table import Buffer

MOST_STATES = 50_000
WINDOW = 10


@dataclass(frozen=True)
class Ordered:
    """An order of operators and the bytes live at its busiest step."""

    operators: tuple[str, ...]
    peak: int
    proven: bool


@dataclass(frozen=True)
class Graph:
    """Operators as bit sets: who must come before, what is read and written, who reads each buffer last."""

    sizes: list[int]
    before: list[int]  # operators (bits) that must have run
    reads: list[tuple[int, ...]]
    writes: list[tuple[int, ...]]
    readers: list[int]  # operators (bits) that read a buffer
    kept: list[bool]  # graph inputs and outputs: live throughout, or from their operator to the end
    inputs: list[int]


def graph_of(operators: Sequence[Operator], sizes: Mapping[str, int], outputs: Sequence[str] = ()) -> Graph:
    """Bit sets of a graph; ``TableError`` for unknown buffers, two writers, or a cycle in the order given."""
    names = list(dict.fromkeys(name for op in operators for name in (*op.reads, *op.writes)))
    index = {name: number for number, name in enumerate(names)}
    for name in names:
        if name not in sizes:
            raise TableError(f"operators name buffer {name!r}, which is not among the buffers")
    writer: dict[str, int] = {}
    readers = [0] * len(names)
    for number, op in enumerate(operators):
        for name in op.writes:
            if name in writer:
                raise TableError(f"buffer {name!r} is written by two operators; give each its own")
            writer[name] = number
        for name in op.reads:
            readers[index[name]] |= 1 << number
    before = []
    for number, op in enumerate(operators):
        needed = [writer[name] for name in op.reads if name in writer]
        if any(other >= number for other in needed):
            raise TableError(f"operator {op.id!r} reads a buffer that a later operator writes; give a valid order")
        before.append(sum(1 << other for other in set(needed)))
    reads = [tuple(index[name] for name in dict.fromkeys(op.reads)) for op in operators]
    writes = [tuple(index[name] for name in dict.fromkeys(op.writes)) for op in operators]
    kept = [name in outputs or not readers[index[name]] for name in names]
    inputs = [index[name] for name in names if name not in writer]
    return Graph([sizes[name] for name in names], before, reads, writes, readers, kept, inputs)


def step_of(graph: Graph, done: int, live: int, operator: int) -> tuple[int, int]:
    """(bytes live while ``operator`` runs after ``done``, bytes live after it)."""
    during = live + sum(graph.sizes[b] for b in graph.writes[operator])
    after = during
    now = done | 1 << operator
    for b in (*graph.reads[operator], *graph.writes[operator]):
        if not graph.kept[b] and not graph.readers[b] & ~now:
            after -= graph.sizes[b]
    return during, after


def peak_of(graph: Graph, order: Sequence[int]) -> int:
    """The most bytes live at any step of an order; graph inputs are live until their last reader."""
    done, live = 0, sum(graph.sizes[b] for b in graph.inputs)
    peak = live
    for operator in order:
        during, live = step_of(graph, done, live, operator)
        peak = max(peak, during)
        done |= 1 << operator
    return peak


def exact_order(graph: Graph, members: Sequence[int], done: int, live: int, most: int) -> tuple[list[int], int] | None:
    """The order of ``members`` of least peak, by dynamic programming over the sets already run; None: too many sets."""
    layer: dict[int, tuple[int, int, tuple[int, ...]]] = {done: (0, live, ())}
    states = 0
    for _ in members:
        new: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for before, (peak, now, path) in layer.items():
            for operator in members:
                if before >> operator & 1 or graph.before[operator] & ~before:
                    continue
                during, after = step_of(graph, before, now, operator)
                key, high = before | 1 << operator, max(peak, during)
                if high < most and (key not in new or high < new[key][0]):
                    new[key] = high, after, (*path, operator)
        states += len(new)
        if states > MOST_STATES:
            return None
        layer = new
    found = next(iter(layer.values()), None)
    return (list(found[2]), found[0]) if found else ([], most)


def lowest_order(operators: Sequence[Operator], sizes: Mapping[str, int], outputs: Sequence[str] = ()) -> Ordered:
    """An order of least peak (``proven``), or one no worse than the order given."""
    graph = graph_of(operators, sizes, outputs)
    order = list(range(len(operators)))
    start = sum(graph.sizes[b] for b in graph.inputs)
    best = peak_of(graph, order)
    found = exact_order(graph, order, 0, start, best)
    if found is not None:
        if found[0]:
            order, best = found[0], max(found[1], start)
        return Ordered(tuple(operators[k].id for k in order), best, True)
    order = _greedy(graph, order) if peak_of(graph, _greedy(graph, order)) < best else order
    improved = True
    while improved:
        improved = False
        for first in range(0, max(1, len(order) - WINDOW + 1), WINDOW // 2):
            trial = _window(graph, order, first)
            if peak_of(graph, trial) < peak_of(graph, order):
                order, improved = trial, True
    peak = peak_of(graph, order)
    return Ordered(tuple(operators[k].id for k in order), peak, peak == _trivial_bound(graph))


def _trivial_bound(graph: Graph) -> int:
    """No order has a lower peak: every operator needs what it reads and writes at once, and inputs come first."""
    each = (sum(graph.sizes[b] for b in {*graph.reads[k], *graph.writes[k]}) for k in range(len(graph.before)))
    return max([sum(graph.sizes[b] for b in graph.inputs), *each])


def _greedy(graph: Graph, members: Sequence[int]) -> list[int]:
    """Run next whatever leaves the least memory live."""
    done, live, order = 0, sum(graph.sizes[b] for b in graph.inputs), list[int]()
    while len(order) < len(members):
        ready = [k for k in members if not done >> k & 1 and not graph.before[k] & ~done]
        pick = min(ready, key=lambda k: (step_of(graph, done, live, k)[1], step_of(graph, done, live, k)[0], k))
        live = step_of(graph, done, live, pick)[1]
        order.append(pick)
        done |= 1 << pick
    return order


def _window(graph: Graph, order: Sequence[int], first: int) -> list[int]:
    """The order with ``WINDOW`` operators from ``first`` on rearranged for the least peak within."""
    done, live = 0, sum(graph.sizes[b] for b in graph.inputs)
    for operator in order[:first]:
        live = step_of(graph, done, live, operator)[1]
        done |= 1 << operator
    found = exact_order(graph, order[first : first + WINDOW], done, live, 1 << 62)
    return [*order[:first], *found[0], *order[first + WINDOW :]] if found and found[0] else list(order)


def buffers_in_order(
    operators: Sequence[Operator], order: Sequence[str], buffers: Sequence[Buffer], outputs: Sequence[str] = ()
) -> list[Buffer]:
    """The buffers with the lives that ``order`` gives them: step k is the k-th operator."""
    at = {name: number for number, name in enumerate(order)}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for op in operators:
        for name in op.writes:
            first[name] = at[op.id]
            last[name] = max(last.get(name, 0), at[op.id])
        for name in op.reads:
            last[name] = max(last.get(name, 0), at[op.id])
    read = {name for op in operators for name in op.reads}
    end = {b.id: len(order) if b.id in outputs or b.id not in read else last[b.id] + 1 for b in buffers if b.id in last}
    return [replace(b, first=first.get(b.id, 0), end=end[b.id]) if b.id in end else b for b in buffers]


def sliced_peak(sizes: Sequence[int], invariant: Sequence[bool], slices: int) -> tuple[int, list[tuple[int, int]]]:
    """Peak of a chain of buffers when groups of slice-invariant operators run slice by slice (streamlined slicing).

    ``sizes`` are the buffers along the chain, ``invariant[k]`` whether operator k (from buffer k to k+1) treats
    slices independently. A group's inner buffers need 1/slices of their size; its first and last stay whole. Returns
    the peak and the groups as half-open ranges of operators: slicing operators one by one would gain nothing.
    """
    groups: list[tuple[int, int]] = []
    start = None
    for k, free in enumerate([*invariant, False]):
        if free and start is None:
            start = k
        if not free and start is not None:
            groups.append((start, k))
            start = None
    peak = 0
    inside = {k: group for group in groups for k in range(*group)}
    for k in range(len(invariant)):
        low, high = inside.get(k, (k, k + 1))
        held = [sizes[low], sizes[high]] if k in inside else [sizes[k], sizes[k + 1]]
        inner = [sizes[b] for b in (k, k + 1) if k in inside and low < b < high]
        peak = max(peak, sum(held) + sum(-(-size // slices) for size in inner))
    return peak, groups
