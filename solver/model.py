"""The joint program as rows over columns, in the table's own units: bytes, nanoseconds, loss.

In: a ``CostTable``, a ``Budget`` and which choices are ruled out. Out: a ``Program`` of plain arrays; scaling and
solving are solve.py's, and what a plan really costs is check.py's. No row has an indicator constant (no big-M).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from adaflex.solver.table import Budget, Choice, CostTable

INFINITE = float("inf")
Terms = list[tuple[int, float]]


@dataclass(frozen=True)
class Row:
    """low <= sum of values x columns <= high. ``budget`` names the wish it belongs to, "" for structure."""

    name: str
    columns: NDArray[np.int64]
    values: NDArray[np.float64]
    low: float
    high: float
    budget: str = ""


@dataclass(frozen=True)
class Program:
    """Columns 0..choices-1 are the table's choices (binary); the others are continuous and at least 0."""

    choices: int
    upper: NDArray[np.float64]
    units: NDArray[np.float64]  # natural units per unit the solver sees
    rows: tuple[Row, ...]
    objectives: dict[str, tuple[NDArray[np.float64], float]]  # name -> (cost per column, constant)
    ring: int = -1  # column of the ring's bytes, -1 where nothing streams


@dataclass
class Draft:
    """Columns and rows while they are collected."""

    upper: list[float]
    units: list[float]
    rows: list[Row] = field(default_factory=list)

    def column(self, unit: float = 1.0, upper: float = INFINITE) -> int:
        """Add a continuous column and return its index."""
        self.upper.append(upper)
        self.units.append(unit)
        return len(self.upper) - 1

    def row(self, name: str, terms: Iterable[tuple[int, float]], low: float, high: float, budget: str = "") -> None:
        """Add a row; entries of one column are summed."""
        summed: dict[int, float] = defaultdict(float)
        for column, value in terms:
            summed[column] += value
        columns = np.fromiter(summed, dtype=np.int64, count=len(summed))
        values = np.fromiter(summed.values(), dtype=np.float64, count=len(summed))
        self.rows.append(Row(name, columns, values, low, high, budget))


def power_of_two(size: float) -> float:
    """The power of two next below ``size``, at least 1: a unit that scales without rounding."""
    return float(2.0 ** max(0, int(np.floor(np.log2(size))))) if size >= 1 else 1.0


@dataclass(frozen=True)
class Places:
    """Where choices stand: columns by site, by block, and the index of each id."""

    index: dict[str, int]
    by_site: dict[str, list[int]]
    block_of: dict[str, int]

    def block(self, choice: Choice) -> int | None:
        """The block whose time and ring the choice belongs to: that of its first site."""
        return self.block_of.get(choice.sites[0])


def places(table: CostTable) -> Places:
    """Index the table once."""
    by_site: dict[str, list[int]] = {site.id: [] for site in table.sites}
    for column, choice in enumerate(table.choices):
        for site in choice.sites:
            by_site[site].append(column)
    block_of = {site: number for number, block in enumerate(table.blocks) for site in block}
    return Places({choice.id: column for column, choice in enumerate(table.choices)}, by_site, block_of)


def exact_stalls(table: CostTable) -> bool:
    """Whether the stall rows state the truth: a ring of at most two blocks, or nothing that streams."""
    return min(table.ring_depth, len(table.blocks)) <= 2 or not any(any(c.cost.stream_ns) for c in table.choices)


def build(table: CostTable, budget: Budget, excluded: Collection[int] = (), *, relaxed: bool = False) -> Program:
    """The program of ``table`` under ``budget``; columns in ``excluded`` are held at 0.

    Its stall rows never understate a deep ring's waits; ``relaxed`` only asks that the link be done in time, which
    never overstates them: for bounds and proofs.
    """
    count = len(table.choices)
    upper = [1.0] * count
    for column in excluded:
        upper[column] = 0.0
    draft = Draft(upper, [1.0] * count)
    where = places(table)
    add_structure(draft, table, where)
    peak, ring = add_memory(draft, table, budget, where)
    times = add_times(draft, table, budget, where, relaxed)
    loss = add_loss(draft, table, budget, where)
    sizes: Terms = [(i, float(c.cost.size_bytes)) for i, c in enumerate(table.choices) if c.cost.size_bytes]
    add_bits(draft, table, budget, sizes)
    weights = budget.phase_weights or (1,) * len(table.phases)
    latency = [
        (column, weight * value) for weight, terms in zip(weights, times, strict=True) for column, value in terms
    ]
    fixed = sum(w * t for w, t in zip(weights, table.fixed.time_ns, strict=False))
    width = len(draft.upper)
    objectives = {
        "loss": (dense(loss, width), 0.0),
        "latency": (dense(latency, width), float(fixed)),
        "memory": (dense([(peak, 1.0)], width), 0.0),
        "bits": (dense(sizes, width), 0.0),
    }
    bounds = np.array(draft.upper)
    drop_hopeless(bounds, count, draft.rows)
    return Program(count, bounds, np.array(draft.units), tuple(draft.rows), objectives, ring)


