"""Programs as plain data for JSON, and back: an explicit table of the types that may occur, checked while reading.

In: a ``Program``. Out: dicts, lists, strings, numbers that ``json`` writes, from which the same program is read again.

Fields at their defaults are left out. Floats that JSON has no word for are the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any, cast

from adaflex.runtime.json_readers import (
    MOST_ITEMS,
    MOST_NESTING,
    Read,
    count,
    exactly,
    fault,
    flag,
    integer,
    many,
    number,
    one_of,
    optional,
    pair,
    record,
    size,
    text,
)
from adaflex.runtime.program import (
    ITEM_BYTES,
    WINDOW_KINDS,
    Argument,
    AttentionStep,
    Constant,
    GemmStep,
    LibraryStep,
    Loop,
    Operand,
    Part,
    Phase,
    Prefetch,
    Program,
    RowStep,
    Segment,
    Slot,
    WindowStep,
)
from adaflex.runtime.region import (
    BINARY,
    FOLD,
    LEAVES,
    PANELS,
    REDUCE,
    RELATIONS,
    TERNARY,
    UNARY,
    Load,
    Op,
    Region,
    Store,
)

MOST_SPAN = 1 << 20  # of a window, its steps and its channels: far from what overflows
KINDS = ("input", "output", "constant", "local", "value")
WINDOWS = ("full", "group", "block")
ARGUMENTS = "slot int float complex bool str none size dtype list layout device memory_format".split()
OPS = frozenset((*UNARY, *BINARY, *TERNARY, *REDUCE, *FOLD, *LEAVES))


def to_plain(program: Program) -> dict[str, Any]:
    """The program as plain data. Equal programs give equal data."""
    return cast(dict[str, Any], _plain(program))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        made = {"step": _STEP_NAMES[type(value)]} if type(value) in _STEP_NAMES else {}
        for entry in fields(value):
            given = getattr(value, entry.name)
            if not _same_as_default(given, entry.default):
                made[entry.name] = _plain(given)
        return made
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    return value


def _same_as_default(given: Any, default: Any) -> bool:
    if isinstance(given, float):  # -0.0 == 0.0, but they are not the same
        return repr(given) == repr(default)
    return type(given) is type(default) and bool(given == default)


# ---- the table ----
_slot = integer(0, 4095)
_slot_or_none = integer(-1, 4095)
_index = integer(0, MOST_ITEMS)
_form = text

LOAD = record(
    Load,
    {
        "slot": _slot,
        "strides": many(size, 32),
        "column": size,
        "offset": size,
        "inner": size,
        "gather": integer(-1, MOST_ITEMS),
        "pitch": size,
        "choices": size,
        "form": one_of(("", *ITEM_BYTES)),
        "panel": integer(0, max(PANELS)),
    },
)
OP = record(Op, {"name": one_of(OPS), "args": many(_index, 8), "value": number})
STORE = record(Store, {"value": _index, "slot": _slot})
REGION = record(
    Region,
    {
        "dims": many(count, 32),
        "columns": count,
        "loads": many(LOAD),
        "ops": many(OP),
        "stores": many(STORE),
        "inner": count,
    },
)
SLOT = record(
    Slot,
    {
        "kind": one_of(KINDS),
        "form": _form,
        "rows": count,
        "columns": count,
        "row_bytes": count,
        "shape": many(count, 32),
        "window": one_of(WINDOWS),
        "constant": integer(-1, MOST_ITEMS),
        "scalar": flag,
    },
)
CONSTANT = record(
    Constant,
    {
        "name": text,
        "offset": integer(0),
        "size_bytes": integer(0),
        "form": text,
        "shape": many(integer(0), 32),
        "tier": text,
        "digest": text,
    },
)
PART = record(Part, {"name": text, "offset": integer(0)})
OPERAND = record(Operand, {"slot": _slot, "strides": many(size, 32), "offset": size})
ROW_STEP = record(RowStep, {"region": REGION, "label": text})
GEMM_STEP = record(
    GemmStep,
    {
        "a": _slot,
        "weight": _slot,
        "header": text,
        "function": text,
        "parts": many(PART, 16),
        "k": integer(1),
        "n": integer(1),
        "region": REGION,
        "label": text,
    },
)
ATTENTION_STEP = record(
    AttentionStep,
    {
        **dict.fromkeys(("q", "k", "v", "out"), OPERAND),
        **dict.fromkeys(("batch", "heads", "kv_heads", "queries", "keys"), count),
        **dict.fromkeys(("causal", "bf16"), flag),
        "mask": optional(OPERAND),
        "width": integer(1, 1 << 20),
        "scale": number,
        "label": text,
    },
)
WINDOW_STEP = record(
    WindowStep,
    {
        "kind": one_of(WINDOW_KINDS),
        "x": OPERAND,
        "weight": _slot_or_none,
        "out": _slot,
        **dict.fromkeys(("batch", "height", "width"), count),
        "channels": integer(1, MOST_SPAN),
        **dict.fromkeys(("kernel", "stride", "dilation"), exactly(2, integer(1, MOST_SPAN))),
        "padding": exactly(4, integer(0, MOST_SPAN)),
        "label": text,
    },
)


def argument(value: Any, where: str, depth: int = 0) -> Argument:
    """Reads an argument of a library op; lists nest."""
    if depth > MOST_NESTING:
        raise fault(where, value, f"lists nested at most {MOST_NESTING} deep")
    items = many(lambda item, place: argument(item, place, depth + 1))
    readers = {**_ARGUMENT, "items": items}
    return cast(Argument, record(Argument, readers)(value, where))


_ARGUMENT: dict[str, Read] = {
    "kind": one_of(ARGUMENTS),
    "slot": _slot_or_none,
    "number": number,
    "size": size,
    "text": text,
    "view": optional(OPERAND),
    "shape": many(count, 32),
}
LIBRARY_STEP = record(
    LibraryStep,
    {
        "op": text,
        "args": many(argument, 64),
        "kwargs": many(pair(text, argument), 64),
        "outputs": many(_slot_or_none, 64),
        "label": text,
    },
)
_STEPS: dict[str, tuple[type, Read]] = {
    "rows": (RowStep, ROW_STEP),
    "gemm": (GemmStep, GEMM_STEP),
    "attention": (AttentionStep, ATTENTION_STEP),
    "windows": (WindowStep, WINDOW_STEP),
    "library": (LibraryStep, LIBRARY_STEP),
}
_STEP_NAMES = {kind: name for name, (kind, _) in _STEPS.items()}


def step(value: Any, where: str) -> Any:
    """Reads a step, told apart by its key "step"."""
    name = value.get("step") if type(value) is dict else None
    if type(name) is not str or name not in _STEPS:
        raise fault(f"{where}.step", name, f"one of {', '.join(_STEPS)}")
    return _STEPS[name][1]({key: given for key, given in value.items() if key != "step"}, where)


LOOP = record(Loop, {"steps": many(_index), "rows": count, "block": integer(0, 1 << 30)})
PHASE = record(Phase, {"loops": many(LOOP)})
PREFETCH = record(Prefetch, {"first": _index, "last": _index, "offset": integer(0), "size_bytes": integer(0)})
SEGMENT = record(Segment, {"groups": count, "phases": many(PHASE)})


def entry(value: Any, where: str) -> Any:
    """Reads an entry of the schedule: a segment, or the number of a library step."""
    return SEGMENT(value, where) if type(value) is dict else _index(value, where)


def guard(value: Any, where: str) -> Any:
    """Reads a relation between two sizes."""
    if type(value) is not list or len(value) != 3:
        raise fault(where, value, "a relation and two sizes")
    return one_of(RELATIONS)(value[0], where), size(value[1], where), size(value[2], where)


PROGRAM = record(
    Program,
    {
        "symbols": many(text, 4096),
        "sources": many(pair(integer(-1, 4095), integer(-1, 31)), 4096),
        "inputs": many(_slot_or_none, 4096),
        "input_names": many(text, 4096),
        "outputs": many(_slot, 4096),
        "slots": many(SLOT, 4096),
        "constants": many(CONSTANT),
        "steps": many(step),
        "schedule": many(entry),
        "ranges": many(pair(integer(), integer()), 4096),
        "hints": many(integer(), 4096),
        "output_spec": text,
        "notes": many(pair(text, text), 4096),
        "blocks": many(PREFETCH, 4096),
        "guards": many(guard, 4096),
    },
)


def from_plain(value: Any) -> Program:
    """The program that plain data describes. Raises ``ArtifactError`` naming the place that breaks the schema.

    Types, ranges and nesting are checked here; what refers to what is checked by runtime/artifact_check.py.
    """
    return cast(Program, PROGRAM(value, "program"))


__all__ = ["from_plain", "to_plain"]
