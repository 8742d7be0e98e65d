"""The unit of prefetch: which weights are read from disk together, while the layers before them are computed.

In: names of weights in the order in which the program uses them. Out: blocks of consecutive ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable


def prefetch_blocks(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Runs of weights of the same layer: the same path up to its last number, else each module by itself."""
    return tuple(tuple(run) for _, run in itertools.groupby(names, key=layer_of))


def layer_of(name: str) -> str:
    """ "encoder.layer.3" for "encoder.layer.3.output.dense.weight"; the module's own path where it has no number."""
    path = name.split(".")[:-1]
    numbers = [place for place, part in enumerate(path) if part.isdigit()]
    return ".".join(path[: numbers[-1] + 1]) if numbers else ".".join(path)
