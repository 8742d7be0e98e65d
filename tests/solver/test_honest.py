"""Planted faults are named; measured pitfalls of solvers stay avoided; what must not matter does not."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from adaflex.errors import OptionError, SolverError, TableError
from adaflex.solver.allocate import allocate, best_uniform, k_best
from adaflex.solver.check import faults, steady_period, totals
from adaflex.solver.decide import Limits
from adaflex.solver.explain import columns_for, exact_runner_up
from adaflex.solver.generate import Shape, budgets_of, realistic, small_budget, small_table
from adaflex.solver.model import build
from adaflex.solver.pack.validate import validate
from adaflex.solver.plan import Plan
from adaflex.solver.solve import Live, second_opinion, to_pulp, write_lp
from adaflex.solver.table import (
    Budget,
    Buffer,
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


def column(name: str, *sites: str, size: int = 10, time: int = 5, loss: float = 0.1, **more: object) -> Choice:
    work = more.pop("work", 0)
    streams = (time,) if "tier" in more else ()
    cost = Cost(size, (time,), loss, workspace_bytes=work, stream_ns=streams)  # type: ignore[arg-type]
    return Choice(name, sites, cost, **more)  # type: ignore[arg-type]


SITES = tuple(Site(name, "linear", 100, 400) for name in "abc")
TABLE = CostTable(
    SITES,
    (
        column("a1", "a", requires=("b1",)), column("a2", "a", loss=0.0, size=40), column("b1", "b", work=7),
        column("b2", "b", tier="host"), column("c1", "c"), column("c2", "c", size=20),
        column("abc", "a", "b", "c", axis="skip"),
    ),
    links=(Link("same", ("b", "c"), (("b1", "x"), ("b2", "y"), ("c1", "x"), ("c2", "y"))),),
    spacings=(Spacing("few", ("a1", "c1"), 1),),
    cuts=(Cut("k", 5, ("b1",), (("abc", 3),)),),
    tiers=(Tier("memory", 500), Tier("host", 50)),
    blocks=(("a", "b"), ("c",)),
)  # fmt: skip
OK = {"a": "a2", "b": "b1", "c": "c1"}


@pytest.mark.parametrize(
    ("budget", "choices", "kind"),
    [
        (Budget(), {"a": "a2", "b": "b1"}, "uncovered"),
        (Budget(), OK | {"a": "zz"}, "unknown choice"),
        (Budget(), OK | {"a": "b1"}, "wrong site"),
        (Budget(), OK | {"z": "a2"}, "unknown site"),
        (Budget(), OK | {"a": "abc"}, "torn cover"),
        (Budget(), {"a": "a1", "b": "b2", "c": "c2"}, "requires"),
        (Budget(), {"a": "a1", "b": "b1", "c": "c1"}, "spacing"),
        (Budget(), OK | {"c": "c2"}, "link"),
        (Budget(memory_bytes=71), OK, "budget"),
        (Budget(latency_ns=(14,)), OK, "budget"),
        (Budget(loss=0.19), OK, "budget"),
        (Budget(bits_milli=1500), OK, "budget"),
        (Budget(tier_bytes=(("memory", 71),)), OK, "budget"),
    ],
)  # fmt: skip
def test_checker_names_planted_faults(budget: Budget, choices: dict[str, str], kind: str) -> None:
    assert not faults(TABLE, Budget(memory_bytes=72, latency_ns=(15,), bits_milli=1600, loss=0.2), OK)
    assert kind in {fault.kind for fault in faults(TABLE, budget, choices)}


def test_checker_names_a_site_given_twice_and_full_tiers() -> None:
    assert faults(TABLE, Budget(), [*OK.items(), ("a", "a1")])[0].kind == "site twice"
    small = replace(TABLE, tiers=(Tier("memory", 60), Tier("host", 5)))
    where = {f.where for f in faults(small, Budget(tier_bytes=(("host", 4),)), {"a": "a2", "b": "b2", "c": "c2"})}
    assert where == {"capacity of memory", "capacity of host", "tier host"}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"a": None}, "missing"), ({"z": 0}, "unknown"), ({"a": -8}, "negative"), ({"a": 3}, "misaligned"),
        ({"a": 96}, "capacity"), ({"p": 8}, "moved pin"), ({"l": 0}, "alias"), ({"b": 0}, "overlap"),
        ({"s": 16}, "separation"),
    ],
)  # fmt: skip
def test_validator_names_planted_faults(change: dict[str, int | None], kind: str) -> None:
    buffers = [
        Buffer("a", 16, 0, 4, 8), Buffer("b", 16, 2, 6), Buffer("p", 8, 0, 9, offset=64), Buffer("s", 8, 10, 12),
        Buffer("l", 16, 5, 6, alias="b"),
    ]  # fmt: skip
    good = {"a": 0, "b": 16, "p": 64, "s": 80, "l": 16}
    rules = {"capacity": 100, "separate": [("s", "b")]}
    assert not validate(buffers, good, **rules)  # type: ignore[arg-type]
    bad = {name: at for name, at in (good | change).items() if at is not None}
    assert kind in {fault.kind for fault in validate(buffers, bad, **rules)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sites": (*SITES, SITES[0])}, "twice"), ({"phases": ()}, "phases is empty"),
        ({"tiers": ()}, "tiers is empty"),
        ({"time_scale": (0, 1)}, "time_scale"), ({"choices": TABLE.choices[:2]}, "has no choice|unknown"),
        ({"fixed": Fixed(-1)}, "negative"), ({"fixed": Fixed(0, (1, 2))}, "entries for 1 phases"),
        ({"default_loss": math.inf}, "finite"), ({"tiers": (Tier("memory", -1), Tier("host"))}, "negative"),
        ({"choices": (*TABLE.choices, column("x"))}, "covers no site"),
        ({"choices": (*TABLE.choices, column("x", "a", "a"))}, "site twice"),
        ({"choices": (*TABLE.choices, column("x", "q"))}, "unknown site"),
        ({"choices": (*TABLE.choices, column("x", "a", tier="moon"))}, "unknown tier"),
        ({"choices": (*TABLE.choices, column("x", "a", size=-1))}, "negative"),
        ({"choices": (*TABLE.choices, column("x", "a", loss=math.nan))}, "finite"),
        ({"choices": (*TABLE.choices, column("x", "a", requires=("y",)))}, "unknown choice"),
        ({"choices": (*TABLE.choices, Choice("x", ("a",), Cost(1, (1, 2), 0.0)))}, "2 times for 1 phases"),
        ({"choices": (*TABLE.choices, column("x", "a", size=1 << 53))}, "beyond 2"),
        ({"casts": (Cast("a", "b", ()),)}, "one time"), ({"casts": (Cast("a", "q", (1,)),)}, "unknown site"),
        ({"pairs": (Pair("a1", "b1", math.inf),)}, "finite"), ({"blocks": (("a",), ("a",))}, "twice"),
        ({"links": (Link("l", ("q",), ()),)}, "unknown site"),
        ({"spacings": (Spacing("s", ("q",), 1),)}, "unknown choice"),
    ],
)  # fmt: skip
def test_senseless_tables_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(TableError, match=said):
        allocate(replace(TABLE, **change), Budget())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "budget",
    [
        Budget(latency_ns=(1, 2)), Budget(memory_bytes=-1), Budget(tier_bytes=(("moon", 1),)), Budget(loss=math.nan),
        Budget(objective="beauty"), Budget(phase_weights=(1, 2)), Budget(phase_weights=(0,)),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_senseless_budgets_are_refused(budget: Budget) -> None:
    with pytest.raises(OptionError):
        allocate(TABLE, budget)


def scaled(factor: float, bytes_by: int) -> CostTable:
    made = realistic(Shape(blocks=2, cuts=2))
    choices = tuple(
        replace(c, cost=replace(c.cost, loss=c.cost.loss * factor, size_bytes=c.cost.size_bytes * bytes_by))
        for c in made.choices
    )
    return replace(made, choices=choices)


@pytest.mark.parametrize(("factor", "bytes_by"), [(1e-8, 1), (1.0, 1), (1e6, 1), (1.0, 4096), (1e-8, 4096)])
def test_units_do_not_matter(factor: float, bytes_by: int) -> None:
    """Scores of 1e-8 and budgets in GiB: unscaled, solvers call plans optimal that are percents off."""
    plain = allocate(scaled(1.0, 1), Budget(memory_bytes=64 << 20))
    table = scaled(factor, bytes_by)
    fixed = table.fixed.size_bytes + max(c.base_bytes for c in table.cuts)
    room = (64 << 20) - fixed
    plan = allocate(table, Budget(memory_bytes=fixed + room * bytes_by))
    assert plan.status == plain.status == "optimal" and plain.value is not None and plan.value is not None
    if bytes_by == 1:
        assert plan.value == pytest.approx(plain.value * factor, rel=1e-9)
    other = second_opinion(build(table, plan.budget), "loss", time_limit=60)
    if other.limit == "no solver":
        pytest.skip("no CBC here")
    assert other.value == pytest.approx(plan.value, rel=2e-4)


def near(one: float | None, other: float | None) -> bool:
    """Equal, but for the rounding of each phase to whole nanoseconds."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=2.0 if other > 5 else 1e-12)


