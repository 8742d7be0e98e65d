"""Problems of pairs: brute force on small ones, exact reductions, bounds below the optimum, both forms of the core."""

import itertools
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest

from adaflex.cli import main
from adaflex.errors import TableError
from adaflex.solver.pairwise import choose as choose_file
from adaflex.solver.pairwise import core as core_file
from adaflex.solver.pairwise.bound import ascent, fix
from adaflex.solver.pairwise.build import network_of
from adaflex.solver.pairwise.contest import answer
from adaflex.solver.pairwise.core import Core, library
from adaflex.solver.pairwise.network import Network, flatten
from adaflex.solver.pairwise.problem import NEVER, Edge, Node, PairProblem, pair_problem, value_of
from adaflex.solver.pairwise.program import program_of
from adaflex.solver.pairwise.reduce import simplify, tighten
from adaflex.solver.pairwise.twin import Twin
from adaflex.solver.pairwise.walk import Walk


def problem(seed: int) -> PairProblem:
    """Four to seven nodes of one to four strategies; forbidden pairs, parallel edges, empty lives, tight limits."""
    rng = random.Random(seed)
    count = rng.randint(4, 7)
    nodes = []
    for _ in range(count):
        width = rng.randint(1, 4)
        first = rng.randrange(6)
        costs = tuple(NEVER if rng.random() < 0.04 else rng.choice((0, rng.randrange(40))) for _ in range(width))
        nodes.append(Node(costs, tuple(rng.randrange(10) for _ in range(width)), first, first + rng.randrange(5)))
    edges = []
    for _ in range(rng.randint(count - 2, 2 * count)):
        i, j = rng.randrange(count), rng.randrange(count)
        size = len(nodes[i].costs) * len(nodes[j].costs)
        never = rng.choice((0.0, 0.1, 0.5))
        kinds = rng.choice((2, 100))
        table = tuple(NEVER if rng.random() < never else rng.randrange(kinds) * 7 for _ in range(size))
        edges.append(Edge(i, j, table))
    limit = rng.choice((None, rng.randint(8, 20), rng.randint(14, 30)))
    return PairProblem(f"seed {seed}", tuple(nodes), tuple(edges), limit)


def best(task: PairProblem) -> int | None:
    """The least cost of all choices."""
    values = []
    for chosen in itertools.product(*(range(len(node.costs)) for node in task.nodes)):
        cost, most = value_of(task, chosen)
        if cost < NEVER and (task.limit is None or most <= task.limit):
            values.append(cost)
    return min(values, default=None)


def least(net: Network) -> float:
    """The least cost of a network by trying everything."""
    nodes = sorted(net.open)
    lowest = np.inf
    for picks in itertools.product(*(range(len(net.cost[i])) for i in nodes)):
        chosen = dict(zip(nodes, picks, strict=True))
        held = np.zeros(len(net.room))
        for i in nodes:
            for a, b, use in net.held[i]:
                held[a:b] += use[chosen[i]]
        if np.all(held <= net.room):
            cost = net.constant + sum(net.cost[i][chosen[i]] for i in nodes)
            cost += sum(t[chosen[i], chosen[j]] for i in nodes for j, t in net.near[i].items() if i < j)
            lowest = min(lowest, cost)
    return float(lowest)


@pytest.mark.parametrize("part", range(4))
def test_answers_equal_brute_force(part: int) -> None:
    states = []
    for seed in range(part * 40, part * 40 + 40):
        task = problem(seed)
        made, value = answer(task, time_limit_s=20.0), best(task)
        states.append(made.status)
        assert made.status == ("infeasible" if value is None else "optimal"), seed
        assert made.cost == made.bound == value, seed
        if value is not None:
            assert value_of(task, made.choices) == (value, made.most_bytes), seed
    assert 20 <= states.count("optimal") < 40


def crowded(seed: int) -> PairProblem:
    """Six nodes, each next to all others, little room at many times: nothing that reductions could take away."""
    rng = random.Random(seed)
    nodes = []
    for _ in range(6):
        first = rng.randrange(4)
        costs, uses = ([rng.randrange(1, 60) for _ in range(4)] for _ in range(2))
        nodes.append(Node(tuple(costs), tuple(uses), first, first + rng.randint(3, 6)))
    tables = (tuple(rng.randrange(50) for _ in range(16)) for _ in range(15))
    edges = tuple(Edge(i, j, next(tables)) for i, j in itertools.combinations(range(6), 2))
    return PairProblem(f"crowded {seed}", tuple(nodes), edges, rng.randint(60, 110))


