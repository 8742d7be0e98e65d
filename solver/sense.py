"""Does a cost table make sense? What no schema can say: ids that exist, sites that can be covered, equal lengths.

In: a ``CostTable`` and a ``Budget``. Out: nothing, or a ``TableError`` / ``OptionError`` naming entry and field.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from adaflex.errors import OptionError, TableError
from adaflex.solver.table import Budget, Choice, CostTable

MOST_SUM = 1 << 52  # bytes and nanoseconds of all choices together stay exact in float64 too


def require_sense(table: CostTable) -> None:
    """Raise ``TableError`` with the first fault of the table."""
    for fault in faults(table):
        raise TableError(fault)


def faults(table: CostTable) -> Iterator[str]:
    """Sentences, one per fault."""
    sites = [site.id for site in table.sites]
    ids = [choice.id for choice in table.choices]
    yield from _doubled("site", sites)
    yield from _doubled("choice", ids)
    if not table.phases:
        yield "phases is empty; name at least one phase, for example 'run'"
    if not table.tiers:
        yield "tiers is empty; name at least the memory that compute reads"
    if table.time_scale[0] <= 0 or table.time_scale[1] <= 0:
        yield f"time_scale is {table.time_scale}; both parts must be positive"
    yield from _of_fixed(table)
    known, covered = set(sites), set[str]()
    tiers = {tier.name for tier in table.tiers}
    for choice in table.choices:
        covered.update(choice.sites)
        yield from _of_choice(table, choice, known, tiers)
    for site in sites:
        if site not in covered:
            yield f"site {site!r} has no choice; every site needs at least one"
    yield from _of_references(table, known, set(ids))
    total = sum(abs(c.cost.size_bytes) + sum(c.cost.time_ns) + sum(c.cost.stream_ns) for c in table.choices)
    if total >= MOST_SUM:
        yield f"bytes and times of all choices sum to {total}, beyond 2**52; use larger units"


def _doubled(what: str, ids: list[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            yield f"{what} id {name!r} stands twice in the table; ids are unique"
        seen.add(name)


def _of_fixed(table: CostTable) -> Iterator[str]:
    times = table.fixed.time_ns
    if len(times) != len(table.phases) and any(times):
        yield f"fixed.time_ns has {len(times)} entries for {len(table.phases)} phases"
    if min((table.fixed.size_bytes, *times)) < 0:
        yield "fixed has a negative size or time"
    if not math.isfinite(table.default_loss):
        yield f"default_loss is {table.default_loss}; it must be finite"
    for tier in table.tiers:
        if tier.capacity_bytes is not None and tier.capacity_bytes < 0:
            yield f"tier {tier.name!r} has capacity {tier.capacity_bytes}; it cannot be negative"
    yield from _doubled("tier", [tier.name for tier in table.tiers])


def _of_choice(table: CostTable, choice: Choice, sites: set[str], tiers: set[str]) -> Iterator[str]:
    cost, name = choice.cost, f"choice {choice.id!r}"
    if not choice.sites:
        yield f"{name} covers no site"
    if len(set(choice.sites)) != len(choice.sites):
        yield f"{name} covers a site twice"
    yield from (f"{name} covers unknown site {site!r}" for site in choice.sites if site not in sites)
    if choice.tier not in tiers:
        yield f"{name} is on unknown tier {choice.tier!r}; the table has {', '.join(sorted(tiers))}"
    if len(cost.time_ns) != len(table.phases):
        yield f"{name} has {len(cost.time_ns)} times for {len(table.phases)} phases"
    if cost.stream_ns and len(cost.stream_ns) != len(table.phases):
        yield f"{name} has {len(cost.stream_ns)} stream times for {len(table.phases)} phases"
    if min((cost.size_bytes, cost.workspace_bytes, cost.stage_bytes, *cost.time_ns, *cost.stream_ns, 0)) < 0:
        yield f"{name} has a negative size or time; costs are at least 0"
    if not math.isfinite(cost.loss):
        yield f"{name} has loss {cost.loss}; it must be finite"


def _of_references(table: CostTable, sites: set[str], ids: set[str]) -> Iterator[str]:
    def unknown(where: str, names: Iterable[str], known: set[str], what: str) -> Iterator[str]:
        yield from (f"{where} names unknown {what} {name!r}" for name in names if name not in known)

    for choice in table.choices:
        yield from unknown(f"choice {choice.id!r} requires", choice.requires, ids, "choice")
    for cut in table.cuts:
        yield from unknown(f"cut {cut.id!r}", (*cut.choices, *(name for name, _ in cut.released)), ids, "choice")
    for link in table.links:
        yield from unknown(f"link {link.id!r}", link.sites, sites, "site")
        yield from unknown(f"link {link.id!r}", (name for name, _ in link.attribute), ids, "choice")
    for cast in table.casts:
        yield from unknown("a cast", (cast.first, cast.second), sites, "site")
        if len(cast.time_ns) != len(table.phases) or min(cast.time_ns, default=0) < 0:
            yield f"the cast {cast.first!r} to {cast.second!r} needs one time of at least 0 per phase"
    for pair in table.pairs:
        yield from unknown("a pair", (pair.first, pair.second), ids, "choice")
        if not math.isfinite(pair.loss):
            yield f"the pair {pair.first!r}, {pair.second!r} has loss {pair.loss}; it must be finite"
    for spacing in table.spacings:
        yield from unknown(f"spacing {spacing.id!r}", spacing.choices, ids, "choice")
    blocks = [site for block in table.blocks for site in block]
    yield from unknown("blocks", blocks, sites, "site")
    yield from _doubled("blocks: site", blocks)


def require_budget(table: CostTable, budget: Budget) -> None:
    """Raise ``OptionError`` where the budget does not belong to the table or contradicts itself."""
    limits = budget.latency_ns
    if limits and len(limits) != len(table.phases):
        raise OptionError(
            f"latency_ns has {len(limits)} entries for the phases {', '.join(table.phases)}; give one each"
        )
    named = {"memory_bytes": budget.memory_bytes, "bits_milli": budget.bits_milli}
    named |= {f"latency_ns[{i}]": value for i, value in enumerate(limits)}
    tiers = {tier.name for tier in table.tiers}
    for name, value in budget.tier_bytes:
        if name not in tiers:
            raise OptionError(f"tier_bytes names {name!r}; the table's tiers are {', '.join(sorted(tiers))}")
        named[f"tier_bytes[{name}]"] = value
    for name, limit in named.items():
        if limit is not None and limit < 0:
            raise OptionError(f"{name} is {limit}; a budget is at least 0")
    if budget.loss is not None and not math.isfinite(budget.loss):
        raise OptionError(f"loss is {budget.loss}; a budget is a finite number")
