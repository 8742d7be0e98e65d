"""Programs that stream: ring intervals, block-wise re-solving, deep rings; the memory planner's tiers in the shell."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from adaflex.cli import main
from adaflex.errors import TableError
from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, stall_ns, totals
from adaflex.solver.decide import Limits, blocks_of
from adaflex.solver.generate import Shape, budgets_of, realistic
from adaflex.solver.memplan import Buffer, MemoryProblem, Operator, Store, pack_problem, stream_problem
from adaflex.solver.model import build
from adaflex.solver.neighbourhood import polish
from adaflex.solver.pins import Pins
from adaflex.solver.sift import Run
from adaflex.solver.solve import Live

TABLE = realistic(Shape(blocks=4, cuts=3, tiers=True, link=8.0))


def test_streamed_plans_are_verified_and_bounded() -> None:
    budget = budgets_of(TABLE, 0.3, 0.7)
    plan = allocate(TABLE, budget, time_limit_s=8, gap=5e-3)
    assert plan.totals is not None and plan.value is not None and plan.bound is not None
    assert not faults(TABLE, plan.budget, plan.choices) and plan.totals == totals(TABLE, plan.choices)
    assert plan.totals.ring_bytes > 0 and dict(plan.totals.tier_bytes)["host"] > 0
    assert plan.bound <= plan.value
    home = allocate(TABLE, budget, pins=Pins(pin=(("*", "memory"),)), time_limit_s=4, gap=0.02)
    assert home.value is None or plan.bound <= home.value


def test_stalls_are_what_computing_the_block_before_does_not_cover() -> None:
    rng = random.Random(2)
    by_site = {site.id: [c.id for c in TABLE.choices if c.sites == (site.id,)] for site in TABLE.sites}
    for _ in range(20):
        choices = {site: rng.choice(names) for site, names in by_site.items()}
        taken = {c.sites[0]: c.cost for c in TABLE.choices if choices[c.sites[0]] == c.id}
        blocks = [list(block) for block in TABLE.blocks]
        for phase, stall in enumerate(stall_ns(replace(TABLE, casts=()), choices)):
            load = [sum(taken[s].stream_ns[phase] for s in block if taken[s].stream_ns) for block in blocks]
            busy = [sum(taken[s].time_ns[phase] for s in block) for block in blocks]
            assert stall == sum(max(0, load[b] - busy[b - 1]) for b in range(len(blocks)))
            assert stall <= sum(load)


def test_a_deeper_ring_waits_no_longer_but_holds_more() -> None:
    deep = replace(TABLE, ring_depth=3)
    plan = allocate(deep, budgets_of(TABLE, 0.4, 0.8), time_limit_s=6, gap=0.02)
    assert plan.choices and plan.bound is not None and plan.value is not None and plan.bound <= plan.value
    one, two = totals(deep, plan.choices), totals(TABLE, plan.choices)
    assert one.time_ns <= two.time_ns and one.ring_bytes >= two.ring_bytes


def test_blocks_solved_again_never_lose() -> None:
    program = build(TABLE, budgets_of(TABLE, 0.3, 0.7))
    live = Live(program, "loss")
    import time

    first = live.solve(time_limit=5, gap=0.5)
    assert first.value is not None
    better = polish(live, first, blocks_of(TABLE), Run(time.perf_counter() + 3), width=2)
    assert better.value is not None and better.value <= first.value
    assert polish(live, first, [], Run(time.perf_counter() + 1)) == first


@pytest.mark.parametrize("size", ["solver", "table"])
def test_without_the_program_the_limit_says_why(size: str) -> None:
    table = realistic(Shape(blocks=2, cuts=2))
    plan = allocate(table, budgets_of(table, 0.35), limits=Limits(solver=size != "solver", time_s=5))
    if size == "solver":
        assert plan.limit == "no solver" and plan.status in ("feasible", "optimal") and plan.prices
    none = allocate(table, budgets_of(table, 0.01), limits=Limits(solver=False, time_s=5))
    assert none.status in ("unknown", "infeasible")


def tiers() -> MemoryProblem:
    buffers = tuple(Buffer(f"w{k}", 1000, 0, 1) for k in range(4))
    operators = tuple(Operator(f"op{k}", (f"w{k % 4}",), (), 800) for k in range(12))
    return MemoryProblem(
        buffers, 3000, operators=operators, stores=(Store("dram", None, 10**9, 50), Store("flash", None, 5 * 10**8))
    )


def test_tiers_in_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from adaflex.solver.table_json import to_json

    path, trace = tmp_path / "p.json", tmp_path / "t.json"
    path.write_text(to_json(tiers()))
    assert main(["memplan", str(path), "--json", "--plot", str(trace)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["total_ns"] >= answer["bound_ns"] and answer["total_ns"] <= min(answer["policies"].values())
    assert {event["tid"] for event in json.loads(trace.read_text())} >= {0, 1, 3}
    assert main(["memplan", str(path), "--capacity", "4000"]) == 0
    assert "waiting" in capsys.readouterr().out
    with pytest.raises(TableError, match="streaming needs"):
        stream_problem(MemoryProblem(()))
    with pytest.raises(TableError, match="unknown buffer"):
        stream_problem(replace(tiers(), operators=(Operator("a", ("none",)),)))


def test_order_is_chosen_where_operators_are_given() -> None:
    operators = (Operator("a", ("x",), ("big",)), Operator("b", ("x",), ("y",)), Operator("c", ("big",), ("z",)))
    buffers = tuple(Buffer(name, size, 0, 3) for name, size in (("x", 5), ("big", 50), ("y", 20), ("z", 1)))
    made = pack_problem(MemoryProblem(buffers, operators=operators))
    assert made.status == "optimal" and sorted(made.order) == ["a", "b", "c"] and made.height == 71 - 15
