"""malloc-game (one method with memory-mapping-game): a copy takes link time before its use; only the rest is lost."""

from adaflex.solver.pack.streams import stream
from adaflex.solver.pack.tiers import Decisions, Flow, Level, simulate

LEVELS = (Level("fast", 20), Level("slow", None, ((1, 10**9),)))


def test_a_copy_hides_behind_the_compute_before_its_use() -> None:
    flow = Flow(((4, None), (10, None), (1, None)), ((0,), (0,), (1,)), ((),) * 3, (4, 12), (1, 1), LEVELS)
    made = stream(flow).best
    assert made.step_begins == (4, 8, 18)  # 4 to fetch; 12 more are fetched during 14 of compute
    assert made.stall_ns == 4


def test_only_what_compute_does_not_cover_is_waited_for() -> None:
    flow = Flow(((4, None), (1, None)), ((0,), (1,)), ((),) * 2, (4, 12), (1, 1), LEVELS)
    assert stream(flow).best.step_begins == (4, 16)


def test_keeping_saves_the_copy_and_a_full_memory_forbids_it() -> None:
    flow = Flow(((1, None),) * 3, ((0,), (1,), (0,)), ((),) * 3, (8, 12), (1, 1), LEVELS)
    kept, dropped = (simulate(flow, Decisions((0, 0, 0), (((0, 1), level),))) for level in (0, 1))
    assert kept is not None and dropped is not None and kept.traffic_bytes == 20 and dropped.traffic_bytes == 28
    assert kept.total_ns == 8 + 12 + 1 + 1 and dropped.total_ns > kept.total_ns
    tight = Flow(flow.compute_ns, flow.reads, flow.writes, flow.sizes, flow.home, (Level("fast", 19), LEVELS[1]))
    assert simulate(tight, Decisions((0, 0, 0), (((0, 1), 0),))) is None
