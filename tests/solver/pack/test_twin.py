"""Without a compiler: the same searches in Python, an order search where they are too slow, the same sweep."""

import random
from dataclasses import replace

import pytest

from adaflex import native
from adaflex.errors import BuildError
from adaflex.solver.pack import at_once as at_once_file
from adaflex.solver.pack import greedy as greedy_file
from adaflex.solver.pack import library as library_file
from adaflex.solver.pack import problem as problem_file
from adaflex.solver.pack import search as search_file
from adaflex.solver.pack.generate import guillotine, lives, pinwheel
from adaflex.solver.pack.greedy import pack as greedy
from adaflex.solver.pack.library import library
from adaflex.solver.pack.problem import problem
from adaflex.solver.pack.search import pack
from adaflex.solver.pack.twin import Twin
from adaflex.solver.pack.validate import validate
from adaflex.solver.table import Buffer


def test_without_a_compiler_python_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BuildError("no compiler")

    library.cache_clear()
    monkeypatch.setattr(native, "build", broken)
    try:
        assert (
            library_file.library() is None and library_file.read_rows(b"a,0,1,2\n", 4, [0, 1, 2, 3, 0, 0, 0, 0]) is None
        )
        buffers = guillotine(20, 1, height=64, unit=1)
        made = pack(buffers, time_limit_s=20)
        assert made.status == "optimal" and made.height == 64
        monkeypatch.setattr(problem_file, "MUCH", 0)
        assert pack(buffers, time_limit_s=20).offsets == made.offsets
    finally:
        library.cache_clear()


def test_order_search_lowers_greedy_packings() -> None:
    buffers = lives(300, 25, 1)
    made = pack(buffers, native=False, time_limit_s=60, node_limit=40)
    assert "order search" in made.method and made.nodes == 40
    assert made.bound <= made.height < greedy(buffers).height
    assert not validate(buffers, dict(made.offsets), capacity=made.height)
    again = pack(buffers, native=False, time_limit_s=60, node_limit=40)
    assert again.offsets == made.offsets
    other = pack(buffers, native=False, time_limit_s=60, node_limit=40, seed=1)
    assert not validate(buffers, dict(other.offsets))


@pytest.mark.parametrize("few", [0, 10_000])
@pytest.mark.parametrize("close", [0, 10_000])
def test_greedy_by_lists_and_by_arrays_agree(monkeypatch: pytest.MonkeyPatch, few: int, close: int) -> None:
    for seed in range(6):
        rng = random.Random(seed)
        buffers = [replace(b, alignment=rng.choice([1, 64, 96])) for b in lives(60, 12, seed)]
        buffers[5] = replace(buffers[5], offset=96 * 64)
        order = list(range(60))
        rng.shuffle(order)
        task = problem(buffers, separate=[("b1", "b50")])
        wanted = greedy_file.placer(task)(order, seed % 2 == 0)
        with monkeypatch.context() as patch:
            patch.setattr(greedy_file, "FEW", few)
            patch.setattr(greedy_file, "CLOSE", close)
            assert greedy_file.placer(task)(order, seed % 2 == 0) == wanted
        if library() is not None:
            assert search_file.engine(task, True).greedy(order, seed % 2 == 0) == wanted


def test_pins_that_clash_are_named() -> None:
    buffers = [Buffer("a", 8, 0, 4, offset=0), Buffer("b", 8, 2, 6, offset=4), Buffer("c", 8, 4, 6, offset=0)]
    for found in (pack(buffers), pack(buffers, native=False), pack(buffers[:2], capacity=100)):
        assert found.status == "infeasible" and found.blame == ("a", "b") and "share bytes" in found.reason
    assert greedy(buffers[:2]).status == "unknown"
    apart = [replace(buffers[0], end=2), replace(buffers[1], first=3)]
    assert pack(apart).status == "optimal" and pack(apart, separate=[("a", "b")]).status == "infeasible"


def test_nothing_is_searched_beyond_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = lives(200, 30, 4)
    monkeypatch.setattr(search_file, "LARGE", 100)
    monkeypatch.setattr(at_once_file, "MOST", 100)
    for native_ in (True, False):
        made = pack(buffers, native=native_, time_limit_s=5)
        assert made.height <= greedy(buffers).height and not validate(buffers, dict(made.offsets))
        fits = pack(buffers, native=native_, capacity=10 * made.height)
        assert fits.status == "fits" and fits.method == "sweep over time"
    clash = [*buffers, Buffer("p", 4, 0, 9, offset=0), Buffer("q", 4, 0, 9, offset=2)]
    assert pack(clash).status == "infeasible"


@pytest.mark.skipif(library() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("capacity", [False, True])
def test_crowds_are_pushed_out_only(monkeypatch: pytest.MonkeyPatch, capacity: bool) -> None:
    monkeypatch.setattr(search_file, "MANY_PAIRS", 1000)
    monkeypatch.setattr(search_file, "MANY", 300)
    buffers = lives(400, 150, 2)
    start = greedy(buffers)
    most = start.height - (start.height - start.bound) // 4 if capacity else None
    made = pack(buffers, capacity=most, node_limit=60_000, time_limit_s=60)
    assert made.height < start.height and not validate(buffers, dict(made.offsets), capacity=made.height)
    assert not capacity or made.status == "fits"


@pytest.mark.skipif(library() is None, reason="no C++ compiler here")
def test_a_common_alignment_leaves_both_answers_true() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        buffers = [Buffer(f"b{i}", rng.randint(1, 40), a := rng.randint(0, 6), a + rng.randint(1, 5)) for i in range(9)]
        least = pack(buffers, alignment=16, time_limit_s=10)
        assert least.status == "optimal" and all(at % 16 == 0 for _, at in least.offsets)
        assert pack(buffers, alignment=16, capacity=least.height, time_limit_s=10).status == "fits"
        assert pack(buffers, alignment=16, capacity=least.height - 1, time_limit_s=10).status == "infeasible"


def test_pinwheels_of_any_number_and_a_twin_with_limits() -> None:
    assert len(pinwheel(3, 0)) == 1 and len(pinwheel(400, 0, steps=6, height=6, unit=1)) < 30
    task = problem(guillotine(40, 2))
    assert Twin(task).search(range(40), 1 << 20, 10**9, seconds=0.0)[0] == 2
