"""Buffers on several memories: the replay obeys its rules, the search equals brute force and beats every policy."""

import itertools
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from adaflex.cli import main
from adaflex.errors import TableError
from adaflex.solver.memplan import Buffer, MemoryProblem, Operator, Store
from adaflex.solver.pack.streams import decided, flow_of, lower_bound, options_of, policies, stream
from adaflex.solver.pack.tiers import Decisions, Flow, Level, Schedule, chrome_trace, simulate, uses_of

MORE = int(os.environ.get("MORE", "1"))


def random_flow(seed: int) -> Flow:
    """Two or three memories; inputs in any of the lower ones, some buffers written, some steps that can run below."""
    rng = random.Random(seed)
    lower = rng.randint(1, 2)
    count = rng.randint(2, 4)
    sizes = tuple(rng.randint(1, 5) for _ in range(count))
    written = [b for b in range(count) if rng.random() < 0.35]
    reads, writes = [], []
    for step in range(rng.randint(3, 5)):
        made = (written[step],) if step < len(written) else ()
        known = [b for b in range(count) if b not in written[step:]]
        reads.append(tuple(rng.sample(known, min(len(known), rng.choice((1, 1, 2))))))
        writes.append(made)
    levels = [Level("top", rng.randint(9, 14))]
    for number in range(lower):
        table = rng.choice([((1, 10**9),), ((1, 3 * 10**8), (3, 10**9))])
        roomy = number == lower - 1 or rng.random() < 0.5
        levels.append(Level(f"m{number}", None if roomy else rng.randint(4, 12), table, rng.randint(0, 2)))
    times = tuple(
        (rng.randint(0, 6), *(rng.randint(3, 12) if rng.random() < 0.2 else None for _ in range(lower))) for _ in reads
    )
    home = tuple(0 if b in written else lower for b in range(count))
    return Flow(times, tuple(reads), tuple(writes), sizes, home, tuple(levels))


def brute_force(flow: Flow) -> int | None:
    """The least time over every place of every step and every level of every gap."""
    uses = uses_of(flow)
    gaps = [(b, k) for b, steps in enumerate(uses) for k in range(1, len(steps))]
    every = range(len(flow.levels))
    least = None
    for places in itertools.product(every, repeat=len(flow.reads)):
        if any(flow.compute_ns[step][place] is None for step, place in enumerate(places)):
            continue
        for lies in itertools.product(every, repeat=len(gaps)):
            made = simulate(flow, Decisions(places, tuple(zip(gaps, lies, strict=True))))
            if made is not None and (least is None or made.total_ns < least):
                least = made.total_ns
    return least


def faults_of(flow: Flow, made: Schedule) -> set[str]:
    """What is wrong with a schedule, from its events alone: nothing here knows how it was made."""
    found = set()
    places, lies = made.decisions.places, dict(made.decisions.lies)
    uses = uses_of(flow)
    written = {b for writes in flow.writes for b in writes}
    for step, (begin, end) in enumerate(zip(made.step_begins, made.step_ends, strict=True)):
        if end - begin != flow.compute_ns[step][places[step]] or (step and begin < made.step_ends[step - 1]):
            found.add("step")
    for one, other in itertools.combinations(made.transfers, 2):
        same = (one.link, one.down) == (other.link, other.down)
        if same and one.begin_ns < other.end_ns and other.begin_ns < one.end_ns:
            found.add("link")
    for one, other in itertools.pairwise(made.transfers):
        if (one.buffer, one.step, one.down) == (other.buffer, other.step, other.down) and other.begin_ns < one.end_ns:
            found.add("hops")
    for t in made.transfers:
        if t.end_ns - t.begin_ns != flow.levels[t.link].time_of(flow.sizes[t.buffer]):
            found.add("time")
    for step in range(len(flow.reads)):  # every buffer read is there when its step begins
        for buffer in flow.reads[step]:
            number = uses[buffer].index(step)
            lay = lies[buffer, number] if number else flow.home[buffer]
            sources = {lay} | ({flow.home[buffer]} if buffer not in written else set())
            came = [t for t in made.transfers if (t.buffer, t.step) == (buffer, step)]
            into = [t for t in came if (t.link if t.down else t.link - 1) == places[step]]
            if places[step] not in sources and not any(t.end_ns <= made.step_begins[step] for t in into):
                found.add("late")
    marks = sorted({*made.step_begins, *made.step_ends, *(m for t in made.transfers for m in (t.begin_ns, t.end_ns))})
    for level, low in itertools.product(range(len(flow.levels)), marks):
        most = flow.levels[level].capacity_bytes
        if most is not None and sum(flow.sizes[b] for b in held(flow, made, level, low)) > most:
            found.add("room")
    return found


