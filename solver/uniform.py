"""The best uniform plan: one encoding (and tier) for all sites of an op, over products of the ops.

In: a ``CostTable`` and a ``Budget``. Out: choices by site, verified within the budgets, or None. It is the plan a
user would try by hand, so it always stands as a candidate beside the program's.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterator

from adaflex.solver.check import faults, totals
from adaflex.solver.objective import value_of
from adaflex.solver.table import Budget, Choice, CostTable

FEW = 24  # products tried even when late, while none fits: some plan is better than none
MOST = 512  # products tried; the ops with fewest sites are thinned first


def kind_of(choice: Choice) -> str:
    """What makes two choices on different sites the same: label or encoding, and tier."""
    name = choice.label or (choice.encoding.label() if choice.encoding else choice.id)
    return f"{name}@{choice.tier}"


def without_width(kind: str) -> str:
    """The kind with all its neurons: "bf16-width:96/128@memory" is "bf16@memory"."""
    return re.sub(r"-width:[^@]*", "", kind)


def uniform_plans(table: CostTable, excluded: Collection[str] = ()) -> Iterator[dict[str, str]]:
    """Every uniform assignment; a site that cannot be narrowed takes the same encoding whole, and one without that its
    choice of least loss."""
    options: dict[str, dict[str, Choice]] = {site.id: {} for site in table.sites}
    for choice in table.choices:
        if len(choice.sites) == 1 and choice.axis != "skip" and choice.id not in excluded:
            options[choice.sites[0]].setdefault(kind_of(choice), choice)
    if not all(options.values()):
        return
    by_op: dict[str, list[str]] = defaultdict(list)
    for site in table.sites:
        by_op[site.op].append(site.id)
    kinds = [_kinds(options, sites) for _, sites in sorted(by_op.items())]
    groups = [sites for _, sites in sorted(by_op.items())]
    while _product(kinds) > MOST:
        longest = min((g for g in range(len(kinds)) if len(kinds[g]) > 1), key=lambda g: len(groups[g]))
        kinds[longest].pop()
    least = {
        site: min(found.values(), key=lambda c: (c.cost.loss, c.cost.size_bytes, c.id))
        for site, found in options.items()
    }
    covers = [c for c in table.choices if len(c.sites) > 1 and c.axis != "skip" and c.id not in excluded]
    for combination in itertools.product(*kinds):
        chosen = {}
        for kind, members in zip(combination, groups, strict=True):
            for name in members:
                own = options[name].get(kind) or options[name].get(without_width(kind))
                chosen[name] = (own or least[name]).id
        yield _covered(chosen, covers, options)


def _covered(chosen: dict[str, str], covers: list[Choice], options: dict[str, dict[str, Choice]]) -> dict[str, str]:
    """The same choices, siblings that all take one kind by the choice that covers them."""
    for cover in covers:
        kind = kind_of(cover)
        if all(kind in options[site] and options[site][kind].id == chosen[site] for site in cover.sites):
            chosen |= dict.fromkeys(cover.sites, cover.id)
    return chosen


def _kinds(options: dict[str, dict[str, Choice]], sites: list[str]) -> list[str]:
    count: dict[str, int] = defaultdict(int)
    for site in sites:
        for kind in options[site]:
            count[kind] += 1
    return sorted(count, key=lambda kind: (-count[kind], kind))


def _product(kinds: list[list[str]]) -> int:
    size = 1
    for names in kinds:
        size *= len(names)
    return size


def uniform_choices(
    table: CostTable, budget: Budget, objective: str, excluded: Collection[str] = (), *, deadline: float = math.inf
) -> dict[str, str] | None:
    """The uniform plan of least value within all budgets; None where none fits (or none was met in time)."""
    best: tuple[float, dict[str, str]] | None = None
    for tried, chosen in enumerate(uniform_plans(table, excluded)):
        value = value_of(totals(table, chosen), objective, budget)
        if (best is None or value < best[0]) and not faults(table, budget, chosen):
            best = value, chosen
        if time.perf_counter() > deadline and (best is not None or tried >= FEW):
            break
    return best[1] if best else None
