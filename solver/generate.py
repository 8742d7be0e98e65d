"""Made-up cost tables: small ones with every feature for tests, realistic ones for benchmarks.

In: sizes and a seed. Out: a ``CostTable`` (and budgets). The same seed gives the same table everywhere.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from adaflex.solver.table import (
    Budget,
    Cast,
    Choice,
    Cost,
    CostTable,
    Cut,
    Encoding,
    Fixed,
    Link,
    Pair,
    Site,
    Spacing,
    Tier,
)

Axis = Literal["precision", "sparsity", "keep"]
WIDTH, HIDDEN = 2048, 5632
KINDS = {  # shape [out, in], sensitivity of the loss
    "q": ((WIDTH, WIDTH), 0.6),
    "k": ((WIDTH, WIDTH), 0.5),
    "v": ((WIDTH, WIDTH), 1.4),
    "o": ((WIDTH, WIDTH), 1.0),
    "gate": ((HIDDEN, WIDTH), 0.8),
    "up": ((HIDDEN, WIDTH), 0.9),
    "down": ((WIDTH, HIDDEN), 1.8),
}
FORMATS = (  # name, bits per weight stored, bits that count for the loss, speed of prefill, sparsity
    ("b16", 16.0, 16.0, 1.0, ""),
    ("b8", 8.25, 8.0, 1.9, ""),
    ("b8-2:4", 5.25, 6.3, 2.9, "2:4"),
    ("b6", 6.25, 6.0, 1.2, ""),
    ("b4", 4.25, 4.0, 1.5, ""),
    ("b4-2:4", 3.25, 2.9, 2.0, "2:4"),
    ("b3", 3.25, 3.0, 1.2, ""),
    ("b2", 2.25, 2.0, 1.2, ""),
)
KERNELS = (("large", 1.0, 6.0), ("medium", 1.12, 2.0), ("small", 1.3, 0.25))  # name, slower by, workspace in MiB
BYTES_PER_NS = 100.0  # memory that compute reads


@dataclass(frozen=True)
class Shape:
    """What a realistic table looks like."""

    blocks: int = 12
    cuts: int = 8
    tiers: bool = False  # three tiers instead of three kernels
    link: float = 8.0  # memory is this much faster than the link to the host; disk five times slower again
    skips: bool = True
    casts: bool = True


def realistic(shape: Shape, seed: int = 0) -> CostTable:
    """A decoder of ``shape.blocks`` blocks with 7 sites each and 24 choices per site, phases prefill and decode."""
    rng = random.Random(f"{seed} {shape}")
    sites, choices, blocks, casts, spacing = [], [], [], [], []
    for block in range(shape.blocks):
        names = []
        deep = 1.0 + 2.5 * math.exp(-2.0 * min(block, shape.blocks - 1 - block))
        for kind, (dims, weight) in KINDS.items():
            site = Site(
                f"blocks.{block}.{kind}",
                "linear",
                dims[0] * dims[1],
                2 * dims[0] * dims[1],
                block=f"blocks.{block}",
                shape=dims,
            )
            names.append(site.id)
            sites.append(site)
            choices += list(_columns(site, shape, weight * deep, rng))
        blocks.append(tuple(names))
        if shape.skips and 0 < block < shape.blocks - 1:
            loss = 0.02 * deep * rng.lognormvariate(0.0, 0.5)
            choices.append(
                Choice(f"skip.{block}", tuple(names), Cost(0, (0, 0), loss), None, axis="skip", label="skip")
            )
            spacing.append(f"skip.{block}")
        if shape.casts:
            casts += [Cast(a, b, (9_000, 600)) for a, b in itertools.pairwise(names)]
    return CostTable(
        tuple(sites),
        tuple(choices),
        phases=("prefill", "decode"),
        fixed=Fixed(8 << 20, (2_000_000, 50_000)),
        cuts=tuple(_cuts(shape, sites, choices, rng)),
        casts=tuple(casts),
        spacings=(Spacing("skips", tuple(spacing), max(1, shape.blocks // 8)),) if spacing else (),
        tiers=(Tier("memory"), Tier("host"), Tier("disk")) if shape.tiers else (Tier("memory"),),
        blocks=tuple(blocks),
    )


def _columns(site: Site, shape: Shape, weight: float, rng: random.Random) -> Iterator[Choice]:
    """24 choices: eight formats on three tiers, or with three kernels."""
    own = weight * rng.lognormvariate(0.0, 1.0) * 1e-3
    for name, stored, counted, speed, sparsity in FORMATS:
        loss = 0.0 if counted == 16 else own * 4.0 ** (3.0 - counted) * rng.lognormvariate(0.0, 0.25)
        size = math.ceil(site.weight_count * stored / 8 / 256) * 256
        flops_ns = site.weight_count * 2 * 512 / 40_000.0 / speed * rng.uniform(0.9, 1.1)
        read_ns = size / BYTES_PER_NS * rng.uniform(0.95, 1.1)
        encoding = Encoding(name, bits=int(stored), sparsity=sparsity)
        axis: Axis = "keep" if counted == 16 else "sparsity" if sparsity else "precision"
        active = "a16" if stored > 8.5 or counted in (6.0, 3.0) else "a8"
        parts = (("memory", 1.0, 1.0), ("host", 1.0, 1.0), ("disk", 1.0, 1.0)) if shape.tiers else KERNELS
        for where, slower, work in parts:
            times = (int(flops_ns * slower) + 4000, int(read_ns * slower) + 2000)
            factor = {"memory": 0.0, "host": 1.0, "disk": 5.0}.get(where, 0.0)
            link_ns = int(size / BYTES_PER_NS * shape.link * factor)
            cost = Cost(
                size,
                times,
                loss,
                workspace_bytes=int(work * (1 << 20) * rng.uniform(0.8, 1.2)),
                stage_bytes=size if factor else 0,
                stream_ns=(link_ns, link_ns) if factor else (),
                source="estimated",
            )
            tier = where if shape.tiers else "memory"
            yield Choice(
                f"{site.id}:{name}:{where}",
                (site.id,),
                cost,
                encoding,
                tier,
                axis,
                activation=active,
                label=f"{name}:{where}",
            )


def _cuts(shape: Shape, sites: list[Site], choices: list[Choice], rng: random.Random) -> Iterator[Cut]:
    by_site: dict[str, list[str]] = {}
    for choice in choices:
        if len(choice.sites) == 1:
            by_site.setdefault(choice.sites[0], []).append(choice.id)
    for number in range(shape.cuts):
        site = sites[(number * len(sites)) // shape.cuts]
        yield Cut(f"cut{number}", int(rng.uniform(6, 14) * (1 << 20)), tuple(by_site[site.id]))


def budgets_of(table: CostTable, memory: float, latency: float | None = None, prefill: float | None = None) -> Budget:
    """Budgets as shares of the plan that stores everything in 16 bits in memory."""
    first = table.tiers[0].name
    base = [
        c for c in table.choices if c.axis == "keep" and c.tier == first and (c.label.endswith(("large", "memory")))
    ]
    size = sum(c.cost.size_bytes for c in base)
    times = [fixed + sum(c.cost.time_ns[p] for c in base) for p, fixed in enumerate(table.fixed.time_ns)]
    shares = (prefill, latency)
    limits = tuple(None if share is None else int(share * time) for share, time in zip(shares, times, strict=True))
    return Budget(memory_bytes=int(memory * size), latency_ns=limits if any(v is not None for v in limits) else ())


def small_table(seed: int) -> CostTable:
    """A table of two to five sites with covers, links, skips, tiers, phases, pairs, casts: enumerable."""
    rng = random.Random(seed)
    phases = ("run",) if rng.random() < 0.5 else ("prefill", "decode")
    tiers = (Tier("memory"), Tier("host", rng.choice([None, 300]))) if rng.random() < 0.5 else (Tier("memory"),)
    sites = tuple(
        Site(f"s{i}", rng.choice(["linear", "conv2d"]), rng.randint(50, 100), 400) for i in range(rng.randint(2, 5))
    )
    choices = []
    for site in sites:
        for number in range(rng.randint(2, 4)):
            choices.append(_small_choice(f"{site.id}.{number}", (site.id,), (phases, tiers), rng))
    choices += _small_covers(sites, phases, tiers, rng)
    names = [choice.id for choice in choices]
    if rng.random() < 0.2:
        at = rng.randrange(len(choices))
        needed = rng.choice([c.id for c in choices if not set(c.sites) & set(choices[at].sites)] or [choices[at].id])
        choices[at] = replace(choices[at], requires=(needed,))
    order = [site.id for site in sites]
    split = rng.randint(1, len(order))
    blocks = tuple(part for part in (tuple(order[:split]), tuple(order[split:])) if part) if rng.random() < 0.8 else ()
    return CostTable(
        sites,
        tuple(choices),
        phases=phases,
        fixed=Fixed(rng.randint(0, 50), tuple(rng.randint(0, 50) for _ in phases)),
        cuts=_small_cuts(names, rng),
        links=_small_links(sites, choices, rng),
        casts=tuple(
            Cast(a, b, tuple(rng.randint(0, 30) for _ in phases))
            for a, b in itertools.pairwise(order)
            if rng.random() < 0.5
        ),
        pairs=_small_pairs(names, rng),
        spacings=(Spacing("few", tuple(rng.sample(names, 3)), 1),) if rng.random() < 0.3 else (),
        tiers=tiers,
        blocks=blocks,
        ring_depth=rng.choice([1, 2, 2, 3]),
        time_scale=rng.choice([(1, 1), (11, 10), (9, 7)]),
    )


def _small_choice(
    name: str, sites: tuple[str, ...], where: tuple[tuple[str, ...], tuple[Tier, ...]], rng: random.Random
) -> Choice:
    phases, tiers = where
    tier = rng.choice(tiers).name
    streamed = tier != "memory"
    size = rng.randint(1, 200)
    cost = Cost(
        size,
        tuple(rng.randint(0, 100) for _ in phases),
        rng.choice([0.0, round(rng.random(), 3), rng.random()]),
        workspace_bytes=rng.choice([0, rng.randint(0, 80)]),
        stage_bytes=size if streamed else 0,
        stream_ns=tuple(rng.randint(0, 150) for _ in phases) if streamed else (),
    )
    return Choice(name, sites, cost, Encoding(f"f{rng.randint(0, 2)}"), tier, activation=rng.choice(["", "a", "b"]))


def _small_covers(
    sites: tuple[Site, ...], phases: tuple[str, ...], tiers: tuple[Tier, ...], rng: random.Random
) -> list[Choice]:
    found = []
    ids = [site.id for site in sites]
    if rng.random() < 0.6:
        covered = tuple(ids[: rng.randint(1, len(ids))])
        found.append(Choice("skip", covered, Cost(0, tuple(0 for _ in phases), rng.random()), None, axis="skip"))
    if rng.random() < 0.4:
        found.append(_small_choice("fused", tuple(rng.sample(ids, 2)), (phases, tiers), rng))
    return found


def _small_cuts(names: list[str], rng: random.Random) -> tuple[Cut, ...]:
    if rng.random() < 0.3:
        return ()
    return tuple(
        Cut(
            f"k{i}",
            rng.randint(20, 60),
            tuple(rng.sample(names, rng.randint(0, len(names)))),
            ((rng.choice(names), rng.randint(0, 20)),),
        )
        for i in range(rng.randint(1, 3))
    )


def _small_pairs(names: list[str], rng: random.Random) -> tuple[Pair, ...]:
    found = []
    for _ in range(rng.randint(0, 6)):
        one, other = rng.sample(names, 2)
        found.append(Pair(one, other, round(rng.uniform(-0.2, 0.4), 3)))
    return tuple(found)


def _small_links(sites: tuple[Site, ...], choices: list[Choice], rng: random.Random) -> tuple[Link, ...]:
    if rng.random() < 0.7:
        return ()
    linked = tuple(site.id for site in sites[:2])
    values = tuple((c.id, rng.choice(["x", "y"])) for c in choices if set(c.sites) & set(linked) and rng.random() < 0.9)
    return (Link("pair", linked, values),)


def small_budget(table: CostTable, seed: int) -> Budget:
    """Random budgets for a small table: often binding, sometimes impossible."""
    rng = random.Random(seed + 1_000_003)
    count = len(table.sites)
    timed = rng.random() < 0.5
    limits = tuple(rng.choice([None, rng.randint(20 * count, 120 * count)]) for _ in table.phases) if timed else ()
    return Budget(
        memory_bytes=rng.choice([None, rng.randint(30 * count, 170 * count)]),
        latency_ns=limits,
        loss=rng.choice([None, None, round(rng.uniform(0.0, 0.6 * count), 3)]),
        bits_milli=rng.choice([None, None, rng.randint(2000, 16000)]),
        tier_bytes=(("host", rng.randint(0, 400)),) if len(table.tiers) > 1 and rng.random() < 0.3 else (),
        objective=rng.choice(["", "loss", "latency", "memory", "bits"]),
    )


def every_cover(table: CostTable) -> Iterator[dict[str, str]]:
    """All assignments that cover each site exactly once, whatever they cost: the ground of brute force."""
    order = [site.id for site in table.sites]
    by_site: dict[str, list[Choice]] = {site: [] for site in order}
    for choice in table.choices:
        for site in choice.sites:
            by_site[site].append(choice)

    def extend(chosen: dict[str, str]) -> Iterator[dict[str, str]]:
        free = next((site for site in order if site not in chosen), None)
        if free is None:
            yield chosen
            return
        for choice in by_site[free]:
            if not any(site in chosen for site in choice.sites):
                yield from extend(chosen | dict.fromkeys(choice.sites, choice.id))

    yield from extend({})
