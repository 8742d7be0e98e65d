"""The search equals brute force, its twin visits the same nodes, known optima are found, proofs hold."""

import csv
import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adaflex.solver.pack.ask import Asker
from adaflex.solver.pack.core import ALL_RULES, NICHE, RULES, Core
from adaflex.solver.pack.generate import guillotine, lives, pinwheel
from adaflex.solver.pack.greedy import pack as greedy
from adaflex.solver.pack.library import library
from adaflex.solver.pack.parts import plain
from adaflex.solver.pack.problem import height_of, offsets_of, problem
from adaflex.solver.pack.search import pack
from adaflex.solver.pack.twin import Twin
from adaflex.solver.pack.validate import validate
from adaflex.solver.table import Buffer

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "minimalloc"
needs_compiler = pytest.mark.skipif(library() is None, reason="no C++ compiler here")


def random_buffers(seed: int, most: int = 6) -> list[Buffer]:
    rng = random.Random(seed)
    rich = rng.random() < 0.5
    found = []
    for i in range(rng.randint(2, most)):
        first = rng.randint(0, 6)
        end = first + rng.randint(1, 5)
        gaps = ((first + 1, first + 2),) if rich and end > first + 2 and rng.random() < 0.3 else ()
        alignment = rng.choice([1, 2, 3]) if rich and rng.random() < 0.4 else 1
        pin = alignment * rng.randint(0, 4) if rich and rng.random() < 0.15 else None
        found.append(Buffer(f"b{i}", rng.randint(1, 6), first, end, alignment, gaps, pin))
    return found


def brute_height(buffers: list[Buffer]) -> int | None:
    """Least height over all orders of lowest placement; None where pinned buffers overlap."""

    def live(b: Buffer) -> set[int]:
        return {t for t in range(b.first, b.end) if not any(low <= t < high for low, high in b.gaps)}

    lives_of = [live(b) for b in buffers]
    free = [i for i, b in enumerate(buffers) if b.offset is None]
    pinned = {i: b.offset for i, b in enumerate(buffers) if b.offset is not None}
    for a, b in itertools.combinations(pinned, 2):
        apart = pinned[a] + buffers[a].size_bytes <= pinned[b] or pinned[b] + buffers[b].size_bytes <= pinned[a]
        if lives_of[a] & lives_of[b] and not apart:
            return None
    best = None
    for order in itertools.permutations(free):
        at = dict(pinned)
        for i in order:
            others = [(at[j], at[j] + buffers[j].size_bytes) for j in at if lives_of[i] & lives_of[j]]
            place = 0
            while any(place < high and place + buffers[i].size_bytes > low for low, high in others):
                place += buffers[i].alignment
            at[i] = place
        height = max(at[i] + buffers[i].size_bytes for i in at)
        best = height if best is None else min(best, height)
    return best


@pytest.mark.parametrize("part", range(10))
@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_compiler), False])
def test_search_equals_brute_force(part: int, native: bool) -> None:
    for seed in range(part * 30, part * 30 + 30):
        buffers = random_buffers(seed + (0 if native else 5000))
        least = brute_height(buffers)
        packing = pack(buffers, time_limit_s=20, native=native)
        if least is None:
            assert packing.status == "infeasible" and len(packing.blame) == 2 and not packing.offsets
            continue
        assert (packing.status, packing.height, packing.bound) == ("optimal", least, least), seed
        assert not validate(buffers, dict(packing.offsets), capacity=least)
        below = pack(buffers, capacity=least - 1, native=native)
        assert below.status == "infeasible" and below.blame and below.reason, seed
        assert pack(buffers, capacity=least, native=native).status == "fits"
        blamed = [b for b in buffers if b.id in below.blame]
        worst = brute_height(blamed)
        assert worst is None or worst >= least, "the buffers blamed do not fit by themselves"