@pytest.mark.parametrize("seed", range(25))
def test_order_and_dominated_columns_do_not_matter(seed: int) -> None:
    table, limits = small_table(seed), Limits(ties=())
    budget = small_budget(table, seed)
    value = allocate(table, budget, limits=limits).value
    turned = replace(table, sites=table.sites[::-1], choices=table.choices[::-1])
    assert near(allocate(turned, budget, limits=limits).value, value)
    worse = tuple(
        replace(c, id=c.id + "+", cost=replace(c.cost, size_bytes=c.cost.size_bytes + 1, loss=c.cost.loss + 0.1))
        for c in table.choices
        if c.axis != "skip" and not any(c.id in (p.first, p.second) for p in table.pairs)
    )
    if not table.links and not table.cuts:
        more = allocate(replace(table, choices=(*table.choices, *worse)), budget, limits=limits)
        assert near(more.value, value)


@pytest.mark.parametrize("seed", range(15))
def test_larger_budgets_are_never_worse_and_pins_to_the_plan_change_nothing(seed: int) -> None:
    table = realistic(Shape(blocks=2, cuts=2), seed)
    plans = [allocate(table, budgets_of(table, share, 0.7)) for share in (0.25, 0.3, 0.4, 0.6)]
    values = [plan.value if plan.value is not None else math.inf for plan in plans]
    assert values == sorted(values, reverse=True)
    made = plans[2]
    assert made.totals is not None
    same = allocate(
        table, replace(made.budget, memory_bytes=made.totals.peak_bytes, loss=made.totals.loss, objective="loss")
    )
    assert same.value == made.value