def held(flow: Flow, made: Schedule, level: int, at: int) -> set[int]:
    """The buffers that must be on a level just after a moment: used there, lying there, or under way from or to it."""
    places, lies = made.decisions.places, dict(made.decisions.lies)
    found = set()
    written = {b for writes in flow.writes for b in writes}
    for buffer, steps in enumerate(uses_of(flow)):
        if steps and buffer not in written and flow.home[buffer] == level:
            found.add(buffer)
        for number, step in enumerate(steps):
            if places[step] == level and made.step_begins[step] <= at < made.step_ends[step]:
                found.add(buffer)
            lying = number and lies[buffer, number] == level
            if lying and made.step_ends[steps[number - 1]] <= at < made.step_begins[step]:
                found.add(buffer)
    for t in made.transfers:
        target, source = (t.link, t.link - 1) if t.down else (t.link - 1, t.link)
        if t.begin_ns <= at < t.end_ns:  # what only passes through a level is not counted
            number = uses_of(flow)[t.buffer].index(t.step) + (t.begin_ns >= made.step_ends[t.step])
            ends = {places[t.step], lies.get((t.buffer, number), -1)}
            found |= {t.buffer} if level in (target, source) and level in ends else set()
    return found


@pytest.mark.parametrize("part", range(4))
def test_the_search_equals_brute_force_and_beats_every_policy(part: int) -> None:
    proven = 0
    for seed in range(part * 60 * MORE, (part + 1) * 60 * MORE):
        flow = random_flow(seed)
        least = brute_force(flow)
        if least is None:
            with pytest.raises(TableError, match=r"no schedule was found|needs"):
                stream(flow)
            continue
        made = stream(flow, most=1 << 30)
        assert made.best.total_ns == least == made.bound_ns, seed
        assert lower_bound(flow) <= least, seed
        assert all(made.best.total_ns <= total for _, total in made.policies)
        assert not faults_of(flow, made.best), seed
        assert simulate(flow, made.best.decisions) == made.best
        proven += 1
        local = stream(flow, most=0, rounds=100)
        assert all(least <= local.best.total_ns <= total for _, total in local.policies)
        assert local.bound_ns <= least
    assert proven >= 50 * MORE


def test_random_decisions_obey_the_rules() -> None:
    rng, met = random.Random(5), 0
    for seed in range(200):
        flow = random_flow(seed)
        options = options_of(flow)
        for _ in range(10):
            made = simulate(flow, decided(flow, [rng.choice(row) if row else 0 for row in options]))
            if made is not None:
                met += 1
                assert not faults_of(flow, made), seed
                assert len(chrome_trace(flow, made)) == len(flow.reads) + len(made.transfers)
    assert met >= 400


def test_planted_faults_of_schedules_are_named() -> None:
    flow = next(f for f in map(random_flow, range(200)) if len(stream(f).best.transfers) >= 2)
    made = stream(flow).best
    first = made.transfers[0]
    late = replace(first, begin_ns=first.begin_ns + 1000, end_ns=first.end_ns + 1000)
    assert {"late", "hops"} & faults_of(flow, replace(made, transfers=(late, *made.transfers[1:])))
    assert "late" in faults_of(flow, replace(made, transfers=made.transfers[1:] if first.link == 1 else ()))
    assert "time" in faults_of(flow, replace(made, transfers=(replace(first, end_ns=first.end_ns + 1),)))
    assert "step" in faults_of(flow, replace(made, step_ends=tuple(end + 1 for end in made.step_ends)))
    assert "link" in faults_of(flow, replace(made, transfers=(first, first)))
    tight = replace(flow, levels=(replace(flow.levels[0], capacity_bytes=0), *flow.levels[1:]))
    assert "room" in faults_of(tight, made)