@needs_compiler
@pytest.mark.parametrize("seed", range(40))
def test_twin_visits_the_same_nodes(seed: int) -> None:
    buffers = random_buffers(seed + 900, 12) if seed % 2 else guillotine(14 + seed, seed)
    task = problem(buffers)
    lib = library()
    assert lib is not None
    core, twin = Core(task, lib), Twin(task)
    if (task.pin >= 0).any() and twin.greedy(range(twin.count), False) is None:
        return
    height = pack(buffers, time_limit_s=1).height
    simple = plain(task) and task.alignment.max() == 1
    asker = Asker(task, core, simple, seed, ALL_RULES)
    for capacity, limit in itertools.product((height, height - 1), (50, 700)):
        for rules in (ALL_RULES - NICHE, ALL_RULES) if simple else (ALL_RULES - NICHE,):
            rank = asker.rank()
            asker.asked += 1
            answers = [engine.search(rank, capacity, limit, rules=rules) for engine in (core, twin)]
            assert answers[0] == answers[1]
    order = asker.rank()
    assert core.greedy(order, True) == twin.greedy(order, True)


@needs_compiler
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_can_be_switched_off(rule: str) -> None:
    for seed in range(30):
        buffers = random_buffers(seed)
        with_all, without = pack(buffers), pack(buffers, rules=ALL_RULES - RULES[rule])
        assert with_all.height == without.height
        assert without.status in ("optimal", "unknown" if not without.offsets else "packed")


@needs_compiler
@pytest.mark.parametrize("make", [guillotine, pinwheel])
@pytest.mark.parametrize(("count", "seed"), [(30, 0), (100, 1), (200, 2), (300, 0)])
def test_known_optimum_is_found(make: type, count: int, seed: int) -> None:
    buffers = make(count, seed)
    packing = pack(buffers, time_limit_s=30)
    assert packing.status == "optimal" and packing.height == 1 << 20
    assert not validate(buffers, dict(packing.offsets), capacity=1 << 20)


@needs_compiler
@pytest.mark.parametrize("name", ["A", "B", "D", "E", "G", "H", "K"])
def test_public_instances_fit(name: str) -> None:
    path = DATA / f"{name}.1048576.csv"
    if not path.exists():
        pytest.skip("the public instances are not here")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    buffers = [Buffer(r["id"], int(r["size"]), int(r["lower"]), int(r["upper"])) for r in rows]
    packing = pack(buffers, capacity=1 << 20, time_limit_s=60)
    assert packing.status == "fits"
    assert not validate(buffers, dict(packing.offsets), capacity=1 << 20)
    limited = [pack(buffers, capacity=1 << 20, time_limit_s=60, node_limit=20_000) for _ in range(2)]
    assert limited[0].offsets == limited[1].offsets and limited[0].nodes == limited[1].nodes


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_compiler), False])
def test_never_above_greedy_and_limits_hold(native: bool) -> None:
    import time

    buffers = lives(300, 20, 0)
    begin = time.perf_counter()
    packing = pack(buffers, time_limit_s=1.0, native=native)
    assert time.perf_counter() - begin < 3.0
    from adaflex.solver.pack import greedy

    assert packing.bound <= packing.height <= greedy.pack(buffers).height
    assert not validate(buffers, dict(packing.offsets))


def test_alignment_of_all_keeps_the_proof_honest() -> None:
    buffers = [Buffer("a", 10, 0, 2), Buffer("b", 10, 0, 2)]
    assert pack(buffers, alignment=8, capacity=26).status == "fits"
    assert pack(buffers, alignment=8, capacity=25).status == "infeasible"
    apart = pack([Buffer("a", 10, 0, 1), Buffer("b", 10, 5, 6)], separate=[("a", "b")])
    assert apart.height == 20 and apart.status in ("packed", "optimal")


@needs_compiler
@pytest.mark.timeout(30)
def test_the_last_nodes_are_used_up() -> None:
    for seed in range(6):
        rng = random.Random(f"last {seed}")
        buffers = [
            Buffer(f"b{i}", rng.randint(1, 100), a := rng.randint(0, 8), a + rng.randint(1, 6), rng.choice([1, 16, 64]))
            for i in range(16)
        ]
        for nodes in range(4000, 4010):
            made = pack(buffers, time_limit_s=600, node_limit=nodes)
            assert made.status == "optimal" or nodes <= made.nodes <= nodes + 3