def drop_hopeless(upper: NDArray[np.float64], choices: int, rows: Sequence[Row]) -> None:
    """Hold choices at 0 that alone exceed a budget whose terms are all at least 0: they would only spoil the scale."""
    for row in rows:
        if row.budget and row.high >= 0 and np.all(row.values >= 0):
            over = row.columns[row.values > row.high]
            upper[over[over < choices]] = 0.0


def dense(terms: Iterable[tuple[int, float]], width: int) -> NDArray[np.float64]:
    """A cost vector from terms; entries of one column are summed."""
    vector = np.zeros(width)
    for column, value in terms:
        vector[column] += value
    return vector


def add_structure(draft: Draft, table: CostTable, where: Places) -> None:
    """Covering, implications, links and spacing."""
    for site, columns in where.by_site.items():
        draft.row(f"cover {site}", [(column, 1.0) for column in columns], 1.0, 1.0)
    for column, choice in enumerate(table.choices):
        for needed in choice.requires:
            if where.index[needed] != column:
                draft.row(
                    f"{choice.id} requires {needed}", [(column, 1.0), (where.index[needed], -1.0)], -INFINITE, 0.0
                )
    for link in table.links:
        value_of = {where.index[name]: value for name, value in link.attribute}
        for first, second in zip(link.sites, link.sites[1:], strict=False):
            values = sorted({value_of.get(c, "") for c in (*where.by_site[first], *where.by_site[second])})
            for value in values:
                terms = [(c, 1.0) for c in where.by_site[first] if value_of.get(c, "") == value]
                terms += [(c, -1.0) for c in where.by_site[second] if value_of.get(c, "") == value]
                draft.row(f"link {link.id} {first} {second} {value}", terms, 0.0, 0.0)
    for spacing in table.spacings:
        terms = [(where.index[name], 1.0) for name in dict.fromkeys(spacing.choices)]
        draft.row(f"spacing {spacing.id}", terms, -INFINITE, float(spacing.most))


def add_memory(draft: Draft, table: CostTable, budget: Budget, where: Places) -> tuple[int, int]:
    """Resident weights, ring, cuts and tiers; returns the columns of the peak and of the ring (-1: none)."""
    first = table.tiers[0].name
    sizes = [float(c.cost.size_bytes) for c in table.choices]
    unit = power_of_two(max(sizes, default=1.0) / 1000.0)
    resident, peak = draft.column(unit), draft.column(unit)
    terms = [(i, sizes[i]) for i, c in enumerate(table.choices) if c.tier == first and sizes[i]]
    draft.row("resident", [*terms, (resident, -1.0)], -INFINITE, 0.0)
    ring = add_ring(draft, table, where, unit)
    base: Terms = [(resident, 1.0), (peak, -1.0), *([(ring, 1.0)] if ring >= 0 else [])]
    constant = float(table.fixed.size_bytes)
    for name, live, extra in cut_terms(table, where):
        draft.row(f"cut {name}", [*base, *live], -INFINITE, -constant - extra)
    if not table.cuts:
        draft.row("cut", base, -INFINITE, -constant)
    limits = dict(budget.tier_bytes)
    most = [("memory", budget.memory_bytes), (f"tier {first}", limits.get(first))]
    most.append((f"capacity of {first}", table.tiers[0].capacity_bytes))
    for name, limit in most:
        if limit is not None:
            draft.row(name, [(peak, 1.0)], -INFINITE, float(limit), name)
    for tier in table.tiers[1:]:
        stored = [(i, sizes[i]) for i, c in enumerate(table.choices) if c.tier == tier.name]
        for name, limit in (
            (f"tier {tier.name}", limits.get(tier.name)),
            (f"capacity of {tier.name}", tier.capacity_bytes),
        ):
            if limit is not None:
                draft.row(name, stored, -INFINITE, float(limit), name)
    return peak, ring


