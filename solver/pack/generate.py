"""Made-up packing problems: tight ones whose optimum is known, and large random ones.

In: sizes and a seed. Out: ``Buffer``s. The same seed gives the same buffers everywhere.
"""

from __future__ import annotations

import math
import random
from typing import Literal

from adaflex.solver.table import Buffer

Rectangle = tuple[int, int, int, int]  # first, end, low, high


def guillotine(count: int, seed: int, *, steps: int = 1000, height: int = 1 << 20, unit: int = 1024) -> list[Buffer]:
    """A full rectangle of ``steps`` x ``height`` cut into ``count`` buffers: optimum ``height``, no waste."""
    rng = random.Random(f"guillotine {count} {seed}")
    parts: list[Rectangle] = [(0, steps, 0, height // unit)]
    while len(parts) < count:
        at = max(range(len(parts)), key=lambda i: _area(parts[i]) * rng.uniform(0.3, 1.0))
        first, end, low, high = parts[at]
        across = rng.random() < 0.5
        if (across and high - low < 2) or (not across and end - first < 2):
            continue
        if across:
            cut = rng.randint(low + 1, high - 1)
            parts[at : at + 1] = [(first, end, low, cut), (first, end, cut, high)]
        else:
            cut = rng.randint(first + 1, end - 1)
            parts[at : at + 1] = [(first, cut, low, high), (cut, end, low, high)]
    return _buffers(parts, rng, unit)


def pinwheel(count: int, seed: int, *, steps: int = 1000, height: int = 1 << 20, unit: int = 1024) -> list[Buffer]:
    """A full rectangle cut into pinwheels (five rectangles no straight cut separates), again and again."""
    rng = random.Random(f"pinwheel {count} {seed}")
    parts: list[Rectangle] = [(0, steps, 0, height // unit)]
    while len(parts) + 4 <= count:
        wide = [i for i, (a, b, c, d) in enumerate(parts) if b - a >= 3 and d - c >= 3]
        if not wide:
            break
        at = max(wide, key=lambda i: _area(parts[i]) * rng.uniform(0.3, 1.0))
        a, b, c, d = parts[at]
        x1, x2 = sorted(rng.sample(range(a + 1, b), 2))
        y1, y2 = sorted(rng.sample(range(c + 1, d), 2))
        parts[at : at + 1] = [(a, x2, c, y1), (x2, b, c, y2), (x1, b, y2, d), (a, x1, y1, d), (x1, x2, y1, y2)]
    return _buffers(parts, rng, unit)


def _area(part: Rectangle) -> int:
    return (part[1] - part[0]) * (part[3] - part[2])


def _buffers(parts: list[Rectangle], rng: random.Random, unit: int) -> list[Buffer]:
    rng.shuffle(parts)
    return [Buffer(f"b{i}", (d - c) * unit, a, b) for i, (a, b, c, d) in enumerate(parts)]


def lives(
    count: int, mean_live: int, seed: int, *, sizes: Literal["uniform", "log"] = "uniform", unit: int = 64
) -> list[Buffer]:
    """``count`` buffers with exponential lives, ``mean_live`` alive on average; sizes are multiples of ``unit``."""
    rng = random.Random(f"lives {count} {mean_live} {seed} {sizes}")
    found = []
    for i in range(count):
        first = i * 16
        life = max(1, round(rng.expovariate(1.0 / (16 * mean_live))))
        size = rng.randint(1, 16384) if sizes == "uniform" else round(math.exp(rng.uniform(0.0, math.log(16384))))
        found.append(Buffer(f"b{i}", size * unit, first, first + life))
    return found
