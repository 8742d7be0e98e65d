"""Small tables on which methods with one budget, and methods that skip, are tested."""

import random

from adaflex.solver.table import Budget, Choice, Cost, CostTable, Encoding, Site


def layers(seed: int, sites: int = 8, widths: tuple[int, ...] = (2, 4, 8), unit: int = 1000) -> CostTable:
    """Sites of a few sizes and sensitivities; the loss falls by about four per bit."""
    rng = random.Random(seed)
    made, choices = [], []
    for number in range(sites):
        site = Site(f"s{number}", "linear", unit * rng.randint(1, 4), 4000)
        made.append(site)
        own = rng.lognormvariate(0.0, 1.0)
        for bits in widths:
            cost = Cost(site.weight_count * bits // 8, (10,), own * 4.0**-bits * rng.uniform(0.8, 1.2))
            choices.append(Choice(f"s{number}:{bits}", (site.id,), cost, Encoding(f"w{bits}", bits)))
    return CostTable(tuple(made), tuple(choices))


def middle(made: CostTable, share: float = 0.45) -> Budget:
    """A budget of so many bytes per weight."""
    return Budget(memory_bytes=int(share * sum(site.weight_count for site in made.sites)), objective="loss")


def rows(made: CostTable) -> list[list[Choice]]:
    """The choices of each site."""
    return [[c for c in made.choices if c.sites == (site.id,)] for site in made.sites]


def blocks(count: int) -> CostTable:
    """Blocks that can be kept or skipped at a loss of their own."""
    sites = tuple(Site(f"b{i}", "linear", 100, 400) for i in range(count))
    keep = [Choice(f"b{i}:keep", (f"b{i}",), Cost(100, (10,), 0.0), axis="keep") for i in range(count)]
    skip = [Choice(f"b{i}:skip", (f"b{i}",), Cost(0, (0,), skip_loss(i)), axis="skip") for i in range(count)]
    return CostTable(sites, (*keep, *skip))


def skip_loss(block: int) -> float:
    """What skipping a block of ``blocks`` adds."""
    return (block * 7 % 5 + 1) / 10