def cut_terms(table: CostTable, where: Places) -> Iterable[tuple[str, Terms, float]]:
    """(name, workspace terms, base bytes) of each cut; without cuts each choice runs alone, site by site."""
    work = [float(c.cost.workspace_bytes) for c in table.choices]
    for cut in table.cuts:
        live = [(where.index[name], work[where.index[name]]) for name in dict.fromkeys(cut.choices)]
        live += [(where.index[name], -float(amount)) for name, amount in cut.released]
        yield cut.id, [term for term in live if term[1]], float(cut.base_bytes)
    if not table.cuts:
        for site, columns in where.by_site.items():
            live = [(column, work[column]) for column in columns if work[column]]
            if live:
                yield site, live, 0.0


def add_ring(draft: Draft, table: CostTable, where: Places, unit: float) -> int:
    """The ring's column and its rows: what ``ring_depth`` consecutive blocks stage, cyclically."""
    stage = [(i, float(c.cost.stage_bytes)) for i, c in enumerate(table.choices) if c.cost.stage_bytes]
    if not stage:
        return -1
    ring = draft.column(unit)
    by_block: dict[int | None, Terms] = defaultdict(list)
    for column, size in stage:
        by_block[where.block(table.choices[column])].append((column, size))
    for column, size in by_block.pop(None, []):
        draft.row(f"ring {table.choices[column].id}", [(column, size), (ring, -1.0)], -INFINITE, 0.0)
    count = len(table.blocks)
    depth = min(table.ring_depth, count)
    for start in range(count):
        window = [term for k in range(depth) for term in by_block.get((start + k) % count, [])]
        if window:
            draft.row(f"ring {start}", [*window, (ring, -1.0)], -INFINITE, 0.0)
    return ring


