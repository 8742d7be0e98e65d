"""Greedy packings are valid, pins and aliases hold, and an impossible capacity names the buffers."""

import random

import pytest

from adaflex.errors import TableError
from adaflex.solver.pack.greedy import pack
from adaflex.solver.pack.validate import validate
from adaflex.solver.table import Buffer


def random_buffers(seed: int) -> list[Buffer]:
    rng = random.Random(seed)
    found = []
    for i in range(rng.randint(1, 30)):
        first = rng.randint(-3, 12)
        end = first + rng.randint(0, 8)
        gaps = ((first + 1, first + 2),) if end > first + 3 and rng.random() < 0.3 else ()
        alignment = rng.choice([1, 1, 2, 4])
        alias = f"b{rng.randrange(i)}" if i and rng.random() < 0.1 else ""
        found.append(Buffer(f"b{i}", rng.randint(0, 40), first, end, alignment, gaps, alias=alias))
    return found


@pytest.mark.parametrize("seed", range(150))
def test_greedy_is_valid(seed: int) -> None:
    buffers = random_buffers(seed)
    apart = [(buffers[0].id, buffers[-1].id)] if len(buffers) > 1 and not any(b.alias for b in buffers) else []
    packing = pack(buffers, alignment=random.Random(seed).choice([1, 8]), separate=apart)
    assert not validate(buffers, dict(packing.offsets), capacity=packing.height, separate=apart)
    assert packing.bound <= packing.height <= sum(b.size_bytes + 8 for b in buffers)
    assert packing.status in ("packed", "optimal")
    pinned = [
        b if i else Buffer(b.id, b.size_bytes, b.first, b.end, 1, b.gaps, packing.offset_of(b.id), b.alias)
        for i, b in enumerate(buffers)
    ]
    again = pack(pinned)
    assert again.offset_of(buffers[0].id) == packing.offset_of(buffers[0].id)
    assert not validate(pinned, dict(again.offsets))


def test_too_small_a_capacity_is_proven() -> None:
    packing = pack([Buffer("a", 10, 0, 2), Buffer("b", 20, 1, 3), Buffer("c", 5, 2, 3)], capacity=29)
    assert packing.status == "infeasible" and packing.blame == ("b", "a")
    assert "1 more than 29" in packing.reason and not packing.offsets


@pytest.mark.parametrize(
    "buffer", [Buffer("a", -1, 0, 1), Buffer("a", 1, 2, 1), Buffer("a", 1, 0, 1, 0), Buffer("a", 1, 0, 1, offset=-4)]
)
def test_nonsense_is_refused(buffer: Buffer) -> None:
    with pytest.raises(TableError, match="buffer 'a'"):
        pack([buffer])


def test_every_fault_of_a_packing_is_named() -> None:
    buffers = [
        Buffer("a", 8, 0, 4, alignment=4), Buffer("b", 8, 2, 6, offset=16), Buffer("c", 4, 4, 6, alias="a"),
        Buffer("d", 4, 0, 9), Buffer("e", 4, 5, 9),
    ]  # fmt: skip
    offsets = {"a": 2, "b": 8, "c": 24, "d": -4, "x": 0}
    faults = validate(buffers, offsets, capacity=20, separate=[("a", "b"), ("a", "e")])
    kinds = {fault.kind for fault in faults}
    assert kinds == {
        "unknown",
        "missing",
        "misaligned",
        "negative",
        "capacity",
        "moved pin",
        "alias",
        "overlap",
        "separation",
    }
    assert all(fault.text and fault.buffers for fault in faults)
    rest = [Buffer("a", 8, 0, 4), Buffer("b", 8, 3, 6), Buffer("c", 8, 3, 6)]
    assert not validate(rest, {"a": 0, "b": 0, "c": 8}, in_place=[("a", "b")])
    assert [f.kind for f in validate(rest, {"a": 0, "b": 0, "c": 4}, in_place=[("a", "b"), ("a", "c")])].count(
        "overlap"
    ) == 2
