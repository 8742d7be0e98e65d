"""Order, slices, recomputation, tiers and the agreement of program and packer, against brute force."""

import itertools
import random

import pytest

from adaflex.errors import TableError
from adaflex.solver.agree import agree
from adaflex.solver.allocate import allocate
from adaflex.solver.generate import Shape, budgets_of, realistic
from adaflex.solver.pack.files import Operator
from adaflex.solver.pack.greedy import pack
from adaflex.solver.pack.order import buffers_in_order, graph_of, lowest_order, peak_of, sliced_peak
from adaflex.solver.pack.recompute import Reused, retain
from adaflex.solver.pack.validate import validate
from adaflex.solver.plan import Plan
from adaflex.solver.table import Budget, Buffer


def random_graph(seed: int, count: int) -> tuple[list[Operator], dict[str, int]]:
    rng = random.Random(seed)
    operators, made = [], ["in"]
    for k in range(count):
        reads = tuple(rng.sample(made, min(len(made), rng.randint(1, 3))))
        operators.append(Operator(f"op{k}", reads, (f"t{k}",)))
        made.append(f"t{k}")
    return operators, {name: rng.randint(1, 9) for name in made}


@pytest.mark.parametrize("seed", range(60))
def test_order_equals_brute_force(seed: int) -> None:
    operators, sizes = random_graph(seed, 6)
    found = lowest_order(operators, sizes)
    graph = graph_of(operators, sizes)
    least = min(
        peak_of(graph, order)
        for order in itertools.permutations(range(6))
        if all(not graph.before[k] & ~sum(1 << o for o in order[:i]) for i, k in enumerate(order))
    )
    assert found.proven and found.peak == least
    buffers = buffers_in_order(operators, found.operators, [Buffer(n, s, 0, 1) for n, s in sizes.items()])
    assert pack(buffers).bound == least


def test_wide_graphs_are_never_worse_than_given() -> None:
    rng = random.Random(1)
    operators = [Operator(f"a{k}", ("in",), (f"x{k}",)) for k in range(16)]
    operators += [Operator(f"b{k}", (f"x{k}",), (f"y{k}",)) for k in range(16)]
    sizes = {"in": 1} | {f"x{k}": rng.randint(5, 50) for k in range(16)} | {f"y{k}": 1 for k in range(16)}
    found = lowest_order(operators, sizes)
    given = peak_of(graph_of(operators, sizes), range(32))
    assert sorted(found.operators) == sorted(op.id for op in operators) and found.peak < given


def test_bad_graphs_are_refused() -> None:
    with pytest.raises(TableError, match="not among the buffers"):
        graph_of([Operator("a", ("x",))], {})
    with pytest.raises(TableError, match="two operators"):
        graph_of([Operator("a", (), ("x",)), Operator("b", (), ("x",))], {"x": 1})
    with pytest.raises(TableError, match="later operator writes"):
        graph_of([Operator("a", ("x",)), Operator("b", (), ("x",))], {"x": 1})


def test_slicing_gains_by_groups_only() -> None:
    sizes = [8, 32, 32, 32, 8, 32, 32, 8]
    whole, _ = sliced_peak(sizes, [False] * 7, 8)
    single, _ = sliced_peak(sizes, [True, False, True, False, True, False, True], 8)
    grouped, groups = sliced_peak(sizes, [True, True, True, True, True, True, True], 8)
    assert (whole, single) == (64, 64) and grouped == 24 and groups == [(0, 7)]


@pytest.mark.parametrize("seed", range(40))
def test_retention_equals_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    buffers = []
    for b in range(4):
        uses = tuple(sorted(rng.sample(range(8), rng.randint(1, 3))))
        buffers.append(Reused(f"b{b}", rng.randint(1, 5), uses, rng.randint(1, 9)))
    capacity = rng.randint(4, 14)
    gaps = [(b, k) for b, buffer in enumerate(buffers) for k in range(1, len(buffer.uses))]
    best = None
    for bits in itertools.product((0, 1), repeat=len(gaps)):
        live = [0] * 8
        for buffer in buffers:
            for step in buffer.uses:
                live[step] += buffer.size_bytes
        for dropped, (b, k) in zip(bits, gaps, strict=True):
            for step in range(buffers[b].uses[k - 1] + 1, buffers[b].uses[k]) if not dropped else ():
                live[step] += buffers[b].size_bytes
        price = sum(buffers[b].price for dropped, (b, _) in zip(bits, gaps, strict=True) if dropped)
        if max(live) <= capacity and (best is None or price < best):
            best = price
    found = retain(buffers, capacity)
    assert (found.status == "infeasible") == (best is None)
    if best is not None:
        assert found.price == best and found.peak <= capacity


def test_recomputation_needs_its_inputs() -> None:
    a = Reused("a", 4, (0, 1), 1)
    x = Reused("x", 4, (1, 3), 5, ("a",))
    assert retain([a, x, Reused("big", 6, (2,), 1)], 8).status == "infeasible"
    kept = Reused("a", 1, (0, 1, 3), 1)
    assert retain([kept, x, Reused("big", 6, (2,), 1)], 8).again == (("x", 3),)
    with pytest.raises(TableError, match="unknown buffer"):
        retain([Reused("x", 1, (0, 1), 1, ("none",))], 5)


def test_program_and_packer_agree() -> None:
    table = realistic(Shape(blocks=3, cuts=3))
    budget = budgets_of(table, 0.4)

    def buffers(plan: Plan) -> list[Buffer]:
        assert plan.totals is not None
        live = plan.totals.peak_bytes - plan.totals.size_bytes
        thirds = [Buffer(f"x{i}", live // 3, i, i + 2) for i in range(3)]
        return [*thirds, Buffer("odd", live // 3 + 4096, 2, 4)]

    made = agree(table, budget, buffers, time_limit_s=20)
    assert made.packing is not None and made.plan.totals is not None and budget.memory_bytes is not None
    assert not validate(buffers(made.plan), dict(made.packing.offsets))
    assert made.plan.totals.size_bytes + made.packed_bytes <= budget.memory_bytes
    assert made.plan.bound is not None and made.plan.value is not None and made.plan.bound <= made.plan.value
    assert agree(table, Budget(memory_bytes=10), buffers).packing is None


def test_what_packing_wastes_is_set_aside_and_the_bound_stays() -> None:
    table = realistic(Shape(blocks=3, cuts=3))
    budget = budgets_of(table, 0.4)
    wasted = 3 << 20

    def buffers(plan: Plan) -> list[Buffer]:
        assert plan.totals is not None
        return [Buffer("live", plan.totals.peak_bytes - plan.totals.size_bytes + wasted, 0, 1)]

    alone = allocate(table, budget)
    made = agree(table, budget, buffers, time_limit_s=20)
    assert made.rounds > 1 and 0 < made.fragmentation <= 2 * wasted and made.packing is not None
    assert made.plan.totals is not None and budget.memory_bytes is not None
    assert made.plan.totals.size_bytes + made.packed_bytes <= budget.memory_bytes
    assert made.plan.bound == alone.bound and made.plan.value is not None and alone.value is not None
    assert made.plan.value >= alone.value and made.plan.gap is not None and made.plan.gap > 0
    hopeless = agree(table, budget, lambda _: [Buffer("huge", 1 << 40, 0, 1)], time_limit_s=8)
    assert hopeless.packing is None or hopeless.packing.status == "infeasible"
