"""cosma: order and residency in turn. Each equals exhaustive search; a low order makes compulsory traffic suffice."""

import itertools
import random

import pytest

from adaflex.solver.pack.files import Operator
from adaflex.solver.pack.order import graph_of, lowest_order, peak_of
from adaflex.solver.pack.recompute import Reused, retain
from adaflex.solver.pack.streams import evicted, stream
from adaflex.solver.pack.tiers import Flow, Level, uses_of


def dag(seed: int) -> tuple[list[Operator], dict[str, int]]:
    """Three to six operators, each writing one tensor; two weights."""
    rng = random.Random(seed)
    count = rng.randint(3, 6)
    sizes = {f"t{k}": rng.randint(1, 9) for k in range(count)} | {"w0": 3, "w1": 2}
    made = []
    for k in range(count):
        reads = rng.sample([f"t{j}" for j in range(k)], min(k, rng.randint(0, 2)))
        made.append(Operator(f"o{k}", (*reads, *rng.sample(["w0", "w1"], rng.randint(0, 1))), (f"t{k}",)))
    return made, sizes


@pytest.mark.parametrize("seed", range(40))
def test_the_order_of_least_peak_equals_exhaustive_search(seed: int) -> None:
    operators, sizes = dag(seed)
    graph = graph_of(operators, sizes)
    least = None
    for order in itertools.permutations(range(len(operators))):
        place = {k: at for at, k in enumerate(order)}
        if all(place[j] < place[k] for k in order for j in range(len(order)) if graph.before[k] >> j & 1):
            peak = peak_of(graph, order)
            least = peak if least is None else min(least, peak)
    found = lowest_order(operators, sizes)
    assert found.proven and found.peak == least


@pytest.mark.parametrize("seed", range(40))
def test_residency_in_a_fixed_order_equals_exhaustive_search(seed: int) -> None:
    rng = random.Random(seed)
    buffers = []
    for k in range(rng.randint(2, 4)):
        size, uses = rng.randint(1, 5), tuple(sorted(rng.sample(range(7), rng.randint(1, 3))))
        buffers.append(Reused(f"b{k}", size, uses, size))
    gaps = [(b, k) for b, r in enumerate(buffers) for k in range(1, len(r.uses))]
    capacity = rng.randint(6, 10)
    least = None
    for dropped in itertools.chain.from_iterable(itertools.combinations(gaps, n) for n in range(len(gaps) + 1)):
        live = [0] * 7
        for b, r in enumerate(buffers):
            for step in range(7):
                inner = any(r.uses[k - 1] < step < r.uses[k] and (b, k) not in dropped for k in range(1, len(r.uses)))
                live[step] += r.size_bytes if step in r.uses or inner else 0
        if max(live) <= capacity:
            moved = sum(buffers[b].size_bytes for b, _ in dropped)
            least = moved if least is None else min(least, moved)
    found = retain(buffers, capacity)
    assert (found.status == "infeasible") == (least is None)
    assert least is None or found.price == least


@pytest.mark.parametrize("seed", range(20))
def test_traffic_is_never_above_beladys(seed: int) -> None:
    rng = random.Random(seed)
    sizes = tuple(rng.randint(1, 4) for _ in range(4))
    reads = tuple((rng.randrange(4),) for _ in range(8))
    flow = Flow(tuple((0, None) for _ in reads), reads, ((),) * 8, sizes, (1,) * 4, (Level("sram", 7), Level("dram")))
    made = stream(flow, most=1 << 20)  # nothing computes: time is traffic
    kept = evicted(flow, "belady")
    fetched = [sizes[b] for b, uses in enumerate(uses_of(flow)) for k in range(len(uses)) if (b, k) not in kept]
    assert made.best.total_ns == made.best.traffic_bytes <= sum(fetched)


def test_with_room_for_the_peak_only_compulsory_bytes_move() -> None:
    buffers = [Reused(name, size, uses, size) for name, size, uses in (("a", 3, (0, 2)), ("b", 2, (1, 3)))]
    assert retain(buffers, 5).price == 0
    assert retain(buffers, 3).price == 5 and retain(buffers, 2).status == "infeasible"
