"""Budgets as people write them on a command line, for one cost table.

In: texts like ``120MiB``, ``0.5x``, ``decode=8ms``, ``0.03``. Out: a ``Budget``, or an ``OptionError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from adaflex.errors import OptionError
from adaflex.solver.table import Budget, CostTable
from adaflex.solver.units import parse_bytes, parse_time

Objective = Literal["", "loss", "latency", "memory", "bits"]


def _share(text: str) -> float | None:
    """The factor of ``0.5x``; None for other texts."""
    if not text.endswith("x"):
        return None
    try:
        factor = float(text[:-1])
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise OptionError(f"{text!r} is no factor; write for example 0.5x")
    return factor


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise OptionError(f"{name} is {text!r}; it must be a number")
    return value


def memory_of(table: CostTable, text: str) -> int:
    """Bytes of ``120MiB``, or of ``0.5x`` of the plan that changes nothing."""
    share = _share(text)
    if share is None:
        return parse_bytes(text)
    if not table.baseline_bytes:
        raise OptionError(f"memory is {text!r} but the table has no baseline_bytes; give bytes, for example 120MiB")
    return int(share * table.baseline_bytes)


def latencies_of(table: CostTable, texts: Sequence[str]) -> tuple[int | None, ...]:
    """One limit per phase from ``8ms`` (the only phase) or ``decode=8ms``; ``0.5x`` is of the baseline."""
    limits: list[int | None] = [None] * len(table.phases)
    for text in texts:
        phase, equals, amount = text.rpartition("=")
        if not equals and len(table.phases) > 1:
            raise OptionError(f"latency {text!r} names no phase; write {table.phases[-1]}={text}")
        if equals and phase not in table.phases:
            raise OptionError(f"latency names phase {phase!r}; the table has {', '.join(table.phases)}")
        at = table.phases.index(phase) if equals else 0
        share = _share(amount)
        if share is not None and len(table.baseline_ns) <= at:
            raise OptionError(f"latency is {text!r} but the table has no baseline_ns; give a time, for example 8ms")
        limits[at] = parse_time(amount) if share is None else int(share * table.baseline_ns[at])
    return tuple(limits) if texts else ()


def loss_of(table: CostTable, text: str) -> float:
    """Additive loss of ``0.03``: squared where the table holds squared relative errors."""
    value = _number(text, "loss")
    if value < 0 and table.loss_kind.startswith("squared"):
        raise OptionError(f"loss is {text!r}; a relative error is at least 0")
    return value * value if table.loss_kind.startswith("squared") else value


def shown_loss(table: CostTable, value: float) -> float:
    """The loss as people give it: the root where the table holds squared relative errors."""
    return math.sqrt(max(0.0, value)) if table.loss_kind.startswith("squared") else value


def budget_of(
    table: CostTable,
    *,
    memory: str | None = None,
    latency: Sequence[str] = (),
    loss: str | None = None,
    bits: str | None = None,
    tiers: Sequence[str] = (),
    objective: Objective = "",
) -> Budget:
    """The budget that these texts mean on ``table``."""
    pairs = []
    for text in tiers:
        name, equals, amount = text.rpartition("=")
        if not equals:
            raise OptionError(f"tier {text!r} must be written NAME=SIZE, for example host=2GiB")
        pairs.append((name, parse_bytes(amount)))
    return Budget(
        memory_bytes=memory_of(table, memory) if memory is not None else None,
        latency_ns=latencies_of(table, latency),
        loss=loss_of(table, loss) if loss is not None else None,
        bits_milli=round(_number(bits, "bits") * 1000) if bits is not None else None,
        tier_bytes=tuple(pairs),
        objective=objective,
    )