def test_rows_added_as_they_are_needed_leave_the_answer_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[object] = []
    add_row = choose_file.Live.add_row
    monkeypatch.setattr(choose_file, "ROWS", 10)  # one more row at a time
    monkeypatch.setattr(choose_file.Live, "add_row", lambda live, row: (rows.append(row), add_row(live, row))[1])
    monkeypatch.setattr(choose_file.Searching, "first", lambda *_: None)
    monkeypatch.setattr(choose_file.Searching, "turn", lambda *_: None)  # so that the program has the first word
    monkeypatch.setattr(choose_file, "program_of", lambda rest, _: program_of(rest, np.zeros(0, dtype=np.int64)))
    for seed in range(12):
        task = crowded(seed)
        made, value = answer(task, time_limit_s=20.0, rounds=6), best(task)
        assert (made.status, made.cost) == (("infeasible", None) if value is None else ("optimal", value)), seed
    assert rows


def test_no_time_gives_no_false_claim() -> None:
    for seed in range(20):
        task, value = crowded(seed), best(crowded(seed))
        made = answer(task, time_limit_s=0.0)
        assert made.status in ("unknown", "feasible") and made.limit == "time"
        assert value is None or made.bound is None or made.bound <= value
        assert made.cost is None or (value is not None and made.cost >= value)
        few = answer(task, time_limit_s=20.0, rounds=0, solver=False)
        assert few.status == "optimal" or few.limit == ("" if few.status == "infeasible" else "rounds")


def test_without_a_compiler_the_twin_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_file, "library", lambda: None)
    for seed in range(8):
        task = crowded(seed)
        made, value = answer(task, time_limit_s=60.0, rounds=4), best(task)
        assert (made.status, made.cost) == (("infeasible", None) if value is None else ("optimal", value)), seed


def test_without_a_solver_bounds_hold() -> None:
    proven = 0
    for seed in range(100):
        task = problem(seed)
        made, value = answer(task, time_limit_s=20.0, rounds=3, solver=False), best(task)
        if value is None:
            assert made.cost is None
            continue
        assert made.bound is not None and made.bound <= value, seed
        assert made.cost is None or made.cost >= value, seed
        proven += made.status == "optimal"
        assert made.status != "optimal" or made.cost == value
    assert proven >= 30


def test_reductions_keep_the_optimum_and_its_choice() -> None:
    smaller = 0
    for seed in range(150):
        task, soon = problem(seed), time.perf_counter() + 20.0
        value = best(task)
        net = network_of(task)
        assert least(net) == (np.inf if value is None else value), seed
        tighten(net)
        assert least(net) == (np.inf if value is None else value), seed
        alive = simplify(net, soon)
        assert alive or value is None, seed
        if alive:
            assert least(net) == (np.inf if value is None else value), seed
            smaller += len(net.open) < len(task.nodes)
    assert smaller >= 80


def test_fixing_keeps_everything_as_good_as_a_known_plan() -> None:
    forbidden = 0
    for seed in range(150):
        task = problem(seed)
        value = best(task)
        net = network_of(task)
        if value is None:
            continue
        state = ascent(net, 2.0 * (value - net.floor()) + 1.0)
        state.climb(time.perf_counter() + 20.0, 25, value - net.constant + 1.0)
        assert state.best + net.constant <= value + 1e-6, seed
        fixed = net.copy()
        forbidden += len(fix(fixed, state, float(value)))
        assert least(fixed) == value, seed
    assert forbidden >= 50


def test_both_forms_of_the_core_agree() -> None:
    lib = library()
    if lib is None:
        pytest.skip("no C++ compiler here")
    walked = 0
    for seed in range(80):
        net = network_of(problem(seed))
        flat = flatten(net, 1e6)
        core, twin = Core(flat, lib), Twin(flat)
        ends = [np.zeros(len(flat.nodes), dtype=np.int32) for _ in range(2)]
        for number in range(4):
            bounds = [
                one.passing(number % 2 == 0, flat.cost, chosen) for one, chosen in zip((core, twin), ends, strict=True)
            ]
            assert bounds[0] == bounds[1], seed
        assert np.array_equal(core.messages(), twin.messages()) and np.array_equal(core.worse(), twin.worse())
        assert np.array_equal(ends[0], ends[1])
        walk = Walk(seed, 50, 150, 5, 30.0, 1.0, 0.5)
        priced = flat.cost + 2.0
        costs = [one.search(priced, chosen, walk) for one, chosen in zip((core, twin), ends, strict=True)]
        assert costs[0] == costs[1] and np.array_equal(ends[0], ends[1]), seed
        walked += costs[0] < 1e6
    assert walked >= 40


