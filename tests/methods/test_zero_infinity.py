"""zero-infinity: streamed weights cost nothing while the link is faster than compute, else the longer of the two."""

import pytest

from adaflex.solver.check import steady_period
from adaflex.solver.pack.streams import stream
from adaflex.solver.pack.tiers import Flow, Level

SIZE, LAYERS = 1000, 12


def chain(compute_ns: int, slots: int = 3) -> Flow:
    """Layers of equal size through working memory for a few of them; a link of one byte per nanosecond."""
    reads = tuple((k,) for k in range(LAYERS))
    levels = (Level("device", slots * SIZE), Level("host", None, ((1, 10**9),)))
    return Flow(((compute_ns, None),) * LAYERS, reads, ((),) * LAYERS, (SIZE,) * LAYERS, (1,) * LAYERS, levels)


@pytest.mark.parametrize("compute", [1000, 1500, 4000])
def test_behind_compute_a_streamed_model_is_as_fast_as_a_resident_one(compute: int) -> None:
    made = stream(chain(compute)).best
    assert made.total_ns == LAYERS * compute + SIZE  # the first load is all that shows
    assert made.total_ns <= 1.1 * LAYERS * compute
    assert made.peak_bytes <= 3 * SIZE


@pytest.mark.parametrize("compute", [100, 500, 900])
def test_behind_the_link_the_time_is_the_links_and_one_step(compute: int) -> None:
    made = stream(chain(compute)).best
    assert made.total_ns == LAYERS * SIZE + compute
    assert abs(made.total_ns / (max(LAYERS * SIZE, LAYERS * compute) + SIZE) - 1) < 0.15


@pytest.mark.parametrize(("load", "compute"), [(5, 9), (9, 9), (12, 9)])
def test_in_steady_state_the_ring_runs_at_the_pace_of_the_slower(load: int, compute: int) -> None:
    assert steady_period([load] * 6, [compute] * 6, 2) == 6 * max(load, compute)
    assert steady_period([load] * 6, [compute] * 6, 1) == 6 * (load + compute)  # without prefetch


def test_one_slot_is_no_overlap() -> None:
    assert stream(chain(500, slots=1)).best.total_ns == LAYERS * (SIZE + 500)