def add_times(draft: Draft, table: CostTable, budget: Budget, where: Places, relaxed: bool) -> list[Terms]:
    """Casts, stalls and one latency row per phase; returns the terms of each phase's time without its constant."""
    unit = power_of_two(max((t for c in table.choices for t in c.cost.time_ns), default=1) / 1000.0)
    casts = add_casts(draft, table, where)
    numerator, denominator = table.time_scale
    found = []
    for phase, name in enumerate(table.phases):
        terms = add_stalls(draft, table, where, (phase, casts, unit), relaxed)
        found.append(terms)
        limit = budget.latency_ns[phase] if budget.latency_ns else None
        if limit is not None:
            fixed = table.fixed.time_ns[phase] if phase < len(table.fixed.time_ns) else 0
            draft.row(
                f"latency of {name}",
                terms,
                -INFINITE,
                float(limit * denominator // numerator - fixed),
                f"latency of {name}",
            )
    return found


def add_casts(draft: Draft, table: CostTable, where: Places) -> list[int]:
    """One column per cast that is 1 where its ends differ in activation format (and neither is '')."""
    found = []
    for cast in table.casts:
        column = draft.column()
        found.append(column)
        ends = []
        for site in (cast.first, cast.second):
            by_format: dict[str, list[int]] = defaultdict(list)
            for c in where.by_site[site]:
                by_format[table.choices[c].activation].append(c)
            ends.append(by_format)
        for one, other in (ends, ends[::-1]):
            for name in sorted(one):
                if name:
                    terms = [(c, 1.0) for c in one[name]]
                    terms += [(c, -1.0) for c in (*other.get(name, ()), *other.get("", ()))]
                    draft.row(f"cast {cast.first} {cast.second} {name}", [*terms, (column, -1.0)], -INFINITE, 0.0)
    return found


def add_stalls(
    draft: Draft, table: CostTable, where: Places, of: tuple[int, Sequence[int], float], relaxed: bool
) -> Terms:
    """Terms of one phase's time: choices, casts, and per block the wait for weights that do not arrive in time.

    A block waits at most for its load minus the compute of the block before; exact for a ring of two blocks,
    never below the truth for a deeper one.
    """
    phase, casts, unit = of
    compute: dict[int | None, Terms] = defaultdict(list)
    load: dict[int | None, Terms] = defaultdict(list)
    for column, choice in enumerate(table.choices):
        block = where.block(choice)
        compute[block].append((column, float(choice.cost.time_ns[phase])))
        if choice.cost.stream_ns and choice.cost.stream_ns[phase]:
            load[block].append((column, float(choice.cost.stream_ns[phase])))
    for column, cast in zip(casts, table.casts, strict=True):
        compute[where.block_of.get(cast.first)].append((column, float(cast.time_ns[phase])))
    terms = [term for part in compute.values() for term in part if term[1]]
    terms += load.pop(None, [])
    count = len(table.blocks)
    if relaxed and load:
        stall = draft.column(unit)
        every = [term for part in load.values() for term in part]
        every += [(column, -value) for block in range(count) for column, value in compute[block] if value]
        draft.row(f"stall {table.phases[phase]}", [*every, (stall, -1.0)], -INFINITE, 0.0)
        return [*terms, (stall, 1.0)]
    for block, loads in sorted((b, terms) for b, terms in load.items() if b is not None):
        if min(table.ring_depth, count) == 1:
            terms += loads
            continue
        stall = draft.column(unit)
        before = [(column, -value) for column, value in compute[(block - 1) % count] if value]
        draft.row(f"stall {table.phases[phase]} {block}", [*loads, *before, (stall, -1.0)], -INFINITE, 0.0)
        terms.append((stall, 1.0))
    return terms


def add_loss(draft: Draft, table: CostTable, budget: Budget, where: Places) -> Terms:
    """Terms of the loss, pair terms included, and its row where it is a budget."""
    terms = [(i, c.cost.loss) for i, c in enumerate(table.choices) if c.cost.loss]
    terms += add_pairs(draft, table, where)
    if budget.loss is not None:
        draft.row("loss", terms, -INFINITE, budget.loss, "loss")
    return terms


def add_pairs(draft: Draft, table: CostTable, where: Places) -> Terms:
    """Pair terms by transport columns between classes of choices with equal interaction (the local polytope)."""
    blocks: dict[tuple[str, str], dict[tuple[int, int], float]] = defaultdict(lambda: defaultdict(float))
    for pair in table.pairs:
        a, b = where.index[pair.first], where.index[pair.second]
        if a == b or set(table.choices[a].sites) & set(table.choices[b].sites):
            continue  # never taken together
        if table.choices[a].sites[0] > table.choices[b].sites[0]:
            a, b = b, a
        blocks[table.choices[a].sites[0], table.choices[b].sites[0]][a, b] += pair.loss
    found: Terms = []
    for (one, other), entries in blocks.items():
        found += _transport(draft, (one, other), (where.by_site[one], where.by_site[other]), entries)
    return found


def _classes(
    columns: Sequence[int], partners: Sequence[int], loss: dict[tuple[int, int], float], flip: bool
) -> list[list[int]]:
    groups: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for column in columns:
        key = tuple(loss.get((partner, column) if flip else (column, partner), 0.0) for partner in partners)
        groups[key].append(column)
    return list(groups.values())


def _transport(
    draft: Draft, names: tuple[str, str], columns: tuple[list[int], list[int]], loss: dict[tuple[int, int], float]
) -> Terms:
    rows = _classes(columns[0], columns[1], loss, flip=False)
    others = _classes(columns[1], columns[0], loss, flip=True)
    both = [[draft.column() for _ in others] for _ in rows]
    for i, group in enumerate(rows):
        terms = [(y, 1.0) for y in both[i]] + [(c, -1.0) for c in group]
        draft.row(f"pair {names[0]} {names[1]} {i}", terms, 0.0, 0.0)
    for j, group in enumerate(others):
        terms = [(row[j], 1.0) for row in both] + [(c, -1.0) for c in group]
        draft.row(f"pair {names[1]} {names[0]} {j}", terms, 0.0, 0.0)
    weighted = (
        (both[i][j], loss.get((rows[i][0], others[j][0]), 0.0)) for i in range(len(rows)) for j in range(len(others))
    )
    return [term for term in weighted if term[1]]


def add_bits(draft: Draft, table: CostTable, budget: Budget, sizes: Terms) -> None:
    """Stored bytes of all sites against bits per original weight."""
    if budget.bits_milli is not None:
        weights = sum(site.weight_count for site in table.sites)
        draft.row("bits", sizes, -INFINITE, float(budget.bits_milli * weights // 8000), "bits")