def test_the_same_rounds_give_the_same_answer() -> None:
    tasks = [problem(seed) for seed in range(20)]
    answers = [[answer(t, time_limit_s=60.0, rounds=4, solver=False) for t in tasks] for _ in range(2)]
    assert [a.choices for a in answers[0]] == [a.choices for a in answers[1]]


def as_file(task: PairProblem, folder: Path) -> Path:
    body = {
        "name": task.name,
        "nodes": {
            "intervals": [[n.first, n.end] for n in task.nodes],
            "costs": [n.costs for n in task.nodes],
            "usages": [n.usages for n in task.nodes],
        },
        "edges": {"nodes": [[e.first, e.second] for e in task.edges], "costs": [e.costs for e in task.edges]},
    }
    if task.limit is not None:
        body["usage_limit"] = task.limit
    path = folder / "problem.json"
    path.write_text(json.dumps({"problem": body}))
    return path


def test_the_shell_prints_the_fields_of_every_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = next(problem(seed) for seed in range(100) if best(problem(seed)) is not None)
    path = as_file(task, tmp_path)
    assert pair_problem(json.loads(path.read_text()), "it") == task
    assert main(["allocate", str(path), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    fields = {"status", "objective", "cost", "bound", "gap", "limit", "budgets", "totals", "choices", "prices"}
    assert set(made) == fields | {"reasons", "seconds", "solver", "table_digest"}
    assert made["status"] == "optimal" and made["cost"] == made["bound"] == best(task)
    chosen = [made["choices"][str(i)] for i in range(len(task.nodes))]
    assert value_of(task, chosen) == (made["cost"], made["totals"]["peak_bytes"])
    assert main(["allocate", str(path)]) == 0 and "optimal: least cost" in capsys.readouterr().out
    assert main(["allocate", str(path), "--loss", "1"]) == 2 and "--loss" in capsys.readouterr().err


def test_an_impossible_problem_exits_with_3(tmp_path: Path) -> None:
    nodes = (Node((1, 2), (5, 6), 0, 2), Node((0,), (7,), 1, 3))
    assert main(["allocate", str(as_file(PairProblem("", nodes, (), 11), tmp_path))]) == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nodes": None}, "nodes is missing"),
        ({"usage_limit": -1}, "usage_limit"),
        ({"usage_limit": 2.5}, "usage_limit"),
        ({"edges": {"nodes": [[0, 2]], "costs": [[0] * 4]}}, "edge 0 must join"),
        ({"edges": {"nodes": [[0, 1]], "costs": [[0] * 3]}}, "edge 0 has 3 costs for 4"),
        ({"edges": {"nodes": [[0, 1]], "costs": []}}, "1 pairs of nodes and 0 tables"),
        ({"edges": {"nodes": [[0, 1]], "costs": [[0, 1, 2, float("nan")]]}}, "edge 0"),
        ({"edges": 3}, "edges"),
        ({"nodes": {"intervals": [[0, 1]], "costs": [[]], "usages": [[]]}}, "node 0"),
        ({"nodes": {"intervals": [[0]], "costs": [[1]], "usages": [[1]]}}, "node 0"),
        ({"nodes": {"intervals": [[0, 1]], "costs": [[1, 2]], "usages": [[1]]}}, "node 0"),
        ({"nodes": {"intervals": [[0, 1]], "costs": [["x"]], "usages": [[1]]}}, "node 0, costs"),
    ],
)
def test_a_malformed_problem_gets_one_sentence(change: dict[str, object], text: str, tmp_path: Path) -> None:
    body: dict[str, object] = {
        "nodes": {"intervals": [[0, 1], [0, 2]], "costs": [[1, 2], [3, 4]], "usages": [[1, 1], [2, 2]]},
        "edges": {"nodes": [[0, 1]], "costs": [[0, 1, 2, 3]]},
        "usage_limit": 5,
    }
    assert pair_problem({"problem": body}, "it").limit == 5
    with pytest.raises(TableError, match=text) as caught:
        pair_problem({"problem": {**body, **change}}, "it.json")
    assert str(caught.value).startswith("it.json") and "\n" not in str(caught.value)


def test_an_empty_problem_and_one_without_edges() -> None:
    assert answer(PairProblem("", (), ())).cost == 0
    assert answer(PairProblem("", (Node((3, 2), (0, 0), 0, 0),), ())).cost == 2