def test_dirty_buffers_are_written_back_and_links_work_at_once() -> None:
    link = (Level("top", 8), Level("dram", None, ((1, 10**9),), 1))
    flow = Flow(((5, None),) * 3, ((), (1,), (0,)), ((0,), (), ()), (6, 6), (0, 1), link)
    made = simulate(flow, Decisions((0, 0, 0), (((0, 1), 1),)))
    assert made is not None and [t.down for t in made.transfers] == [True, False, False]
    assert made.step_begins == (0, 19, 31) and not faults_of(flow, made)  # out 5-12, in 12-19, out and in 24-31
    assert simulate(flow, Decisions((0, 0, 0), (((0, 1), 0),))) is None


def three_tiers() -> MemoryProblem:
    """SRAM, DRAM and host: weights come from the host, are used twice, and one operator can run near the DRAM."""
    buffers = (*(Buffer(f"w{k}", 1000, 0, 1) for k in range(3)), Buffer("x", 500, 0, 1))
    operators = (
        Operator("a", ("w0",), ("x",), 4000), Operator("b", ("w1", "x"), (), 4000), Operator("c", ("w2",), (), 4000),
        Operator("d", ("w0", "x"), (), 4000, (("dram", 5000),)), Operator("e", ("w1",), (), 4000),
    )  # fmt: skip
    dram = Store("dram", 3000, latency_ns=50, bandwidth=((1, 250_000_000), (1000, 1_000_000_000)))
    return MemoryProblem(buffers, 2500, operators=operators, stores=(dram, Store("host", None, 250_000_000, 100)))


def test_a_three_tier_accelerator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from adaflex.solver.table_json import to_json

    path = tmp_path / "p.json"
    path.write_text(to_json(three_tiers()))
    assert main(["memplan", str(path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["total_ns"] <= min(answer["policies"].values()) and answer["bound_ns"] <= answer["total_ns"]
    assert {row["from"] for row in answer["transfers"]} >= {"host", "dram"}
    assert set(answer["peaks"]) == {"working memory", "dram", "host"} and answer["peaks"]["dram"] <= 3000
    flow = flow_of(three_tiers())
    assert flow.levels[1].time_of(500) == 50 + 2000 and flow.levels[1].time_of(1000) == 50 + 1000
    assert not faults_of(flow, stream(flow).best)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stores": ()}, "streaming needs"), ({"homes": (("w0", "moon"),)}, "unknown store 'moon'"),
        ({"homes": (("z", "dram"),)}, "unknown buffer 'z'"),
        ({"operators": (Operator("a", ("none",)),)}, "unknown buffer"),
        ({"operators": (Operator("a", ("w0",), elsewhere=(("moon", 1),)),)}, "unknown store"),
        ({"operators": (Operator("a", ("w0",), ("w0",)),)}, "one of its own"),
        ({"operators": (Operator("a", ("w0", "w1", "w2")),)}, "needs 3000 bytes at once"),
        ({"operators": (Operator("a", ("w0",), (), -1),)}, "negative"),
        ({"stores": (Store("dram", bytes_per_second=0),)}, "positive bandwidth"),
        ({"stores": (Store("dram", 10),)}, "no schedule was found"),
    ],
)  # fmt: skip
def test_impossible_flows_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(TableError, match=said):
        stream(flow_of(replace(three_tiers(), **change)))  # type: ignore[arg-type]


def test_policies_are_candidates() -> None:
    names = {name for name, _ in policies(flow_of(three_tiers()))}
    assert names == {"lru", "belady", "benefit per byte", "keep nothing", "least work with dram"}


def test_the_documented_problem_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "solver.md").read_text()
    example = page.split("A three-tier accelerator:")[1].split("```json")[1].split("```")[0]
    path = tmp_path / "p.json"
    path.write_text(example)
    assert main(["memplan", str(path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "optimal" and answer["computed_on"]["a"] == "working memory"
