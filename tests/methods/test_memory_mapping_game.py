"""memory-mapping-game: copy, keep or drop each use; the optimum equals brute force; greedy and all-slow are worse."""

import itertools
import random

import pytest

from adaflex.solver.pack.streams import placed, stream
from adaflex.solver.pack.tiers import Decisions, Flow, Level, simulate, uses_of


def game(seed: int) -> Flow:
    """Up to eight buffers in slow memory; a step that reads slowly may also run there, at a price."""
    rng = random.Random(seed)
    count = rng.randint(3, 8)
    sizes = tuple(rng.randint(1, 4) for _ in range(count))
    reads = tuple((rng.randrange(count),) for _ in range(6))
    times = tuple((rng.randint(1, 5), rng.randint(4, 9)) for _ in reads)
    return Flow(times, reads, ((),) * 6, sizes, (1,) * count, (Level("fast", rng.randint(4, 8)), Level("slow")))


@pytest.mark.parametrize("seed", range(40))
def test_the_optimum_equals_brute_force_and_greedy_and_all_slow_are_no_better(seed: int) -> None:
    flow = game(seed)
    gaps = [(b, k) for b, steps in enumerate(uses_of(flow)) for k in range(1, len(steps))]
    tried = (
        simulate(flow, Decisions(places, tuple(zip(gaps, lies, strict=True))))
        for places in itertools.product((0, 1), repeat=6)
        for lies in itertools.product((0, 1), repeat=len(gaps))
    )
    least = min(made.total_ns for made in tried if made is not None)
    made = stream(flow, most=1 << 20)
    assert made.best.total_ns == least == made.bound_ns
    slow = simulate(flow, placed(flow, (1,) * 6, []))
    assert slow is not None and slow.total_ns == sum(t[1] for t in flow.compute_ns) >= least
    assert least <= dict(made.policies)["benefit per byte"]


@pytest.mark.parametrize("seed", range(10))
def test_a_limit_leaves_the_best_so_far_with_its_gap(seed: int) -> None:
    made = stream(game(seed), most=0, rounds=3)
    assert made.bound_ns <= made.best.total_ns <= min(total for _, total in made.policies)
