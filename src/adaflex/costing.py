"""Puts scores, prices and sizes together into the cost table that the solver decides on.

In: sites, their losses and prices, what the assembled baseline took. Out: a ``CostTable``.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.sites import Sites
from adaflex.passes.widths import dense, kept_of
from adaflex.pricing import Price, Spec
from adaflex.solver.table import Choice, Cost, CostTable, Cut, Encoding, Fixed, Link, Site

GATHER_BYTES_PER_NS = 8  # reading rows of a table: a bound, far from what decides


@dataclass(frozen=True)
class Baseline:
    """What was measured of an assembled uniform plan, from which what no choice changes follows."""

    encodings: Mapping[str, Encoding]
    constant_bytes: int  # of the whole program
    live_bytes: int  # arena and library temporaries
    time_ns: int


def choice_id(site: str, encoding: Encoding) -> str:
    """The id of the choice that stores ``site`` so."""
    return f"{site}|{encoding.label()}"


def specs_of(sites: Sites, rows: Mapping[str, int]) -> dict[tuple[str, Encoding], Spec]:
    """What has to be priced: every encoding offered to a linear, at the rows it will see."""
    found = {}
    for site in sites.sites:
        if "linear" in site.op:
            for encoding in sites.offers[site.id]:
                rows_out, columns = sites.shape(site, encoding)
                found[(site.id, encoding)] = Spec(dense(encoding), columns, rows_out, max(rows[site.id], 1))
    return found


def shared_specs(
    sites: Sites, rows: Mapping[str, int], losses: Container[tuple[str, Encoding]]
) -> dict[tuple[tuple[str, ...], Encoding], Spec]:
    """What siblings take together, in every encoding that all of them are offered and that reads converted activations:
    those are converted once. (One product with all their weights side by side is no faster than theirs in turn: bf16,
    int8 and int4, 384 x 384 three times, 16 and 128 rows, were within 2 % of each other.)"""
    found = {}
    shapes = {site.id: site.shape for site in sites.sites}
    for group in sites.siblings:
        for encoding in sites.offers[group[0]]:
            known = all(encoding in sites.offers[site] and (site, encoding) in losses for site in group)
            plain = kernel(MENU, encoding.family).form(dense(encoding)) == "f32"
            if known and not plain and kept_of(encoding) is None:
                (n, k), *others = (shapes[site] for site in group)
                found[group, encoding] = Spec(encoding, k, n, max(rows[group[0]], 1), tuple(each[0] for each in others))
    return found


def covers_of(
    choices: Sequence[Choice],
    specs: Mapping[tuple[tuple[str, ...], Encoding], Spec],
    prices: Mapping[Spec, Price],
) -> list[Choice]:
    """A choice over all siblings for each encoding in which they take less time together than one by one. Bytes and
    losses are sums: it is the same program as their own choices make."""
    by_id = {choice.id: choice for choice in choices}
    found = []
    for (group, encoding), spec in specs.items():
        parts = [by_id[choice_id(site, encoding)] for site in group]
        alone, together = sum(each.cost.time_ns[0] for each in parts), prices[spec]
        if together.time_ns < alone:
            guessed = any(each.cost.loss_source == "estimated" for each in parts)
            cost = Cost(
                sum(each.cost.size_bytes for each in parts),
                (together.time_ns,),
                math.fsum(each.cost.loss for each in parts),
                loss_source="estimated" if guessed else "measured",
                spread=together.spread,
            )
            found.append(replace(parts[0], id=choice_id("+".join(group), encoding), sites=group, cost=cost))
    return found


def taken_of(choices: Sequence[Choice], encodings: Mapping[str, Encoding]) -> list[Choice]:
    """The choices in memory that store every site as ``encodings`` says: covers where they can be taken."""
    stored = [choice for choice in choices if choice.encoding is not None and choice.tier == "memory"]
    fitting = [choice for choice in stored if all(encodings.get(site) == choice.encoding for site in choice.sites)]
    found: list[Choice] = []
    covered: set[str] = set()
    for choice in sorted(fitting, key=lambda each: -len(each.sites)):
        if not covered & set(choice.sites):
            found.append(choice)
            covered |= set(choice.sites)
    return found


def time_of(
    site: Site, encoding: Encoding, rows: int, specs: Mapping[tuple[str, Encoding], Spec], prices: Mapping[Spec, Price]
) -> tuple[int, float, str]:
    """Nanoseconds, spread and source of one choice."""
    spec = specs.get((site.id, encoding))
    if spec is None:
        return rows * site.shape[1] * max(encoding.bits, 8) // 8 // GATHER_BYTES_PER_NS, 0.0, "bound"
    priced = prices[spec]
    return priced.time_ns, priced.spread, "measured"


def build_table(
    sites: Sites,
    losses: Mapping[tuple[str, Encoding], float],
    rows: Mapping[str, int],
    prices: Mapping[Spec, Price],
    baseline: Baseline,
    facts: Facts,
    sources: Mapping[tuple[str, Encoding], str] = MappingProxyType({}),
    shared: Mapping[tuple[tuple[str, ...], Encoding], Spec] = MappingProxyType({}),
) -> CostTable:
    """One choice per site and encoding, and those that cover siblings; what no choice changes is what the baseline took
    beyond its sites.

    ``sources``: which losses are estimated; all others are measured.
    """
    specs = specs_of(sites, rows)
    choices = [
        _choice(
            site,
            encoding,
            losses[(site.id, encoding)],
            (sources.get((site.id, encoding)) == "estimated", *time_of(site, encoding, rows[site.id], specs, prices)),
            _stored(sites.shape(site, encoding), dense(encoding), facts.device),
        )
        for site in sites.sites
        for encoding in sites.offers[site.id]
        if (site.id, encoding) in losses
    ]
    choices += covers_of(choices, shared, prices)
    taken = taken_of(choices, baseline.encodings)
    fixed_bytes = baseline.constant_bytes - sum(choice.cost.size_bytes for choice in taken)
    fixed_ns = max(0, baseline.time_ns - sum(choice.cost.time_ns[0] for choice in taken))
    return CostTable(
        sites=sites.sites,
        choices=tuple(choices),
        fixed=Fixed(fixed_bytes, (fixed_ns,)),
        cuts=(Cut("arena", baseline.live_bytes),),
        links=links_of(sites, choices),
        default_loss=facts.default_loss,
        loss_kind=facts.loss_kind,
        baseline_bytes=sum(site.original_bytes for site in sites.sites) + fixed_bytes + baseline.live_bytes,
        baseline_ns=(facts.eager_ns,),
        machine=facts.machine,
        notes=tuple(sites.notes) + facts.notes,
    )


@dataclass(frozen=True)
class Facts:
    """What the table says beside its choices."""

    default_loss: float
    loss_kind: str
    eager_ns: int
    machine: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"


def _stored(shape: tuple[int, ...], encoding: Encoding, device: str) -> int:
    if device != "cpu":
        from adaflex.gpu import stored_bytes

        return stored_bytes(shape, encoding)
    return kernel(MENU, encoding.family).size_bytes(shape, encoding)


def _choice(site: Site, encoding: Encoding, loss: float, timed: tuple[bool, int, float, str], size: int) -> Choice:
    guessed, time_ns, spread, source = timed
    cost = Cost(
        size,
        (time_ns,),
        loss,
        source="measured" if source == "measured" else "bound",
        loss_source="estimated" if guessed else "measured",
        spread=spread,
    )
    axis: Literal["precision", "sparsity"] = "sparsity" if encoding.sparsity else "precision"
    return Choice(choice_id(site.id, encoding), (site.id,), cost, encoding, axis=axis, label=encoding.label())


def links_of(sites: Sites, choices: Sequence[Choice]) -> tuple[Link, ...]:
    """One for each mlp whose width is offered: all its sites keep the same neurons."""
    found = []
    for mlp in sites.mlps:
        own = [choice for choice in choices if choice.sites[0] in mlp.sites and choice.axis == "sparsity"]
        attribute = tuple((choice.id, choice.encoding.sparsity) for choice in own if choice.encoding)
        if attribute:
            found.append(Link(f"width of {mlp.id}", mlp.sites, attribute))
    return tuple(found)


def uniform(sites: Sites, families: Sequence[str], losses: Mapping[tuple[str, Encoding], float]) -> dict[str, Encoding]:
    """For every site the first of ``families`` that it is offered, else what changes nothing."""
    found = {}
    for site in sites.sites:
        offered = [e for e in sites.offers[site.id] if (site.id, e) in losses]
        wanted = [e for family in families for e in offered if e.family == family]
        found[site.id] = wanted[0] if wanted else sites.keep[site.id]
    return found
