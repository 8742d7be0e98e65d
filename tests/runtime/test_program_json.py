"""Any program survives the way through JSON exactly; what breaks the schema is refused with the place it stands at."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaflex.errors import ArtifactError
from adaflex.runtime.artifact_json import depth, dumps, loads
from adaflex.runtime.program import (
    WINDOW_KINDS,
    Argument,
    AttentionStep,
    Constant,
    GemmStep,
    LibraryStep,
    Loop,
    Operand,
    Part,
    Phase,
    Program,
    RowStep,
    Segment,
    Slot,
    WindowStep,
)
from adaflex.runtime.program_json import ARGUMENTS, KINDS, OPS, WINDOWS, from_plain, to_plain
from adaflex.runtime.region import OPERATORS, Load, Op, Region, Store
from tests.runtime.sample import program as sample_program

INT64 = st.integers(-(2**63), 2**63 - 1)
INDEX = st.integers(0, 4000)
SLOT_OR_NONE = st.integers(-1, 4000)
TEXT = st.text(max_size=12)
POSITIVE = st.integers(1, 10**6)
OFFSET = st.integers(0, 2**50)


def tuples(of: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[Any]:
    return st.lists(of, max_size=most).map(tuple)


def sizes(low: int = -(2**63)) -> st.SearchStrategy[Any]:
    # divisors that are numbers must be above zero, so all numbers inside are
    inner = st.one_of(POSITIVE, st.sampled_from(["s0", "s1"]))
    nested = st.recursive(
        inner,
        lambda part: (
            st.tuples(st.sampled_from(sorted(OPERATORS)), part, part) | st.tuples(st.just("+"), part, part, part)
        ),
    )
    return st.one_of(st.integers(low, 2**63 - 1), nested)


SIZE, COUNT = sizes(), sizes(0)
LOADS = st.builds(
    Load,
    INDEX,
    tuples(SIZE),
    SIZE,
    SIZE,
    SIZE,
    gather=st.integers(-1, 99),
    pitch=SIZE,
    form=st.sampled_from(["", "f32", "u8"]),
)
OPS_ = st.builds(Op, st.sampled_from(sorted(OPS)), tuples(INDEX), st.floats())
REGIONS = st.builds(
    Region, tuples(COUNT), COUNT, tuples(LOADS), tuples(OPS_), tuples(st.builds(Store, INDEX, INDEX)), COUNT
)
OPERANDS = st.builds(Operand, INDEX, tuples(SIZE, 4), SIZE)
ARGUMENT = st.deferred(
    lambda: st.builds(
        Argument,
        st.sampled_from(ARGUMENTS),
        slot=SLOT_OR_NONE,
        number=st.floats(),
        size=SIZE,
        text=TEXT,
        items=tuples(ARGUMENT, 2),
        view=st.none() | OPERANDS,
        shape=tuples(COUNT),
    )
)
PAIRS = st.tuples(st.integers(1, 9), st.integers(1, 9))
STEPS = st.one_of(
    st.builds(RowStep, REGIONS, TEXT),
    st.builds(
        GemmStep, INDEX, INDEX, TEXT, TEXT, tuples(st.builds(Part, TEXT, OFFSET)), POSITIVE, POSITIVE, REGIONS, TEXT
    ),
    st.builds(
        AttentionStep,
        *[OPERANDS] * 3,
        st.none() | OPERANDS,
        OPERANDS,
        *[COUNT] * 5,
        POSITIVE,
        st.floats(),
        st.booleans(),
        st.booleans(),
        TEXT,
    ),
    st.builds(
        WindowStep,
        st.sampled_from(WINDOW_KINDS),
        OPERANDS,
        SLOT_OR_NONE,
        INDEX,
        *[COUNT] * 3,
        POSITIVE,
        *[PAIRS, PAIRS, st.tuples(*[st.integers(0, 9)] * 4), PAIRS],
        TEXT,
    ),
    st.builds(LibraryStep, TEXT, tuples(ARGUMENT), tuples(st.tuples(TEXT, ARGUMENT)), tuples(SLOT_OR_NONE), TEXT),
)
SLOTS = st.builds(
    Slot,
    st.sampled_from(KINDS),
    TEXT,
    COUNT,
    COUNT,
    COUNT,
    tuples(COUNT),
    st.sampled_from(WINDOWS),
    st.integers(-1, 9),
    st.booleans(),
)
SEGMENTS = st.builds(
    Segment, COUNT, tuples(st.builds(Phase, tuples(st.builds(Loop, tuples(INDEX), COUNT, st.integers(0, 64)))))
)
PROGRAMS = st.builds(
    Program,
    tuples(TEXT),
    tuples(st.tuples(st.integers(-1, 9), st.integers(-1, 9))),
    tuples(SLOT_OR_NONE),
    tuples(TEXT),
    tuples(INDEX),
    tuples(SLOTS),
    tuples(st.builds(Constant, TEXT, OFFSET, OFFSET, TEXT, tuples(OFFSET), TEXT, TEXT)),
    tuples(STEPS),
    tuples(st.one_of(INDEX, SEGMENTS)),
    tuples(st.tuples(INT64, INT64)),
    tuples(INT64),
    TEXT,
    tuples(st.tuples(TEXT, TEXT)),
)


@given(PROGRAMS)
@settings(max_examples=200, deadline=None)
def test_any_program_comes_back_exactly(program: Program) -> None:
    raw = dumps(to_plain(program), "program")
    back = from_plain(loads(raw, "program"))
    assert repr(back) == repr(program)  # repr: nan equals itself, -0.0 is not 0.0, True is not 1
    assert dumps(to_plain(back), "program") == raw


def test_defaults_are_left_out_and_bytes_do_not_depend_on_order() -> None:
    plain = to_plain(sample_program())
    assert "window" not in plain["slots"][0]
    turned = json.loads(json.dumps(plain), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert dumps(turned, "x") == dumps(plain, "x")


BAD: dict[str, tuple[Any, Any]] = {
    "unknown key": (lambda p: p["slots"][0].update(color=1), "unknown key 'color'"),
    "missing key": (lambda p: p["slots"][0].pop("rows"), "lacks the key 'rows'"),
    "bool for int": (lambda p: p["steps"][0].update(k=True), "steps[0].k is True"),
    "float for int": (lambda p: p["slots"][0].update(columns=8.0), "slots[0].columns"),
    "int for float": (lambda p: p["steps"][1].update(scale=1), "scale is 1"),
    "text for list": (lambda p: p.update(outputs="56"), "program.outputs"),
    "beyond int64": (lambda p: p["constants"][0].update(offset=2**63), "offset"),
    "negative length": (lambda p: p["constants"][0].update(size_bytes=-1), "size_bytes is -1"),
    "negative size": (lambda p: p["slots"][0].update(rows=-1), "rows is -1"),
    "NaN size": (lambda p: p["slots"][0].update(rows="nan()"), "rows is 'nan()'"),
    "unknown operator": (lambda p: p["slots"][0].update(rows=["**", 2, 3]), "'**'"),
    "division by zero": (lambda p: p["slots"][0].update(rows=["//", "s0", 0]), "divisor"),
    "one operand": (lambda p: p["slots"][0].update(rows=["*", 2]), "a size"),
    "unknown op": (lambda p: p["steps"][2]["region"]["ops"][0].update(name="system"), "'system'"),
    "unknown step": (lambda p: p["steps"][0].update(step="python"), "'python'"),
    "unknown kind": (lambda p: p["slots"][0].update(kind="file"), "'file'"),
    "slot beyond limit": (lambda p: p["steps"][0].update(a=4096), "a is 4096"),
    "null": (lambda p: p.update(slots=None), "program.slots is None"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_the_schema_is_refused_by_name(name: str) -> None:
    change, message = BAD[name]
    plain = json.loads(json.dumps(to_plain(sample_program())))
    change(plain)
    with pytest.raises(ArtifactError) as caught:
        from_plain(plain)
    assert message in str(caught.value)


def test_nested_sizes_end_somewhere() -> None:
    plain = json.loads(json.dumps(to_plain(sample_program())))
    nested: Any = "s0"
    for _ in range(60):
        nested = ["+", nested, 1]
    plain["slots"][0]["rows"] = nested
    with pytest.raises(ArtifactError, match="a size"):
        from_plain(plain)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":2}',
        b"[NaN]",
        b"[Infinity]",
        b"[1",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b"1" * 9999,
    ],
)
def test_hostile_json_is_refused(raw: bytes) -> None:
    with pytest.raises(ArtifactError):
        loads(raw, "header")


@given(
    st.recursive(
        st.text() | st.integers() | st.booleans(), lambda part: st.lists(part) | st.dictionaries(st.text(), part)
    )
)
@settings(max_examples=100, deadline=None)
def test_depth_is_found_without_parsing(value: Any) -> None:
    def deep(given: Any) -> int:
        if isinstance(given, dict):
            given = list(given.values())
        return 1 + max(map(deep, given), default=0) if isinstance(given, list) else 0

    assert depth(json.dumps(value).encode()) == deep(value)


def test_what_json_cannot_hold_is_not_written() -> None:
    for value in (math.nan, {1, 2}, b"x", object()):
        with pytest.raises(ArtifactError, match="cannot be saved"):
            dumps({"x": value}, "the manifest")
