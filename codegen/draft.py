"""The draft of a program: steps over slots in an order in which they can run, constants named but not yet packed.

In: made by codegen/lower.py. Out: scheduled by codegen/schedule.py, given its bytes by codegen/finish.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from adaflex.codegen.kernels.call import Call
from adaflex.runtime.program import ITEM_BYTES, Slot, Step
from adaflex.runtime.region import Size, round_up, times
from adaflex.solver.table import Encoding


@dataclass(frozen=True)
class Assignment:
    """What the plan says of one site, in the terms of lowering."""

    encoding: Encoding
    form: str  # activation form its kernel reads ("rows8", "f32", "bf16" for the table of an embedding)
    size_bytes: int
    call: Call | None = None  # None: gathered, not multiplied


@dataclass(frozen=True)
class ConstantUse:
    """A constant of the program: ``encoding`` None where its bytes are the tensor's own."""

    node: str  # placeholder in the capture's graph
    encoding: Encoding | None
    transposed: bool
    size_bytes: int
    form: str
    shape: tuple[int, ...]
    tier: str = "memory"
    block: int = -1  # of prefetch, in order of use; -1: none


@dataclass(frozen=True)
class StepRows:
    """How a step walks: its rows and the first axis of its space, before axes were merged."""

    rows: Size
    lead: Size


@dataclass(frozen=True)
class Read:
    """A slot that a step reads. ``aligned``: row r of the step reads row r alone. ``local``: only its own group's rows,
    where a group is one entry of the step's first axis."""

    slot: int
    aligned: bool
    local: bool


@dataclass(frozen=True)
class Draft:
    """A program without schedule, windows and bytes. ``walks`` and ``reads`` have one entry per step."""

    symbols: tuple[str, ...]
    sources: tuple[tuple[int, int], ...]
    inputs: tuple[int, ...]
    input_names: tuple[str, ...]
    outputs: tuple[int, ...]
    slots: tuple[Slot, ...]
    constants: tuple[ConstantUse, ...]
    steps: tuple[Step, ...]
    walks: tuple[StepRows | None, ...]
    reads: tuple[tuple[Read, ...], ...]
    ranges: tuple[tuple[int, int], ...]
    hints: tuple[int, ...]
    guards: tuple[tuple[str, Size, Size], ...] = ()


def packed_form(encoding: Encoding) -> str:
    """How a constant names its encoding: never as a plain dtype is named, whose bytes would be counted otherwise."""
    label = encoding.label()
    return f"{label}-packed" if label in ITEM_BYTES else label


def form_row_bytes(form: str, columns: Size, item: int) -> Size:
    """Bytes of a row in an activation form (codes, padding, then scales and minima), or of plain items."""
    base = form.partition("-")[0]
    if base == "u8t":
        return _padded(columns, 64, 64)
    if base.startswith("u8g"):
        assert isinstance(columns, int)
        return _padded(columns, 64, -(-8 * (columns // int(base[3:])) // 64) * 64)
    if base == "bf16" and form != "bf16-plain":
        return times(round_up(columns, 32), 2)
    return times(columns, item)


def _padded(columns: Size, unit: int, tail: int) -> Size:
    padded = round_up(columns, unit)
    return padded + tail if isinstance(padded, int) else ("+", padded, tail)
