"""What a set of choices costs and which rules it breaks, in exact integers and fractions.

In: a ``CostTable``, a ``Budget``, choices by site. Out: ``Totals`` and named ``Fault``s. Shares no code with the
program that found the choices: this file is the authority on what a plan costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from adaflex.solver.plan import Totals
from adaflex.solver.table import Budget, Choice, CostTable

Chosen = Mapping[str, str] | Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Fault:
    """One broken rule: its kind, a sentence, and by how much a budget is exceeded (in the budget's own unit)."""

    kind: str
    text: str
    amount: float = 0.0
    where: str = ""  # budget or row it belongs to


def taken(table: CostTable, choices: Chosen) -> list[Choice]:
    """The distinct choices taken, in table order. KeyError for ids the table does not have."""
    ids = set(dict(choices).values())
    missing = ids - {choice.id for choice in table.choices}
    if missing:
        raise KeyError(f"the table has no choice {sorted(missing)[0]!r}")
    return [choice for choice in table.choices if choice.id in ids]


def totals(table: CostTable, choices: Chosen) -> Totals:
    """Exact totals of ``choices`` (site id to choice id) by the table's own figures.

    Times include casts and the stalls of streaming (steady state, ring of ``table.ring_depth`` blocks) and are
    rounded up after scaling; ``peak_bytes`` is resident weights + ring + the highest cut.
    """
    chosen = taken(table, choices)
    first = table.tiers[0].name
    resident = table.fixed.size_bytes + sum(c.cost.size_bytes for c in chosen if c.tier == first)
    ring = ring_bytes(table, chosen)
    stored = sum(c.cost.size_bytes for c in chosen)
    weights = sum(site.weight_count for site in table.sites)
    other = [(t.name, sum(c.cost.size_bytes for c in chosen if c.tier == t.name)) for t in table.tiers[1:]]
    numerator, denominator = table.time_scale
    times = [phase_time(table, chosen, phase) for phase in range(len(table.phases))]
    return Totals(
        size_bytes=resident,
        peak_bytes=resident + ring + max(cut_bytes(table, chosen).values(), default=0),
        time_ns=tuple(-(-time * numerator // denominator) for time in times),
        loss=rounded_up(exact_loss(table, chosen)),
        bits_milli=-(-8000 * stored // weights) if weights else 0,
        ring_bytes=ring,
        tier_bytes=tuple(other),
    )


def exact_loss(table: CostTable, chosen: Sequence[Choice]) -> Fraction:
    """Added loss of the choices and of the pair terms between them, without rounding."""
    ids = {choice.id for choice in chosen}
    whole = sum((Fraction(choice.cost.loss) for choice in chosen), Fraction(0))
    return whole + sum(Fraction(p.loss) for p in table.pairs if p.first in ids and p.second in ids)


def rounded_up(value: Fraction) -> float:
    """The least float not below ``value``: a loss printed can be given as a budget and holds."""
    near = float(value)
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)


def cut_bytes(table: CostTable, chosen: Sequence[Choice]) -> dict[str, int]:
    """Live bytes of each cut beyond resident weights and ring. Without cuts each choice runs alone."""
    if not table.cuts:
        return {f"step of {c.sites[0]}": c.cost.workspace_bytes for c in chosen}
    work = {choice.id: choice.cost.workspace_bytes for choice in chosen}
    found = {}
    for cut in table.cuts:
        freed = sum(amount for name, amount in cut.released if name in work)
        found[cut.id] = cut.base_bytes + sum(work.get(name, 0) for name in set(cut.choices)) - freed
    return found


def _block_of(table: CostTable) -> dict[str, int]:
    return {site: index for index, block in enumerate(table.blocks) for site in block}


def ring_bytes(table: CostTable, chosen: Sequence[Choice]) -> int:
    """Bytes of the staging ring: what ``ring_depth`` consecutive blocks stage at most, cyclically."""
    count = len(table.blocks)
    block_of = _block_of(table)
    stage = [0] * count
    alone = 0
    for choice in chosen:
        block = block_of.get(choice.sites[0])
        if block is None:
            alone = max(alone, choice.cost.stage_bytes)
        else:
            stage[block] += choice.cost.stage_bytes
    depth = min(table.ring_depth, count)
    windows = (sum(stage[(start + k) % count] for k in range(depth)) for start in range(count))
    return max(alone, max(windows, default=0))


def casts_taken(table: CostTable, chosen: Sequence[Choice]) -> list[tuple[str, tuple[int, ...]]]:
    """(first site, time per phase) of each cast whose ends have different activation formats."""
    format_of = {site: choice.activation for choice in chosen for site in choice.sites}
    found = []
    for cast in table.casts:
        ends = format_of.get(cast.first, ""), format_of.get(cast.second, "")
        if all(ends) and ends[0] != ends[1]:
            found.append((cast.first, cast.time_ns))
    return found


def phase_time(table: CostTable, chosen: Sequence[Choice], phase: int) -> int:
    """Nanoseconds of one phase before scaling, stalls included."""
    block_of = _block_of(table)
    compute, load = [0] * len(table.blocks), [0] * len(table.blocks)
    outside = table.fixed.time_ns[phase] if phase < len(table.fixed.time_ns) else 0
    for choice in chosen:
        stream = choice.cost.stream_ns[phase] if choice.cost.stream_ns else 0
        block = block_of.get(choice.sites[0])
        if block is None:
            outside += choice.cost.time_ns[phase] + stream
        else:
            compute[block] += choice.cost.time_ns[phase]
            load[block] += stream
    for site, times in casts_taken(table, chosen):
        if site in block_of:
            compute[block_of[site]] += times[phase]
        else:
            outside += times[phase]
    return outside + steady_period(load, compute, table.ring_depth)


def stall_ns(table: CostTable, choices: Chosen) -> tuple[int, ...]:
    """Nanoseconds of each phase that are spent waiting for streamed weights, in steady state and before scaling."""
    chosen = taken(table, choices)
    resident = [replace(choice, cost=replace(choice.cost, stream_ns=())) for choice in chosen]
    phases = range(len(table.phases))
    return tuple(phase_time(table, chosen, phase) - phase_time(table, resident, phase) for phase in phases)


def steady_period(load: Sequence[int], compute: Sequence[int], depth: int) -> int:
    """Time of one pass in steady state: each block's weights arrive one after the other, a ring of ``depth`` blocks.

    Loading block b starts when block b-1 has arrived and block b-depth has been computed; computing b starts when b
    has arrived and b-1 is done. The least period of this max-plus recursion, rounded up to a whole number.
    """
    count = len(load)
    if not any(load):
        return sum(compute)
    depth = min(depth, count)
    if depth == 1:
        return sum(load) + sum(compute)
    high = sum(compute) + sum(max(0, load[b] - compute[b - 1]) for b in range(count))
    low = max(sum(load), sum(compute))
    if depth == 2:
        return high  # a block that waits starts when its weights arrive, so no earlier slack can be saved up
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _period_holds(load, compute, depth, middle) else (middle + 1, high)
    return high


def _period_holds(load: Sequence[int], compute: Sequence[int], depth: int, period: int) -> bool:
    """Whether start times exist that repeat after ``period``: no cycle of the recursion is longer than it."""
    count = len(load)
    arrived, done = [0] * count, [0] * count
    for _ in range(2 * count + 2):
        changed = False
        for b in range(count):
            before = arrived[b - 1] - (period if b == 0 else 0)
            free = done[b - depth] - (period if b < depth else 0)
            arrival = max(arrived[b], before + load[b], free + load[b])
            ready = done[b - 1] - (period if b == 0 else 0)
            finish = max(done[b], max(arrival, ready) + compute[b])
            changed |= arrival != arrived[b] or finish != done[b]
            arrived[b], done[b] = arrival, finish
        if not changed:
            return True
    return False


def faults(table: CostTable, budget: Budget, choices: Chosen) -> tuple[Fault, ...]:
    """Every rule the choices break: covering, links, implications, spacing, tiers and budgets."""
    pairs = list(choices.items()) if isinstance(choices, Mapping) else list(choices)
    found = _cover_faults(table, pairs)
    if found:
        return tuple(found)
    chosen = taken(table, pairs)
    found = [*_rule_faults(table, chosen), *_link_faults(table, chosen)]
    return (*found, *budget_faults(table, budget, chosen))


def _cover_faults(table: CostTable, pairs: Sequence[tuple[str, str]]) -> list[Fault]:
    by_id = {choice.id: choice for choice in table.choices}
    named = dict(pairs)
    found = []
    if len(named) != len(pairs):
        found.append(Fault("site twice", "a site has more than one choice"))
    sites = {site.id for site in table.sites}
    found += [Fault("unknown site", f"{name!r} is no site of the table") for name in named if name not in sites]
    for site in table.sites:
        choice = by_id.get(named.get(site.id, ""))
        if site.id not in named:
            found.append(Fault("uncovered", f"site {site.id!r} has no choice"))
        elif choice is None:
            found.append(Fault("unknown choice", f"site {site.id!r} has unknown choice {named[site.id]!r}"))
        elif site.id not in choice.sites:
            found.append(Fault("wrong site", f"choice {choice.id!r} does not cover site {site.id!r}"))
        else:
            torn = [other for other in choice.sites if named.get(other) != choice.id]
            found += [
                Fault("torn cover", f"choice {choice.id!r} covers {other!r} too, which has another") for other in torn
            ]
    return found


def _rule_faults(table: CostTable, chosen: Sequence[Choice]) -> list[Fault]:
    ids = {choice.id for choice in chosen}
    found = []
    for choice in chosen:
        lacking = [name for name in choice.requires if name not in ids]
        found += [Fault("requires", f"choice {choice.id!r} requires {name!r}, which is not taken") for name in lacking]
    for spacing in table.spacings:
        count = len(ids & set(spacing.choices))
        if count > spacing.most:
            text = f"spacing {spacing.id!r} allows {spacing.most} of its choices and {count} are taken"
            found.append(Fault("spacing", text, count - spacing.most))
    return found


def _link_faults(table: CostTable, chosen: Sequence[Choice]) -> list[Fault]:
    choice_of = {site: choice.id for choice in chosen for site in choice.sites}
    found = []
    for link in table.links:
        value_of = dict(link.attribute)
        values = {site: value_of.get(choice_of[site], "") for site in link.sites}
        if len(set(values.values())) > 1:
            text = ", ".join(f"{site}={value or 'none'}" for site, value in values.items())
            found.append(Fault("link", f"link {link.id!r} wants one value and has {text}"))
    return found


def budget_faults(table: CostTable, budget: Budget, chosen: Sequence[Choice]) -> list[Fault]:
    """Budgets and capacities that these choices exceed, each with the amount."""
    made = totals(table, [(site, choice.id) for choice in chosen for site in choice.sites])
    limits: list[tuple[str, int, int | None]] = [("memory", made.peak_bytes, budget.memory_bytes)]
    limits.append((f"capacity of {table.tiers[0].name}", made.peak_bytes, table.tiers[0].capacity_bytes))
    limits += [
        (f"latency of {p}", t, most) for p, t, most in zip(table.phases, made.time_ns, budget.latency_ns, strict=False)
    ]
    held = dict(made.tier_bytes)
    held[table.tiers[0].name] = made.peak_bytes
    limits += [(f"capacity of {t.name}", held[t.name], t.capacity_bytes) for t in table.tiers[1:]]
    limits += [(f"tier {name}", held[name], most) for name, most in budget.tier_bytes]
    limits.append(("bits", made.bits_milli, budget.bits_milli))
    found = [
        Fault("budget", f"{name} is {value} and may be {most}", value - most, name)
        for name, value, most in limits
        if most is not None and value > most
    ]
    if budget.loss is not None:
        over = exact_loss(table, chosen) - Fraction(budget.loss)
        if over > 0:
            found.append(Fault("budget", f"loss is {made.loss!r} and may be {budget.loss!r}", float(over), "loss"))
    return found
