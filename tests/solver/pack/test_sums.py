"""Heights that no sum of sizes reaches: never above the brute force, and where sizes are coarse often equal to it."""

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaflex.solver.pack.core import ALL_RULES, RULES, common_unit
from adaflex.solver.pack.library import library
from adaflex.solver.pack.parts import components, part_of, round_sizes
from adaflex.solver.pack.problem import Problem, problem
from adaflex.solver.pack.search import pack
from adaflex.solver.pack.sums import Sums, spread, without_one
from adaflex.solver.pack.validate import validate
from adaflex.solver.table import Buffer
from tests.solver.pack.exact import brute_height

KINDS = ("plain", "alignments", "one alignment", "a common step", "pins", "gaps", "aliases", "separations", "all")
Pairs = list[tuple[str, str]]


def coarse(kind: str, seed: int) -> tuple[list[Buffer], Pairs]:
    """Buffers of one to three sizes."""
    rng = random.Random(f"{kind} {seed}")
    sizes = rng.sample(range(3, 12), rng.choice([1, 2, 2, 3]))
    steps = {"alignments": (1, 4, 6, 8), "all": (1, 4, 6, 8), "one alignment": (8,), "a common step": (4, 12)}
    found: list[Buffer] = []
    for i in range(rng.randint(3, 6)):
        first = rng.randint(0, 4)
        b = Buffer(f"b{i}", rng.choice(sizes), first, first + rng.randint(1, 4), rng.choice(steps.get(kind, (1,))))
        if kind in ("pins", "all") and rng.random() < 0.3:
            b = replace(b, offset=(24 if kind == "all" else b.alignment) * rng.randint(0, 4))
        if kind in ("gaps", "all") and b.end - b.first > 2:
            b = replace(b, gaps=((first + 1, first + 2),))
        if kind in ("aliases", "all") and i and rng.random() < 0.3:
            b = replace(b, alias=f"b{rng.randrange(i)}", offset=None)
        found.append(b)
    names = [b.id for b in found]
    pairs = [rng.sample(names, 2) for _ in range(rng.randint(1, 4))] if kind in ("separations", "all") else []
    roots = {b.id: b.alias or b.id for b in found}
    return found, [(a, b) for a, b in pairs if roots[a] != roots[b]]


def raised(task: Problem) -> int:
    """The bound of a whole problem by sums alone."""
    best = task.lower_bound
    for members in components(task):
        part = part_of(task, members)
        best = max(best, Sums(part).raised(part.lower_bound, 1 << 40))
    return best


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_against_brute_force(kind: str) -> None:
    above = short = met = 0
    for seed in range(120):
        buffers, separate = coarse(kind, seed)
        least = brute_height(buffers, separate)
        if least is None:
            continue
        task = problem(buffers, separate=separate)
        before, bound = task.lower_bound, raised(task)
        assert before <= bound <= least, seed
        short, above, met = short + (before < least), above + (bound > before), met + (before < bound == least)
    if kind == "pins":
        assert met == above > 0.9 * short
    if kind in ("alignments", "a common step", "all"):
        assert met > 0.3 * short and short > 10


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_packings_against_brute_force(kind: str, native: bool) -> None:
    if native and library() is None:
        pytest.skip("no C++ compiler here")
    for seed in range(200, 225):
        buffers, separate = coarse(kind, seed)
        least = brute_height(buffers, separate)
        for rules in (ALL_RULES, ALL_RULES - RULES["sums"]) if least else ():
            made = pack(buffers, separate=separate, native=native, rules=rules, time_limit_s=20)
            assert (made.status, made.height, made.bound) == ("optimal", least, least), seed
            assert not validate(buffers, dict(made.offsets), capacity=least, separate=separate)
            below = pack(buffers, capacity=(least or 1) - 1, separate=separate, native=native, rules=rules)
            assert below.status == "infeasible" and below.blame and below.reason, seed


FIELDS = st.tuples(
    st.sampled_from([3, 5, 8]), st.integers(0, 3), st.integers(1, 3), st.sampled_from([1, 4]),
    st.one_of(st.none(), st.integers(0, 4)),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(FIELDS, min_size=1, max_size=5))