def test_bounds_count_what_alignment_leaves_empty() -> None:
    raised = met = 0
    for seed in range(200):
        rng = random.Random(seed)
        buffers = [
            Buffer(f"b{i}", rng.randint(1, 12), a := rng.randint(0, 4), a + rng.randint(1, 4), rng.choice([2, 4, 8]))
            for i in range(5)
        ]
        least, task = brute_height(buffers), problem(buffers)
        bound, plain_bound = task.lower_bound, problem([replace(b, alignment=1) for b in buffers]).lower_bound
        assert least is not None and plain_bound <= bound <= least, seed
        raised, met = raised + (bound > plain_bound), met + (bound == least)
        below = pack(buffers, capacity=bound - 1)
        own = [b for b in buffers if b.id in below.blame]
        missing = int(below.reason.split(", ")[1].split(" more")[0]) if "hold" in below.reason else 1
        assert below.status == "infeasible" and missing == 1 and (brute_height(own) or 0) >= bound, seed
    assert raised > 100 and met > 120


def test_greedy_packings_at_one_alignment_are_proven() -> None:
    buffers = [Buffer(f"b{i}", 64 * i + 5, 0, 3, 64) for i in range(20)]
    made = pack(buffers)
    assert (made.status, made.method) == ("optimal", "greedy") and made.bound == sum(
        64 * i + 64 for i in range(20)
    ) - 59
    assert pack(buffers, native=False).height == made.height
    assert "stacked at their alignments" in pack(buffers, capacity=made.height - 1).reason


@needs_compiler
@pytest.mark.parametrize("kind", ["plain", "aligned", "pinned"])
def test_pushing_out_lowers_and_stays_valid(kind: str) -> None:
    buffers = lives(1600, 40, 3)
    if kind == "aligned":
        buffers = [replace(b, alignment=192 if i % 3 else 1) for i, b in enumerate(buffers)]
    if kind == "pinned":
        known = dict(greedy(buffers).offsets)
        buffers = [replace(b, offset=known[b.id]) if i % 50 == 0 else b for i, b in enumerate(buffers)]
    task = problem(buffers)
    lib = library()
    assert lib is not None
    core = Core(task, lib)
    start = core.greedy(np.argsort(-task.size, kind="stable"), False)
    assert start is not None
    height, bound = height_of(task, start), task.lower_bound
    goal = height - (height - bound) // 10
    places, used = core.eject(start, goal, 200_000, 20.0)
    assert used > 0 and places is not None and height_of(task, places) <= goal
    assert not validate(buffers, dict(offsets_of(task, places)))
    assert core.eject(start, bound // 2, 1000, 5.0)[0] is None


@pytest.mark.timeout(120)
def test_many_buffers_come_near_the_bound_in_few_moves() -> None:
    buffers = lives(2000, 50, 0)
    made = pack(buffers, node_limit=60_000, time_limit_s=60.0)
    assert not validate(buffers, dict(made.offsets))
    best = greedy(buffers).height
    assert made.height <= best if library() is None else made.height < 0.97 * best


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_compiler), False])
def test_buffers_without_size_or_life_do_not_hide_packings(native: bool) -> None:
    empty = [Buffer("none", 0, 0, 9), Buffer("never", 5, 3, 3)]
    buffers = [Buffer("a", 3, 4, 6), Buffer("b", 5, 1, 5), Buffer("c", 5, 2, 7), Buffer("d", 6, 4, 6)]
    apart = [("c", "b"), ("a", "b"), ("d", "b")]
    made = pack([*buffers, Buffer("pin", 3, 5, 7, offset=3), *empty], separate=apart, native=native)
    assert (made.status, made.height) == ("optimal", 19)
    tight = guillotine(24, 5, height=1 << 10, unit=1)
    assert pack([*tight, *empty], native=native, time_limit_s=20).height == 1 << 10
    assert pack(empty, native=native).height == 5 and pack(empty, capacity=4, native=native).blame == ("never",)
