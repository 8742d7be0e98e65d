"""streamlined-slicing: grouping, not slicing, lowers the peak of a chain."""

import random

import pytest

from adaflex.solver.pack.order import sliced_peak

CHAIN = tuple(8 * size for size in (1, 4, 4, 4, 1, 4, 4, 1))


def test_the_published_example() -> None:
    assert sliced_peak(CHAIN, [False] * 7, 8)[0] == 8 * 8  # unsliced
    alone = [sliced_peak((CHAIN[k], CHAIN[k + 1]), [True], 8)[0] for k in range(7)]
    assert max(alone) == 8 * 8  # operator by operator: inputs and outputs stay whole
    assert sliced_peak(CHAIN, [True] * 7, 8) == (3 * 8, [(0, 7)])


@pytest.mark.parametrize("seed", range(30))
def test_more_slices_never_raise_the_peak_and_groups_are_maximal(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.randint(1, 20) for _ in range(9)]
    free = [rng.random() < 0.6 for _ in range(8)]
    peaks = [sliced_peak(sizes, free, slices)[0] for slices in (1, 2, 4, 8)]
    assert peaks[1:] == sorted(peaks[1:], reverse=True)
    groups = sliced_peak(sizes, free, 4)[1]
    assert [k for low, high in groups for k in range(low, high)] == [k for k in range(8) if free[k]]
    assert all(low == 0 or not free[low - 1] for low, _ in groups)
    ends = max(sizes[low] + sizes[high] for low, high in groups) if groups else 0
    whole = [sizes[k] + sizes[k + 1] for k in range(8) if not free[k]]
    assert sliced_peak(sizes, free, 4)[0] >= max([ends, *whole])