def test_a_wish_that_cannot_keep_the_implied_loss_says_so() -> None:
    table = replace(TABLE, default_loss=0.05)
    plan = allocate(table, Budget(memory_bytes=200))
    assert plan.objective == "loss" and any("implied loss" in reason for reason in plan.reasons)
    fast = allocate(replace(TABLE, default_loss=0.9), Budget(memory_bytes=200))
    assert fast.objective == "latency" and fast.budget.implied_loss
    assert best_uniform(table, Budget(memory_bytes=10)).status == "infeasible"


def test_two_processes_make_the_same_plan() -> None:
    code = (
        "from adaflex.solver.generate import *; from adaflex.solver.allocate import allocate;"
        "t = realistic(Shape(blocks=2)); p = allocate(t, budgets_of(t, 0.3, 0.6)); print(p.choices, p.value, p.bound)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout != ""


def test_solver_traps() -> None:
    table = realistic(Shape(blocks=2, cuts=2))
    program = build(table, budgets_of(table, 0.3))
    live = Live(program, "loss")
    with pytest.raises(SolverError, match="no_such_option"):
        live._option("no_such_option", 1)
    with pytest.raises(SolverError, match="the start"):
        live.set_bounds(0, 0.0, 0.0)
        live.solve(time_limit=1, start=[0])
    live.set_bounds(0, 0.0, 1.0)
    loose = live.solve(time_limit=30, gap=0.5)  # "Optimal" for HiGHS, not for us
    assert loose.status in ("feasible", "optimal") and (loose.status == "optimal" or loose.limit == "gap")
    best = live.solve(time_limit=30)
    assert best.status == "optimal" and best.value is not None
    taken = [i for i in range(program.choices) if best.values is not None and best.values[i] > 0.5]
    again = live.solve(time_limit=30, start=taken, nodes=1)
    assert again.value == pytest.approx(best.value)
    none = Live(build(table, Budget(memory_bytes=1)), "loss").solve(time_limit=30)
    assert none.status == "infeasible" and none.values is None  # values would read 0.0
    live._option("threads", 2)  # another thread count in one process: the scheduler must be reset
    assert live.solve(time_limit=30).value == pytest.approx(best.value)
    live._option("threads", 1)
    assert live.solve(time_limit=30).value == pytest.approx(best.value)


def test_lp_file_and_pulp_model(tmp_path: object) -> None:
    from pathlib import Path

    program = build(TABLE, Budget(memory_bytes=80))
    path = Path(str(tmp_path)) / "t.lp"
    write_lp(program, "loss", path)
    assert "Binaries" in path.read_text() or "Generals" in path.read_text()
    assert len(to_pulp(program, "loss").variables()) == len(program.units)


def test_explanations_agree_with_solving_again() -> None:
    table = realistic(Shape(blocks=2, cuts=2))
    plan = allocate(table, budgets_of(table, 0.3, 0.6))
    for runner in plan.runners_up[:4]:
        exact = exact_runner_up(table, plan, runner.site)
        assert exact is not None and exact.price >= runner.price - 1e-9
    whys = {c.why.split(" ")[0] for c in columns_for(table, plan, table.sites[0].id, pins=(table.choices[5].id,))}
    assert "taken" in whys and "ruled" in whys and "costs" in whys
    more = allocate(table, replace(plan.budget, memory_bytes=(plan.budget.memory_bytes or 0) + 4096))
    price = dict(plan.prices)["memory"]
    assert plan.value is not None and more.value is not None and price >= 0.0
    others = k_best(table, plan.budget, plan, 2, 2)
    assert len(others) == 2
    assert all(isinstance(p, Plan) and p.value is not None and p.value >= plan.value for p in others)
    for other in others:
        assert sum(a != b for a, b in zip(plan.choices, other.choices, strict=True)) >= 2


@pytest.mark.parametrize("seed", range(200))
def test_stall_rows_never_understate(seed: int) -> None:
    import random

    rng = random.Random(seed)
    count = rng.randint(1, 6)
    load = [rng.choice([0, rng.randint(0, 20)]) for _ in range(count)]
    compute = [rng.randint(0, 20) for _ in range(count)]
    local = sum(compute) + sum(max(0, load[b] - compute[b - 1]) for b in range(count))
    exact = [steady_period(load, compute, depth) for depth in range(1, count + 1)]
    assert exact == sorted(exact, reverse=True) and exact[-1] >= max(sum(load), sum(compute))
    if count >= 2:
        assert exact[1] == (local if any(load) else sum(compute))


def test_totals_of_a_hand_made_plan() -> None:
    made = totals(TABLE, OK)
    assert (made.size_bytes, made.peak_bytes, made.time_ns, made.bits_milli) == (60, 72, (15,), 1600)
    assert totals(TABLE, {"a": "abc", "b": "abc", "c": "abc"}).peak_bytes == 10 + 5 - 3


def test_a_uniform_plan_is_one_over_products_of_axes() -> None:
    """ "bf16 and half the neurons everywhere" leaves sites that cannot be narrowed in bf16, not at their widest."""
    sites = tuple(Site(name, "linear", 100, 400) for name in ("query", "up", "down"))
    forms = {"fp32": (400, 0.0), "bf16": (200, 0.1), "bf16-width:5/10": (100, 0.2)}
    choices = tuple(
        Choice(f"{site.id}|{label}", (site.id,), Cost(size, (size,), loss), Encoding(label), label=label)
        for site in sites
        for label, (size, loss) in forms.items()
        if site.id != "query" or "width" not in label
    )
    narrow = tuple((choice.id, "5/10") for choice in choices if "width" in choice.id)
    table = CostTable(sites, choices, links=(Link("width", ("up", "down"), narrow),))
    plan = best_uniform(table, Budget(memory_bytes=400, objective="loss"))
    assert dict(plan.choices) == {
        "query": "query|bf16",
        "up": "up|bf16-width:5/10",
        "down": "down|bf16-width:5/10",
    }
