"""What a search may do, for both forms of the core.

In: nothing. Out: ``Walk``, and what "nothing found" costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOTHING = 1e300  # the cost where nothing within the room was met
Chosen = NDArray[np.int32]


@dataclass(frozen=True)
class Walk:
    """How to search: moves of trees of up to ``most`` nodes, while the heat falls from ``hot`` to ``cold``."""

    seed: int = 1
    steps: int = 1000  # of repair at most
    moves: int = 10_000
    most: int = 20
    hot: float = 0.0  # in units of cost; 0: only what costs no more
    cold: float = 0.0
    share: float = 1.0  # how much of the prices counts in what is walked on
    seconds: float = 1e9
