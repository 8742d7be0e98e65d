"""The chain of blocks: its bounds hold for every plan, its slopes are slopes, its plans fit the ring."""

import random
import time
from dataclasses import replace

import numpy as np
import pytest

from adaflex.solver.chain import chain_of
from adaflex.solver.check import faults, totals
from adaflex.solver.decide import chosen_of
from adaflex.solver.generate import Shape, budgets_of, every_cover, realistic
from adaflex.solver.model import INFINITE, build
from adaflex.solver.objective import resolve, value_of
from adaflex.solver.prices import Bounds, bounds_of
from adaflex.solver.solve import Live
from adaflex.solver.table import Budget, Choice, Cost, CostTable, Cut, Fixed, Site, Tier


def small(seed: int) -> CostTable:
    """Three blocks of one or two sites, each in memory or streamed at several sizes; one block may be skipped."""
    rng = random.Random(seed)
    sites, choices, blocks = [], [], []
    for block in range(3):
        names = [f"b{block}s{k}" for k in range(rng.randint(1, 2))]
        blocks.append(tuple(names))
        for name in names:
            sites.append(Site(name, "linear", 100, 400))
            for number in range(2):
                size, loss = rng.randint(5, 60), rng.random()
                for tier in ("memory", "host") if rng.random() < 0.8 or not number else ("memory",):
                    streamed = tier == "host"
                    cost = Cost(
                        size,
                        tuple(rng.randint(5, 40) for _ in range(2)),
                        loss,
                        workspace_bytes=rng.choice([0, rng.randint(0, 20)]),
                        stage_bytes=size if streamed else 0,
                        stream_ns=(size * rng.randint(1, 2), size) if streamed else (),
                    )
                    choices.append(Choice(f"{name}.{number}.{tier}", (name,), cost, tier=tier))
        if block == 1 or (len(names) > 1 and rng.random() < 0.5):
            choices.append(Choice(f"skip{block}", tuple(names), Cost(0, (0, 0), 2 * rng.random()), axis="skip"))
    alive = tuple(rng.sample([c.id for c in choices], 6))
    return CostTable(
        tuple(sites), tuple(choices), phases=("prefill", "decode"), fixed=Fixed(7, (5, 3)),
        cuts=(Cut("k", 12, alive), Cut("l", 3)), tiers=(Tier("memory"), Tier("host")), blocks=tuple(blocks),
    )  # fmt: skip


def wish_of(table: CostTable, seed: int) -> Budget:
    rng = random.Random(seed + 77)
    objective = rng.choice(["loss", "loss", "latency", "memory"])
    loss = None if objective == "loss" else rng.uniform(0.5, 2.5)
    latency = () if objective == "latency" else (rng.choice([None, 300]), rng.randint(100, 260))
    return Budget(rng.randint(60, 160), latency, loss, objective=objective)  # type: ignore[arg-type]


def bounds_for(table: CostTable, budget: Budget) -> tuple[Bounds | None, str]:
    wish = resolve(table, budget)
    program = build(table, wish.budget)
    duals = Live(program, wish.objective).relax()
    return (None if duals is None else bounds_of(table, program, wish.objective, duals)), wish.objective


@pytest.mark.parametrize("part", range(4))
def test_no_plan_is_below_the_bound_of_its_ring(part: int) -> None:
    met = tight = 0
    for seed in range(part * 30, part * 30 + 30):
        table, budget = small(seed), wish_of(small(seed), seed)
        bounds, objective = bounds_for(table, budget)
        if bounds is None:
            continue
        rng = np.random.default_rng(seed)
        plans = [c for c in every_cover(table) if not faults(table, budget, c)]
        best: dict[int, float] = {}
        for chosen in plans:
            made = totals(table, chosen)
            ring = made.ring_bytes // bounds.chain.unit
            best[ring] = min(best.get(ring, INFINITE), value_of(made, objective, budget))
        for ring, value in best.items():
            for factors in (np.ones(len(bounds.priced.constants)), rng.uniform(0.3, 2.0, len(bounds.priced.constants))):
                for low, high in ((ring, ring), (max(0, ring - 3), ring + 2)):
                    point = bounds.point(factors, low, high)
                    assert point is None or point.value <= value + 1e-6 * max(1.0, abs(value)), (seed, ring)
                    met += point is not None
        bounds.improve(INFINITE, time.perf_counter() + 0.1)
        reached = min((v for ring, v in best.items() if ring * bounds.chain.unit < bounds.reach), default=INFINITE)
        assert bounds.least <= reached + 1e-6 * max(1.0, abs(reached)), seed
        tight += reached < INFINITE and bounds.least > 0.5 * reached
    assert met >= 20 and tight >= 3


TABLE = realistic(Shape(blocks=6, cuts=3, tiers=True), 3)


def test_the_bound_passes_the_lp_and_its_slope_is_a_slope() -> None:
    table = realistic(Shape(blocks=24, cuts=3, tiers=True), 0)
    wish = resolve(table, budgets_of(table, 0.2, 0.6))
    program = build(table, wish.budget)
    duals = Live(program, wish.objective).relax()
    assert duals is not None
    bounds = bounds_of(table, program, wish.objective, duals)
    assert bounds is not None
    before = bounds.least
    bounds.improve(INFINITE, time.perf_counter() + 8.0)
    assert bounds.least >= before and bounds.least > duals.value * 1.005
    interval = bounds.open[0]
    factors = interval.factors * 1.0123
    here = bounds.point(factors, interval.low, interval.high)
    assert here is not None
    for number in range(len(factors)):
        moved = factors.copy()
        moved[number] += 1e-6
        there = bounds.point(moved, interval.low, interval.high)
        assert there is not None
        assert (there.value - here.value) / 1e-6 == pytest.approx(here.slope[number], rel=0.02, abs=1e-4)


def test_plans_along_the_chain_share_the_ring() -> None:
    bounds, _ = bounds_for(TABLE, budgets_of(TABLE, 0.25, 0.6))
    assert bounds is not None
    size = bounds.open[0].high
    for factor in (0.9, 1.0, 1.1):
        chosen = chosen_of(TABLE, bounds.plan(factor * bounds.open[0].factors, size))
        assert set(chosen) == {site.id for site in TABLE.sites}
        assert totals(TABLE, chosen).ring_bytes < (size + 1) * bounds.chain.unit


def test_without_a_chain_there_is_none() -> None:
    program = build(TABLE, budgets_of(TABLE, 0.25, 0.6))
    assert chain_of(TABLE, program, 1, 1e7) is not None
    assert chain_of(replace(TABLE, ring_depth=3), program, 1, 1e7) is None
    torn = Choice("torn", (TABLE.blocks[0][0], TABLE.blocks[1][0]), Cost(1, (1, 1), 0.0))
    wider = replace(TABLE, choices=(*TABLE.choices, torn))
    assert chain_of(wider, build(wider, budgets_of(wider, 0.25, 0.6)), 1, 1e7) is None
    outside = replace(TABLE, blocks=TABLE.blocks[:-1])
    found = chain_of(outside, build(outside, budgets_of(outside, 0.25, 0.6)), 1, 1e7)
    assert found is None or len(found.outside) == len(TABLE.blocks[-1])
    free = bounds_for(TABLE, Budget(objective="loss"))[0]  # nothing binds, nothing streams
    assert free is None
