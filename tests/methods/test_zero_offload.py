"""zero-offload: without limits least execution and traffic is an exact minimum cut; work goes where the bytes are."""

import itertools
import random

import pytest

from adaflex.solver.pack.streams import least_work, lower_bound, stream
from adaflex.solver.pack.tiers import Flow, Level


def graph(seed: int, capacity: int | None = None) -> Flow:
    rng = random.Random(seed)
    count = rng.randint(3, 6)
    inputs = rng.randint(1, 3)
    reads, writes = [], []
    for step in range(count):
        known = list(range(inputs)) + [inputs + k for k in range(step)]
        reads.append(tuple(rng.sample(known, min(len(known), rng.randint(1, 2)))))
        writes.append((inputs + step,))
    sizes = tuple(rng.randint(1, 9) for _ in range(inputs + count))
    times = tuple((rng.randint(0, 9), rng.randint(0, 25)) for _ in range(count))
    levels = (Level("device", capacity), Level("host", None, ((1, 10**9),), 1))
    home = tuple(1 if b < inputs else 0 for b in range(len(sizes)))
    return Flow(times, tuple(reads), tuple(writes), sizes, home, levels)


def work(flow: Flow, places: tuple[int, ...]) -> int:
    """Execution, and each buffer once for each way it has to cross."""
    total = sum(flow.compute_ns[step][place] or 0 for step, place in enumerate(places))
    for buffer, size in enumerate(flow.sizes):
        maker = next((places[k] for k, made in enumerate(flow.writes) if buffer in made), flow.home[buffer])
        ends = {places[k] for k, reads in enumerate(flow.reads) if buffer in reads}
        total += sum(flow.levels[1].time_of(size) for end in ends if end != maker)
    return total


@pytest.mark.parametrize("seed", range(60))
def test_the_minimum_cut_equals_exhaustive_search(seed: int) -> None:
    flow = graph(seed)
    cost, places = least_work(flow, 1)
    every = itertools.product((0, 1), repeat=len(flow.reads))
    assert cost == min(work(flow, p) for p in every) == work(flow, places)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_a_candidate_and_limits_never_help(seed: int) -> None:
    free, tight = stream(graph(seed), most=0), stream(graph(seed, 27), most=0)
    assert "least work with host" in dict(free.policies)
    assert free.best.total_ns <= min(dict(free.policies).values())
    assert tight.best.total_ns >= lower_bound(graph(seed))


def test_an_elementwise_step_on_host_bytes_runs_on_the_host() -> None:
    levels = (Level("device", 1000), Level("host", None, ((1, 10**9),), 5))
    update = Flow(((1, 20),), ((0, 1),), ((2,),), (400, 400, 10), (1, 1, 0), levels)
    assert stream(update).best.decisions.places == (1,) and stream(update).best.total_ns == 20
    matmul = Flow(((1, 5000),), ((0, 1),), ((2,),), (400, 400, 10), (1, 1, 0), levels)
    assert stream(matmul).best.decisions.places == (0,)
