"""Options are checked before anything runs, with the key, the value and the way out in the message."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaflex.errors import OptionError
from adaflex.options import Amount, Options, parse


def test_amounts_are_exact() -> None:
    assert parse({"memory": "120MiB"}).memory == Amount(120 * 2**20)
    assert parse({"memory": "120MB"}).memory == Amount(120 * 10**6)
    assert parse({"memory": 4096}).memory == Amount(4096)
    assert parse({"latency": "8ms"}).latency == Amount(8_000_000)
    assert parse({"latency": 0.5}).latency == Amount(500_000_000)
    assert parse({"memory": "9007199254740993"}).memory == Amount(9007199254740993)
    half = parse({"memory": "0.5x"}).memory
    assert half is not None and half.resolve(101) == 50


def test_defaults() -> None:
    assert parse(None) == Options()
    assert parse({"memory": None}) == Options()
    assert parse({}, on_broken="warn").on_broken == "warn"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memroy": 1}, ["memroy", "memory"]),
        ({"memory": "12 mib"}, ["memory", "mib", "MiB"]),
        ({"memory": "lots"}, ["memory", "lots", "120MiB"]),
        ({"memory": -1}, ["memory", "-1"]),
        ({"memory": math.nan}, ["memory", "nan"]),
        ({"memory": True}, ["memory", "True"]),
        ({"latency": "3 furlongs"}, ["latency", "furlongs"]),
        ({"loss": -0.1}, ["loss", "-0.1"]),
        ({"loss": "small"}, ["loss", "small"]),
        ({"bits": 0}, ["bits", "0"]),
        ({"threads": 0}, ["threads", "0"]),
        ({"threads": 1.5}, ["threads", "1.5"]),
        ({"axes": ["precison"]}, ["axes", "precison", "precision"]),
        ({"pin": [("a",)]}, ["pin", "pattern"]),
        ({"pin": [("re:(", "bf16")]}, ["pin", "re:("]),
        ({"objective": "speed"}, ["objective", "speed", "latency"]),
        ({"loss_fn": "mse"}, ["loss_fn", "mse"]),
        ({"report": 3}, ["report", "3"]),
        ({"device": "tpu"}, ["device", "tpu"]),
        ({"strict": "yes"}, ["strict", "yes"]),
        ({"tiers": [1]}, ["tiers"]),
    ],
)
def test_bad_options_say_what_and_how(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        parse(options)
    for word in words:
        assert word in str(caught.value)


@given(st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.booleans()))
def test_any_memory_is_an_amount_or_an_option_error(value: object) -> None:
    try:
        memory = parse({"memory": value}).memory
    except OptionError:
        return
    assert memory is None or (memory.count or 0) >= 0
