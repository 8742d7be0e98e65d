"""One call for few plain buffers: as low as the orders tried one by one, valid, and only where buffers are plain."""

import random
from dataclasses import replace

import pytest

from adaflex.errors import TableError
from adaflex.solver.pack import search as search_file
from adaflex.solver.pack.at_once import MOST, pack_at_once
from adaflex.solver.pack.generate import guillotine, lives
from adaflex.solver.pack.library import library
from adaflex.solver.pack.parts import components
from adaflex.solver.pack.problem import problem
from adaflex.solver.pack.validate import validate
from adaflex.solver.table import Buffer

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler here")


def some_buffers(seed: int) -> list[Buffer]:
    """Random lives with holes between them, some without size or life."""
    rng = random.Random(seed)
    found = []
    for i in range(rng.randint(1, 60)):
        first = rng.choice([0, 100, 10**12]) + rng.randint(-20, 20)
        found.append(Buffer(f"b{i}", rng.randint(0, 40), first, first + rng.randint(0, 12)))
    return found


@pytest.mark.parametrize("alignment", [1, 8])
def test_as_low_as_orders_one_by_one(alignment: int) -> None:
    for seed in range(60):
        buffers = some_buffers(seed) if seed % 3 else lives(50 + 3 * seed, 12, seed)
        made = pack_at_once(buffers, None, alignment)
        task = problem(buffers, alignment=alignment)
        assert made is not None and made.bound == task.lower_bound
        trials = search_file.quick_trials(task, search_file.engine(task, True), made.bound)
        found, _ = search_file.quick(task, trials, components(task), made.bound)
        assert found is not None and found.height == made.height
        offsets = dict(zip(made.ids, made.places, strict=True))
        assert not validate(buffers, offsets, capacity=made.height, alignment=alignment)


def test_it_ends_with_the_first_order_that_does() -> None:
    buffers = lives(200, 15, 0)
    best = pack_at_once(buffers, None, 1)
    assert best is not None
    loose = pack_at_once(buffers, 2 * best.height, 1)
    assert loose is not None and best.height < loose.height <= 2 * best.height
    made = search_file.pack(buffers, capacity=best.height)
    assert (made.status, made.height, made.bound) == ("fits", best.height, best.bound)
    assert dict(made.offsets) == dict(zip(best.ids, best.places, strict=True))
    assert pack_at_once(buffers, best.bound - 1, 1) is None
    assert search_file.pack(buffers, capacity=best.bound - 1).status == "infeasible"


@pytest.mark.parametrize(
    "change",
    [
        {"gaps": ((0, 0),)}, {"offset": 0}, {"alias": "b1"}, {"id": "b1"}, {"alignment": 4}, {"size_bytes": -1},
        {"size_bytes": 1 << 60}, {"size_bytes": 1 << 70}, {"end": -1}, {"end": 1 << 60}, {"size_bytes": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_plain_is_left_to_others(change: dict[str, object]) -> None:
    buffers = [replace(b, size_bytes=64, first=0, end=9) for b in guillotine(5, 0)]
    buffers = [replace(b, id=f"b{i}") for i, b in enumerate(buffers)]
    assert pack_at_once(buffers, None, 1) is not None
    assert pack_at_once([replace(buffers[0], **change), *buffers[1:]], None, 1) is None  # type: ignore[arg-type]


def test_alignments_of_one_kind_are_plain() -> None:
    buffers = [Buffer(f"b{i}", 10, 0, 4, alignment=8) for i in range(3)]
    for one, other in ((8, 1), (8, 8), (1, 8)):
        made = pack_at_once([replace(b, alignment=one) for b in buffers], None, other)
        assert made is not None and made.height == 42
    assert pack_at_once(buffers, None, 12) is None
    with pytest.raises(TableError, match="alignment is 0"):
        search_file.pack(buffers, alignment=0)
    huge = [Buffer(f"b{i}", (1 << 60) - 1, 0, 1) for i in range(4)]
    assert pack_at_once(huge, None, 1) is None
    assert pack_at_once([], None, 1) is None
    assert pack_at_once([Buffer(str(i), 1, 0, 1) for i in range(MOST + 1)], None, 1) is None
