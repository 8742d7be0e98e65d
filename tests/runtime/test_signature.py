"""How a program takes the model's arguments and gives back what the model returned, saved and loaded too."""

import collections
import dataclasses
import json
from typing import Any

import pytest

from adaflex.errors import ArtifactError, OptionError
from adaflex.runtime.signature import Leaf, Signature, structure


@dataclasses.dataclass
class Result:
    zebra: Any
    apple: Any


Pair = collections.namedtuple("Pair", "left right")


def again(signature: Signature) -> Signature:
    """Through JSON as an artifact's manifest stores it: with sorted keys."""
    return Signature.from_json(json.loads(json.dumps(signature.to_json(), sort_keys=True)))


def test_outputs_keep_their_order_and_their_names() -> None:
    returned = {"z": Leaf(0), "a": [Leaf(1), None, 3], 7: Result(Leaf(2), Pair(Leaf(3), "x"))}
    signature = again(Signature((), structure(returned)))
    found = signature.restore(["t0", "t1", "t2", "t3"])
    assert list(found) == ["z", "a", 7] and found["a"] == ["t1", None, 3]
    record = found[7]
    assert record.zebra == record[0] == record["zebra"] == "t2" and list(record) == ["zebra", "apple"]
    assert record.apple.left == record[1][0] == "t3" and record.apple.right == "x"
    with pytest.raises(AttributeError, match="no 'logits'; it has zebra, apple"):
        _ = record.logits


NAMES = ("x", "flag", "mask", "y")
FIXED = ((("flag",), True, True), (("mask",), None, False))
SKIPPING = Signature((("x",), ("y",)), {"leaf": 0}, 0, NAMES, FIXED)


def test_arguments_that_are_no_tensors_are_skipped_over() -> None:
    for signature in (SKIPPING, again(SKIPPING)):
        assert signature.bind((1, True, None, 2), {}) == [1, 2]
        assert signature.bind((1, True), {"y": 2}) == [1, 2]


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((1, False, None, 2), {}, "'flag' is False; this program was made for True"),
        ((1, 1, None, 2), {}, "'flag' is 1; this program was made for True"),
        ((1,), {"y": 2}, "'flag' is missing"),
        ((1, True, "m", 2), {}, "'mask' is 'm'; this program was made for None"),
        ((1, True), {}, "'y' is missing"),
        ((1, True), {"y": 2, "z": 3}, "'z' is not one"),
        ((1, True, None, 2, 5), {}, "5 positional"),
    ],
)
def test_other_arguments_are_refused(args: tuple[Any, ...], kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        SKIPPING.bind(args, kwargs)


def test_any_number_of_arguments() -> None:
    signature = again(Signature((("a",), ("xs", 0), ("xs", 1)), {"leaf": 0}, 0, ("a", "*xs")))
    assert signature.bind((1, 2, 3), {}) == [1, 2, 3]
    with pytest.raises(OptionError, match=r"xs\.1"):
        signature.bind((1, 2), {})


@pytest.mark.parametrize(
    "field", [{"names": [1]}, {"fixed": [[[], 1, True]]}, {"fixed": [[["a"], [], True]]}, {"x": 1}]
)
def test_a_damaged_signature_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="signature"):
        Signature.from_json({**SKIPPING.to_json(), **field})


def test_a_field_that_is_no_name_is_refused() -> None:
    with pytest.raises(ArtifactError, match="signature"):
        Signature.from_json({**SKIPPING.to_json(), "outputs": {"named": [["a=print(1)", {"leaf": 0}]]}})