def test_bounds_of_any_few_buffers(rows: list[tuple[int, int, int, int, int | None]]) -> None:
    buffers = [
        Buffer(f"b{i}", 2 * size, first, first + life, 2 * step, offset=None if pin is None else 2 * step * pin)
        for i, (size, first, life, step, pin) in enumerate(rows)
    ]
    least = brute_height(buffers)
    assert least is None or raised(problem(buffers)) <= least


def test_a_pin_leaves_room_for_one() -> None:
    """Below the pin there is room for one of 4; the other lies above: 14, of which 11 are alive."""
    buffers = [Buffer("pin", 3, 0, 2, offset=7), Buffer("a", 4, 0, 2), Buffer("b", 4, 0, 2)]
    task = problem(buffers)
    assert task.lower_bound == 11 and raised(task) == 14
    assert Sums(task).raised(11, 13) == 13 and Sums(task).raised(14, 14) == 14
    assert Sums(task, left=100).raised(11, 20) == 11, "no work, no answer"


def test_units_that_do_not_agree_with_alignments() -> None:
    buffers = [
        Buffer("a", 8, 0, 2, alignment=4),
        Buffer("b", 8, 0, 2, alignment=12),
        Buffer("c", 16, 0, 2, alignment=12),
    ]
    task = problem(buffers)
    assert common_unit(task) == 4 and round_sizes(task)[1] == 4
    assert raised(task) == 32 == brute_height(buffers) == pack(buffers, time_limit_s=20).height


def test_nothing_ends_at_a_height_that_is_no_sum() -> None:
    buffers = [Buffer(f"b{i}", 6, 0, 2, alignment=1 if i % 2 else 10) for i in range(5)]
    task = problem(buffers)
    assert task.lower_bound == 30, "all alive; three of them at multiples of 10 end at 26 or higher"
    assert raised(task) == 32 and pack(buffers, time_limit_s=20).bound == 36 == brute_height(buffers)


def test_subsets_and_spreads() -> None:
    sizes = [2, 3, 3, 7, 11]
    for left_out, sums in enumerate(without_one(sizes)):
        others = sizes[:left_out] + sizes[left_out + 1 :]
        wanted = {sum(s) for k in range(5) for s in itertools.combinations(others, k)}
        assert {v for v in range(sums.bit_length()) if sums >> v & 1} == wanted
    assert without_one([]) == [] and without_one([4]) == [1]
    for width in range(9):
        assert spread(0b1001, width) == ((1 << width + 1) - 1) | ((1 << width + 1) - 1) << 3


def pinned(count: int, seed: int) -> list[Buffer]:
    """Coarse buffers, an eighth of them pinned near where a packing has them."""
    rng = random.Random(f"p{count}{seed}")
    sizes = rng.sample(range(5, 20), 3)
    buffers = [
        Buffer(f"b{i}", 64 * rng.choice(sizes), a := rng.randint(0, count // 2), a + rng.randint(1, 8))
        for i in range(count)
    ]
    known = dict(pack(buffers, time_limit_s=60, node_limit=1000).offsets)
    return [
        replace(b, offset=known[b.id] + 64 * rng.choice([0, 0, 1, 2])) if rng.random() < 0.12 else b for b in buffers
    ]


@pytest.mark.skipif(library() is None, reason="no C++ compiler here")
@pytest.mark.parametrize(("count", "seed"), [(30, 28), (60, 16), (60, 28)])
def test_sums_prove_what_the_search_cannot(count: int, seed: int) -> None:
    buffers = pinned(count, seed)
    made = pack(buffers, time_limit_s=60, node_limit=50_000)
    without = pack(buffers, time_limit_s=60, node_limit=50_000, rules=ALL_RULES - RULES["sums"])
    assert made.status == "optimal" and without.status == "packed" and made.height == without.height
    assert made.nodes < 20_000 < without.nodes and without.bound < made.bound
    assert not validate(buffers, dict(made.offsets), capacity=made.height)
    below = pack(buffers, capacity=made.height - 1, time_limit_s=60, node_limit=20_000)
    assert below.status == "infeasible" and below.blame
    assert pack(buffers, time_limit_s=60, node_limit=50_000).offsets == made.offsets
