"""The memory planner's files and shell: good ones answered, malformed ones refused in one sentence."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaflex.cli import main
from adaflex.errors import TableError
from adaflex.solver.memplan import MemoryProblem, Space, buffers_from_csv, pack_problem, pack_spaces
from adaflex.solver.pack.files import offsets_from_csv, problem_from_json, solution_csv
from adaflex.solver.table import Buffer

GOOD = "id,lower,upper,size\na,0,3,4\nb,3,9,4\nc,0,9,4\nd,9,21,4\ne,0,21,4\n"


def test_csv_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, picture = tmp_path / "p.csv", tmp_path / "o.csv", tmp_path / "p.svg"
    source.write_text(GOOD)
    assert main(["memplan", str(source), "--capacity", "12", "--output", str(out), "--plot", str(picture)]) == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "id,lower,upper,size,offset" and [line.split(",")[0] for line in lines[1:]] == list("abcde")
    assert picture.read_text().startswith("<svg") and "capacity 12 bytes" in picture.read_text()
    assert main(["memplan", "check", str(source), str(out), "--capacity", "12"]) == 0
    assert main(["memplan", "check", str(source), str(out), "--capacity", "11", "--json"]) == 3
    faults = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not faults["valid"] and faults["faults"][0]["kind"] == "capacity"


def test_shell_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "p.csv"
    source.write_text(GOOD)
    assert main(["memplan", str(source), "--capacity", "11", "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "infeasible" and set(answer["blame"]) == {"a", "c", "e"}
    assert main(["memplan", str(source), str(source), "--minimise"]) == 0
    assert capsys.readouterr().out.count("optimal") == 2
    assert main(["memplan", str(source), "--minimise", "--capacity", "11"]) == 3
    assert main(["memplan", str(source), "--capacity", "64 parsecs"]) == 2
    assert "64 parsecs" in capsys.readouterr().err
    assert main(["memplan", str(source), str(source), "--output", "x"]) == 2
    assert main(["memplan", "check", str(source)]) == 2
    assert main(["memplan", str(source), "--time-limit", "0"]) == 2
    assert main(["memplan", str(tmp_path / "none.csv")]) == 2


def test_optional_columns_and_old_header() -> None:
    text = "\ufeffid,start,end,size,alignment,gaps,offset,hint\r\nx,0,9,10,8,2-4 6-7,16,0\r\ny,1,2,3,,,,\r\n"
    first, second = buffers_from_csv(text.encode())
    assert first == Buffer("x", 10, 0, 10, 8, ((2, 4), (6, 7)), 16, hint=0)
    assert second == Buffer("y", 3, 1, 3)
    again = solution_csv(text.encode(), {"x": 16, "y": 0})
    assert again.splitlines()[1].startswith("x,0,9,10,8,2-4 6-7,16,0") and again.splitlines()[2] == "y,1,2,3,,,0,"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("id,lower,size\n", "column 'upper' is missing"),
        ("id,id,lower,upper,size\n", "twice in the header"),
        ("id,lower,upper,size\na,0,1\n", "line 2: 3 cells for 4"),
        ("id,lower,upper,size\na,0,1,-5\n", "line 2: buffer 'a' has size -5"),
        ("id,lower,upper,size\na,5,1,5\n", "line 2: buffer 'a' ends at 1 before"),
        ("id,lower,upper,size\na,0,1,5\na,0,1,5\n", "line 3: id 'a' stands twice"),
        ("id,lower,upper,size\na,0,1,NaN\n", "line 2: size is 'NaN'"),
        ("id,lower,upper,size\na,0,1,1e9\n", "whole number"),
        (f"id,lower,upper,size\na,0,1,{'9' * 5000}\n", "5000 digits"),
        (f"id,lower,upper,size\na,0,1,{1 << 60}\n", "below 2**60"),
        ("id,lower,upper,size,gaps\na,0,9,5,1-2@3:4\n", "address windows"),
        ("id,lower,upper,size,gaps\na,0,9,5,1-20\n", "outside its life"),
        ("id,lower,upper,size,offset,alignment\na,0,9,5,3,2\n", "no multiple"),
        ("id,lower,upper,size\n\xff,0,1,5\n", "not UTF-8"),
        ('id,lower,upper,size\n"a,0,1,5\n', "line 2"),
    ],
)
def test_malformed_csv_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(TableError) as caught:
        buffers_from_csv(text.encode("latin-1" if "\xff" in text else "utf-8"), "p.csv")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["id,x\na,1\n", "", "id,offset\na,1,2\n", "id,offset\na,1\na,2\n", "id,offset\na,x\n"])
def test_malformed_solutions_are_refused(text: str) -> None:
    with pytest.raises(TableError):
        offsets_from_csv(text.encode())


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text('id,lowerupsz\n0123456789-"é ', max_size=120).map(str.encode))
def test_no_csv_crashes(raw: bytes) -> None:
    try:
        buffers_from_csv(b"id,lower,upper,size\n" + raw)
    except TableError as fault:
        assert "\n" not in str(fault)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), st.lists, max_leaves=5)
)
def test_no_json_crashes(value: object) -> None:
    for body in (value, {"buffers": value}, {"buffers": [value]}, {"buffers": [{"id": value, "size_bytes": value}]}):
        try:
            problem_from_json(json.dumps(body).encode(), "p.json")
        except TableError as fault:
            assert "\n" not in str(fault)


def test_spaces_in_order_of_preference() -> None:
    buffers = [Buffer("hot", 60, 0, 100), Buffer("cold", 60, 0, 2), Buffer("wide", 300, 0, 2, spaces=("slow",))]
    spaces = [Space("fast", 100), Space("slow", 400)]
    made = pack_spaces(buffers, spaces)
    assert made.status == "fits" and dict(made.spaces) == {"hot": "fast", "cold": "slow", "wide": "slow"}
    assert pack_spaces([Buffer("big", 500, 0, 1)], spaces).status == "infeasible"
    assert pack_spaces([Buffer(f"b{i}", 90, 0, 1) for i in range(9)], spaces).status == "infeasible"
    with pytest.raises(TableError, match="unknown space"):
        pack_spaces([Buffer("a", 1, 0, 1, spaces=("none",))], spaces)
    one = pack_problem(MemoryProblem((Buffer("a", 5, 0, 1), Buffer("b", 5, 0, 1)), spaces=(Space("only", 9),)))
    assert one.status == "infeasible"


def test_json_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"buffers": [{"id": "a", "size_bytes": 4, "first": 0, "end": 2}], "capacity_bytes": 4}))
    assert main(["memplan", str(path), "--output", str(tmp_path / "o.csv")]) == 0
    assert (tmp_path / "o.csv").read_text().splitlines()[1] == "a,0,2,4,0"
    path.write_text("[" * 100_000)
    assert main(["memplan", str(path)]) == 2
    assert "nested too deeply" in capsys.readouterr().err


def test_a_short_time_limit_is_kept() -> None:
    from adaflex.solver.pack.generate import lives
    from adaflex.solver.pack.search import pack

    buffers = lives(20_000, 50, 0)
    begin = time.process_time()
    made = pack(buffers, time_limit_s=1.0)
    assert made.offsets and time.process_time() - begin < 4.0
