"""What was decided about a model, on every axis: what a plan means once the solver's ids are left behind.

In: nothing. Out: ``Decision``, which assembly, scoring and reports read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adaflex.solver.table import Encoding


@dataclass(frozen=True)
class Decision:
    """Sites that are not named keep their form, in memory."""

    encodings: Mapping[str, Encoding]  # site id -> how it is stored
    skipped: tuple[str, ...] = ()  # ids of blocks that are left out
    tiers: Mapping[str, str] = field(default_factory=dict)  # site id -> where it lives; memory where absent
