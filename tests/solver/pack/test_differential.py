"""Every kind of constraint against brute force on small random problems; MORE=10 tries ten times as many."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from adaflex.errors import TableError
from adaflex.solver.memplan import MemoryProblem, Space, pack_in_place, pack_problem, pack_spaces
from adaflex.solver.pack.inplace import joinable
from adaflex.solver.pack.library import library
from adaflex.solver.pack.packing import Packing
from adaflex.solver.pack.search import pack
from adaflex.solver.pack.validate import validate
from adaflex.solver.table import Buffer
from tests.solver.pack.exact import brute_height, brute_in_place, brute_spaces

MORE = int(os.environ.get("MORE", "1"))
Pairs = list[tuple[str, str]]


def some(rng: random.Random, count: int, most: int = 6) -> list[Buffer]:
    found = []
    for i in range(count):
        first = rng.randint(0, 5)
        found.append(
            Buffer(
                f"b{i}",
                rng.randint(0 if rng.random() < 0.1 else 1, most),
                first,
                first + rng.randint(0 if rng.random() < 0.1 else 1, 5),
            )
        )
    return found


def with_aliases(rng: random.Random) -> tuple[list[Buffer], Pairs]:
    buffers = some(rng, rng.randint(3, 7))
    for k in range(1, len(buffers)):
        if rng.random() < 0.4:
            buffers[k] = replace(buffers[k], alias=f"b{rng.randrange(k)}", alignment=rng.choice([1, 1, 2]))
    return buffers, []


def with_gaps(rng: random.Random) -> tuple[list[Buffer], Pairs]:
    buffers = some(rng, rng.randint(2, 6))
    for k, b in enumerate(buffers):
        if b.end - b.first > 2 and rng.random() < 0.7:
            low = rng.randint(b.first, b.end - 2)
            buffers[k] = replace(b, gaps=((low, rng.randint(low + 1, b.end)),))
    return buffers, []


def with_pins(rng: random.Random) -> tuple[list[Buffer], Pairs]:
    buffers = some(rng, rng.randint(2, 7))
    for k, b in enumerate(buffers):
        alignment = rng.choice([1, 1, 2, 3])
        pin = alignment * rng.randint(0, 5) if rng.random() < 0.4 else None
        buffers[k] = replace(b, alignment=alignment, offset=pin)
    return buffers, []


def with_separations(rng: random.Random) -> tuple[list[Buffer], Pairs]:
    buffers = some(rng, rng.randint(2, 6))
    if rng.random() < 0.4:
        buffers[0] = replace(buffers[0], offset=rng.randint(0, 3))
    pairs = [tuple(rng.sample([b.id for b in buffers], 2)) for _ in range(rng.randint(1, 5))]
    return buffers, [(a, b) for a, b in pairs]


@pytest.mark.parametrize("part", range(4 * MORE))
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("make", [with_aliases, with_gaps, with_pins, with_separations])
def test_heights_equal_brute_force(
    make: Callable[[random.Random], tuple[list[Buffer], Pairs]], native: bool, part: int
) -> None:
    if native and library() is None:
        pytest.skip("no C++ compiler here")
    for seed in range(part * 20, part * 20 + 20):
        rng = random.Random(f"{make.__name__} {native} {seed}")
        buffers, separate = make(rng)
        least = brute_height(buffers, separate)
        made = pack(buffers, separate=separate, native=native, time_limit_s=20)
        if least is None:
            assert made.status == "infeasible" and len(made.blame) == 2 and made.reason, seed
            continue
        assert (made.status, made.height, made.bound) == ("optimal", least, least), (seed, made.status)
        assert not validate(buffers, dict(made.offsets), capacity=least, separate=separate)
        below = pack(buffers, capacity=least - 1, separate=separate, native=native) if least else None
        assert below is None or blamed_rightly(below, buffers, separate, least - 1), seed


def blamed_rightly(made: Packing, buffers: Sequence[Buffer], separate: Pairs, capacity: int) -> bool:
    """Refused with proof: what is blamed does not fit by itself."""
    own = [b for b in buffers if b.id in made.blame]
    names = {b.id for b in own}
    own += [b for b in buffers if b.alias in names and b.id not in names]
    names = {b.id for b in own}
    own = [replace(b, alias=b.alias if b.alias in names else "") for b in own]
    height = brute_height(own, [pair for pair in separate if names >= set(pair)])
    refused = made.status == "infeasible" and bool(made.reason) and not made.offsets
    return refused and bool(own) and (height is None or height > capacity)


@pytest.mark.parametrize("part", range(5 * MORE))
def test_in_place_pairs_equal_brute_force(part: int) -> None:
    joined = 0
    for seed in range(part * 20, part * 20 + 20):
        rng = random.Random(f"in place {seed}")
        buffers = some(rng, rng.randint(2, 5))
        pairs = [(a.id, b.id) for a in buffers for b in buffers if a is not b and b.first == a.end - 1]
        pairs = rng.sample(pairs, min(len(pairs), 4))
        native = library() is not None and seed % 2 == 0
        least = brute_in_place(buffers, pairs)
        made = pack_in_place(buffers, pairs, native=native)
        assert (made.status, made.height, made.bound) == ("optimal", least, least), seed
        assert not validate(buffers, dict(made.offsets), in_place=made.in_place)
        assert set(made.in_place) <= set(pairs)
        assert least is not None and pack_in_place(buffers, pairs, capacity=least, native=native).status == "fits"
        if least:
            below = pack_in_place(buffers, pairs, capacity=least - 1, native=native)
            blamed = [b for b in buffers if b.id in below.blame]
            own = brute_in_place(blamed, [p for p in pairs if {b.id for b in blamed} >= set(p)])
            assert below.status == "infeasible" and below.reason and own is not None and own >= least, seed
        joined += bool(made.in_place)
    assert joined


@pytest.mark.parametrize("part", range(5 * MORE))
def test_spaces_equal_brute_force(part: int) -> None:
    answers = set()
    for seed in range(part * 20, part * 20 + 20):
        rng = random.Random(f"spaces {seed}")
        buffers = some(rng, rng.randint(2, 5))
        sizes = {name: rng.randint(3, 12) for name in ("fast", "slow", "far")[: rng.randint(1, 3)]}
        for k, b in enumerate(buffers):
            if rng.random() < 0.3:
                buffers[k] = replace(b, spaces=tuple(rng.sample(list(sizes), rng.randint(1, len(sizes)))))
            elif k and rng.random() < 0.2:
                buffers[k] = replace(b, alias=f"b{rng.randrange(k)}")
        if any(not set(b.spaces or sizes) & set(buffers[int(b.alias[1:])].spaces or sizes) for b in buffers if b.alias):
            continue
        least = brute_spaces(buffers, sizes) if not any(b.alias for b in buffers) else None
        made = pack_spaces(buffers, [Space(*entry) for entry in sizes.items()], native=library() is not None)
        answers.add(made.status)
        if any(b.alias for b in buffers) and made.status == "infeasible":
            continue
        assert made.status == ("fits" if least is not None or any(b.alias for b in buffers) else "infeasible"), seed
        if made.status == "infeasible":
            assert made.blame and made.reason
            continue
        where, at = dict(made.spaces), dict(made.offsets)
        for name, size in sizes.items():
            here = [b for b in buffers if where[b.id] == name]
            assert not validate(here, {b.id: at[b.id] for b in here}, capacity=size), seed
        if least is not None:
            rank = {b.id: (b.spaces or tuple(sizes)).index(where[b.id]) for b in buffers}
            assert sum(rank[b.id] * b.size_bytes * (b.end - b.first) for b in buffers) == least, seed
    assert answers >= {"fits", "infeasible"}


def test_pairs_and_spaces_that_make_no_sense() -> None:
    buffers = [Buffer("a", 4, 0, 3), Buffer("b", 4, 2, 4), Buffer("c", 4, 1, 3, alias="a")]
    with pytest.raises(TableError, match="unknown buffer 'x'"):
        pack_in_place(buffers, [("a", "x")])
    with pytest.raises(TableError, match="in place of itself"):
        pack_in_place(buffers, [("a", "a")])
    assert joinable(buffers, [("a", "b")]) == () and joinable(buffers[:2], [("a", "b")], [("b", "a")]) == ()
    assert joinable(buffers[:2], [("a", "b"), ("b", "a")]) == (("a", "b"),)
    with pytest.raises(TableError, match="no space in common"):
        pack_spaces(
            [Buffer("a", 1, 0, 1, spaces=("x",)), Buffer("b", 1, 0, 1, alias="a", spaces=("y",))],
            [Space("x", 9), Space("y", 9)],
        )
    with pytest.raises(TableError, match="unknown buffer 'q'"):
        pack_spaces([Buffer("a", 1, 0, 1)], [Space("x", 9)], separate=[("a", "q")])
    with pytest.raises(TableError, match="one address space"):
        pack_problem(MemoryProblem(tuple(buffers), spaces=(Space("x", 9),), in_place=(("a", "b"),)))


def test_many_pairs_are_never_above_none() -> None:
    chain = [Buffer(f"t{i}", 8 + i % 5, i, i + 2) for i in range(40)]
    pairs = [(f"t{i}", f"t{i + 1}") for i in range(39)]
    made = pack_in_place(chain, pairs, time_limit_s=5)
    assert made.height < pack(chain).height and not validate(chain, dict(made.offsets), in_place=made.in_place)
    alone = pack_in_place(chain, pairs, capacity=made.height, time_limit_s=5)
    assert alone.status == "fits"
    assert pack_in_place(chain, pairs, capacity=made.bound - 1, time_limit_s=5).status == "infeasible"
    problem = MemoryProblem(tuple(chain), in_place=tuple(pairs))
    assert pack_problem(problem, time_limit_s=5).height == made.height


def test_large_spreads_leave_by_what_they_gain() -> None:
    buffers = [Buffer(f"b{i}", 10 + i, 0, 2) for i in range(14)]
    made = pack_spaces(buffers, [Space("fast", 100), Space("slow", 400)], time_limit_s=5)
    where, at = dict(made.spaces), dict(made.offsets)
    assert made.status == "fits" and set(where.values()) == {"fast", "slow"}
    for name, most in (("fast", 100), ("slow", 400)):
        here = [b for b in buffers if where[b.id] == name]
        assert not validate(here, {b.id: at[b.id] for b in here}, capacity=most)
    assert pack_spaces(buffers, [Space("fast", 100), Space("slow", 100)], time_limit_s=1).status == "unknown"
    assert pack_spaces(buffers, [Space("only", 100)], time_limit_s=1).status == "infeasible"
    apart = pack_spaces(buffers[:2], [Space("x", 12), Space("y", 12)], separate=[("b0", "b1")])
    assert len(set(dict(apart.spaces).values())) == 2


def test_a_buffer_of_no_bytes_is_kept_apart_from_all() -> None:
    buffers = [Buffer("b0", 0, 0, 3, offset=2), Buffer("b1", 6, 2, 5)]
    separate = [("b0", "b1")]
    made = pack(buffers, separate=separate)
    assert (made.status, made.height, brute_height(buffers, separate)) == ("optimal", 6, 6)
    assert not validate(buffers, dict(made.offsets), capacity=6, separate=separate)
