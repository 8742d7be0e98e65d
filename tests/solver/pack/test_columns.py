"""Columns are what buffers say; a large plain CSV is read as a small one is; a million buffers keep a second."""

import random
import time
from dataclasses import replace

import numpy as np
import pytest

from adaflex.errors import TableError
from adaflex.solver.memplan import MemoryProblem, buffers_from_csv, pack_problem
from adaflex.solver.pack import files
from adaflex.solver.pack import problem as problem_file
from adaflex.solver.pack.columns import BufferTable, columns
from adaflex.solver.pack.generate import lives
from adaflex.solver.pack.library import library
from adaflex.solver.pack.problem import busiest, live_sums, problem
from adaflex.solver.pack.search import engine, pack
from adaflex.solver.pack.validate import validate
from adaflex.solver.table import Buffer

needs_compiler = pytest.mark.skipif(library() is None, reason="no C++ compiler here")


def csv_of(buffers: list[Buffer], header: str = "id,lower,upper,size") -> bytes:
    rows = (f"{b.id},{b.first},{b.end},{b.size_bytes}" + "," * (header.count(",") - 3) for b in buffers)
    return (header + "\n" + "\n".join(rows) + "\n").encode()


@needs_compiler
@pytest.mark.parametrize("header", ["id,lower,upper,size", "id,lower,upper,size,gaps,note", "id,start,end,size"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_a_large_csv_is_read_as_a_small_one(monkeypatch: pytest.MonkeyPatch, header: str, line: str) -> None:
    text = csv_of(lives(300, 9, 1), header).replace(b"\n", line.encode())
    small = buffers_from_csv(text)
    monkeypatch.setattr(files, "MUCH", 0)
    large = buffers_from_csv(text)
    assert isinstance(large, BufferTable) and not isinstance(small, BufferTable)
    assert list(large) == list(small) and large[3] == small[3] and list(large[5:9]) == list(small[5:9])
    assert pack(large, time_limit_s=5, node_limit=5000).offsets == pack(small, time_limit_s=5, node_limit=5000).offsets
    assert pack_problem(MemoryProblem(large), time_limit_s=5).height >= max(b.size_bytes for b in small)


@pytest.mark.parametrize(
    "row",
    ['"x",0,1,5', "x,0,1", "x,0,1,5,6", "x,0,1,", "x,0,1,1e3", "x, 0,1,5", "x,0,1,-5", "x,3,1,5", "b1,0,1,5", ",0,1,5",
     "é,0,1,5", "x,0,1,99999999999999999999", "x,-,1,5"],
)  # fmt: skip
def test_what_is_not_plain_is_read_or_refused_as_ever(monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    text = csv_of(lives(20, 3, 0)) + row.encode() + b"\n"
    answers = []
    for much in (0, 1 << 40):
        monkeypatch.setattr(files, "MUCH", much)
        try:
            answers.append(str(list(buffers_from_csv(text))))
        except TableError as fault:
            answers.append(str(fault))
    assert answers[0] == answers[1]


@needs_compiler
def test_sections_by_the_core_and_by_numpy_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    for spread in (5, 300, 10**9):
        spans = [(a, a + rng.randint(1, 9)) for a in (rng.randint(-spread, spread) for _ in range(200))]
        first, end = (np.array(column, dtype=np.int64) for column in zip(*spans, strict=True))
        found = []
        for much in (1 << 30, 0):
            monkeypatch.setattr(problem_file, "MUCH", much)
            found.append([part.tolist() for part in problem_file.sections_of(first, end)])
        assert found[0] == found[1]
        times, low, high = found[0]
        assert [(times[a], times[b]) for a, b in zip(low, high, strict=True)] == spans


def test_the_busiest_step_of_a_life() -> None:
    buffers = [replace(b, gaps=((b.first + 1, b.first + 3),)) if b.end > b.first + 5 else b for b in lives(200, 20, 2)]
    task = problem(buffers)
    sums = live_sums(task)
    wanted = [max((int(sums[a:b].max()) for a, b in spans), default=0) for spans in task.spans]
    assert busiest(task, sums).tolist() == wanted


@pytest.mark.parametrize(
    ("buffers", "said"),
    [
        ([Buffer("a", 1 << 70, 0, 1)], "below 2**60"),
        ([Buffer("a", 1, 0, 1), Buffer("a", 1, 0, 1)], "stands twice"),
        ([Buffer(f"b{i}", (1 << 60) - 1, i, i + 1) for i in range(9)], "2**61"),
        ([Buffer("a", 1, 0, 1, offset=-1)], "pinned at -1"),
        ([Buffer("a", 1, 0, 1, offset=1 << 80)], "pinned at"),
        ([Buffer("a", 1, 0, 1, alignment=1 << 65)], "alignment"),
        ([Buffer("a", 1, 0, 1, alignment=3, offset=3), Buffer("b", 1, 0, 1, alignment=2, alias="a")], "no multiple"),
    ],
)
def test_numbers_too_large_are_refused(buffers: list[Buffer], said: str) -> None:
    with pytest.raises(TableError) as caught:
        problem(buffers)
    assert said in str(caught.value)
    assert len(columns([]).ids) == 0


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_a_sweep_over_time_is_valid(native: bool, kind: str) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        buffers = lives(150, 30, seed)
        separate = []
        if kind == "rich":
            buffers = [replace(b, alignment=rng.choice([1, 48]), gaps=((b.first, b.first + 1),)) for b in buffers]
            buffers[7] = replace(buffers[7], offset=48 * 9)
            separate = [("b3", "b140"), ("b7", "b99")]
        task = problem(buffers, separate=separate)
        places = engine(task, native).sweep()
        offsets = dict(problem_file.offsets_of(task, places))
        assert not validate(buffers, offsets, separate=separate)


@needs_compiler
def test_a_million_buffers_keep_a_second() -> None:
    table = BufferTable(
        [f"b{i}" for i in range(10**6)], *(np.arange(10**6) % 977 + 1, np.arange(10**6), np.arange(10**6) + 50)
    )
    begin = time.process_time()
    made = pack(table, time_limit_s=1.0)
    assert len(made.offsets) == 10**6 and made.bound <= made.height
    assert time.process_time() - begin < 2.5  # half a second over, and the same again for a busy machine
