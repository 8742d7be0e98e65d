"""Packing outward from the fullest step: valid, repeatable, near the bound, and only where it applies."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from adaflex.solver.pack.core import Core
from adaflex.solver.pack.generate import lives
from adaflex.solver.pack.greedy import pack as greedy
from adaflex.solver.pack.library import library
from adaflex.solver.pack.problem import height_of, offsets_of, problem
from adaflex.solver.pack.search import pack
from adaflex.solver.pack.validate import validate
from adaflex.solver.table import Buffer

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler here")
FOREVER = 1e9


def core_of(buffers: list[Buffer]) -> Core:
    lib = library()
    assert lib is not None
    return Core(problem(buffers), lib)


def plain(buffers: list[Buffer]) -> list[Buffer]:
    return buffers


def aligned(buffers: list[Buffer]) -> list[Buffer]:
    return [replace(b, alignment=192 if i % 3 else 1) for i, b in enumerate(buffers)]


def coarse(buffers: list[Buffer]) -> list[Buffer]:
    return [replace(b, alignment=1 << 20 if i % 2 else 1) for i, b in enumerate(buffers)]  # larger than any buffer


def with_empty_ones(buffers: list[Buffer]) -> list[Buffer]:
    return [*buffers, Buffer("no size", 0, 0, 9000), Buffer("never", 5, 300, 300), Buffer("always", 64, 0, 10**6)]


@pytest.mark.parametrize("change", [plain, aligned, coarse, with_empty_ones])
def test_lower_and_lower_and_valid(change: Callable[[list[Buffer]], list[Buffer]]) -> None:
    buffers = change(lives(1200, 60, 3))
    task, core = problem(buffers), core_of(buffers)
    first, used = core.outward(None, (task.lower_bound, 0), (1, FOREVER), 0)
    assert first is not None and used > 0
    assert not validate(buffers, dict(offsets_of(task, first)))
    high = height_of(task, first)
    lower, used = core.outward(first, (task.lower_bound, high), (50_000, FOREVER), 0)
    assert lower is not None and height_of(task, lower) < high and used >= 50_000
    assert not validate(buffers, dict(offsets_of(task, lower)))
    again, _ = core.outward(first, (task.lower_bound, high), (50_000, FOREVER), 0)
    assert again == lower
    assert core.outward(lower, (task.lower_bound, height_of(task, lower)), (1, FOREVER), 0)[0] is None


def test_a_loose_goal_is_met_at_once() -> None:
    buffers = lives(1200, 60, 1)
    task, core = problem(buffers), core_of(buffers)
    most = int(1.05 * task.lower_bound)
    places, used = core.outward(None, (most, 0), (1 << 60, FOREVER), 0)
    assert places is not None and height_of(task, places) <= most and used < 5000


@pytest.mark.parametrize("change", [{"offset": 64}, {"gaps": ((20, 21),), "end": 60}], ids=["a pin", "a gap in a life"])
def test_other_problems_are_left_alone(change: dict[str, int]) -> None:
    buffers = lives(300, 20, 0)
    buffers[0] = replace(buffers[0], **change)  # type: ignore[arg-type]
    assert core_of(buffers).outward(None, (1, 0), (1000, FOREVER), 0) == (None, 0)
    made = pack(buffers, node_limit=2000, time_limit_s=60)
    assert not validate(buffers, dict(made.offsets))


def test_crowds_of_any_sizes_come_near_the_bound() -> None:
    buffers = lives(3000, 300, 0)
    made = pack(buffers, node_limit=100_000, time_limit_s=100)
    assert not validate(buffers, dict(made.offsets))
    assert made.height <= 1.01 * made.bound < 1.05 * made.bound < greedy(buffers).height
    assert made.offsets == pack(buffers, node_limit=100_000, time_limit_s=100).offsets
