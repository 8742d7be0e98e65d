"""llm-in-a-flash: large reads are faster per byte, so bundling pays; what is resident is never read again."""

from adaflex.solver.pack.streams import stream
from adaflex.solver.pack.tiers import Flow, Level

# measured on a virtual disk, 32 threads: bytes per second by size of a request
DISK = Level("disk", None, ((4096, 316_000_000), (16_384, 765_000_000), (65_536, 1_061_000_000)), 10_000)


def test_a_bundle_of_row_and_column_is_read_faster_than_both_alone() -> None:
    for size in (4096, 8192, 16_384, 32_768):
        apart, bundled = 2 * DISK.time_of(size), DISK.time_of(2 * size)
        assert bundled <= apart - DISK.latency_ns  # one request less, and never slower per byte
    assert DISK.time_of(16_384) < 0.5 * 4 * DISK.time_of(4096)


def rounds(passes: int, slots: int) -> Flow:
    """Four matrices of a megabyte, read once in each pass; working memory for ``slots`` of them."""
    reads = tuple((k,) for _ in range(passes) for k in range(4))
    times = ((50_000, None),) * len(reads)
    levels = (Level("memory", slots << 20), DISK)
    return Flow(times, reads, ((),) * len(reads), (1 << 20,) * 4, (1,) * 4, levels)


def test_the_resident_share_saves_its_bytes_in_every_pass() -> None:
    every = [stream(rounds(3, slots), time_limit_s=20).best for slots in (1, 2, 3, 4)]
    assert every[0].traffic_bytes == 12 << 20 and every[-1].traffic_bytes == 4 << 20
    assert every[1].traffic_bytes <= (4 + 2 * 3) << 20  # one stays, three are read again in two passes
    assert every[2].traffic_bytes <= (4 + 2 * 2) << 20
    assert [made.total_ns for made in every] == sorted((made.total_ns for made in every), reverse=True)


def test_a_cycle_one_larger_than_memory_defeats_lru() -> None:
    made = stream(rounds(3, 3), time_limit_s=20)
    known = dict(made.policies)
    assert known["keep nothing"] >= 12 * DISK.time_of(1 << 20) > known["lru"] > 1.4 * made.best.total_ns
    assert made.best.total_ns <= known["belady"]
