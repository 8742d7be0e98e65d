"""Cost tables, budgets, plans and buffers as readable JSON, checked field by field when read.

In: a dataclass of table.py or plan.py, or JSON text from anybody. Out: JSON text, or the dataclass; ``TableError``
with the path of the fault. Fields at their default are left out, so a hand-made table stays short.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from adaflex.errors import TableError
from adaflex.solver.plan import Plan
from adaflex.solver.table import Budget, CostTable

T = TypeVar("T")
FORMATS: dict[type, str] = {CostTable: "adaflex.table/1", Budget: "adaflex.budget/1", Plan: "adaflex.plan/1"}
MOST = 1 << 62  # the solver's arithmetic is 64 bits wide; sums stay below this
MOST_TEXT = 1 << 30


PLAIN = frozenset((str, int, float, bool, type(None)))  # what JSON holds as it stands


@functools.cache
def _fields(kind: type) -> tuple[tuple[str, Any, Any], ...]:
    """(name, type, default) of each field; MISSING where it has no default."""
    hints = typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append((field.name, hints[field.name], default))
    return tuple(found)


def encode(value: Any) -> Any:
    """Plain JSON values of a dataclass; fields at their default are left out."""
    kind: type = type(value)
    if kind in PLAIN:
        return value
    if kind is tuple:
        return [part if type(part) in PLAIN else encode(part) for part in value]
    if isinstance(value, str | int | float):  # kinds of their own, like the version torch gives
        return value
    found = {}
    for name, _, default in _fields(kind):
        part = getattr(value, name)
        if part != default:
            found[name] = part if type(part) in PLAIN else encode(part)
    return found


def decode(kind: Any, value: Any, path: str) -> Any:
    """The value of type ``kind`` that plain JSON stands for; ``TableError`` names ``path`` where it does not fit."""
    if dataclasses.is_dataclass(kind):
        return _decode_object(typing.cast(type, kind), value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return decode(next(part for part in arguments if part is not type(None)), value, path)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in arguments:
            raise TableError(f"{path} is {_short(value)}; it must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (tuple, Sequence):
        arguments = arguments if origin is tuple else (*arguments, ...)
        return _decode_list(arguments, value, path)
    return _decode_scalar(kind, value, path)


def _decode_object(kind: type, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise TableError(f"{path} is {_short(value)}; it must be an object with the fields of a {kind.__name__}")
    known = _fields(kind)
    names = {name for name, _, _ in known}
    for name in value:
        if name not in names:
            raise TableError(
                f"{path}.{name} is not a field of {kind.__name__}; its fields are {', '.join(sorted(names))}"
            )
    parts = {}
    for name, hint, default in known:
        if name in value:
            parts[name] = decode(hint, value[name], f"{path}.{name}")
        elif default is dataclasses.MISSING:
            raise TableError(f"{path}.{name} is missing; every {kind.__name__} needs it")
    return kind(**parts)


def _decode_list(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TableError(f"{path} is {_short(value)}; it must be a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(decode(arguments[0], part, f"{path}[{i}]") for i, part in enumerate(value))
    if len(value) != len(arguments):
        raise TableError(f"{path} has {len(value)} entries; it must have {len(arguments)}")
    return tuple(
        decode(kind, part, f"{path}[{i}]") for i, (kind, part) in enumerate(zip(arguments, value, strict=True))
    )


def _decode_scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            if abs(value) >= MOST:
                raise TableError(f"{path} is {_short(value)}; numbers must stay below 2**62")
            return value
        raise TableError(f"{path} is {_short(value)}; it must be a whole number")
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            if abs(value) < MOST and math.isfinite(value):
                return float(value)
            raise TableError(f"{path} is {_short(value)}; it must be a finite number")
    elif kind is str and isinstance(value, str):
        return value
    wanted = {bool: "true or false", float: "a number", str: "text"}.get(kind, str(kind))
    raise TableError(f"{path} is {_short(value)}; it must be {wanted}")


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _no_constant(text: str) -> Any:
    raise TableError(f"the JSON holds {text}; only finite numbers are allowed")


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise TableError(f"the JSON has the field {twice!r} twice in one object; keep one")
    return found


def parse(text: str | bytes, origin: str = "the JSON") -> Any:
    """Plain values of JSON text; NaN, doubled fields, absurd depth and broken text are a ``TableError``."""
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        return json.loads(decoded, parse_constant=_no_constant, object_pairs_hook=_no_twice)
    except UnicodeDecodeError as fault:
        raise TableError(f"{origin} is not UTF-8 text at byte {fault.start}; save it as UTF-8") from fault
    except json.JSONDecodeError as fault:
        raise TableError(f"{origin} is not JSON at line {fault.lineno}, column {fault.colno}: {fault.msg}") from fault
    except RecursionError as fault:
        raise TableError(f"{origin} is nested too deeply; a table is at most six levels deep") from fault
    except ValueError as fault:
        raise TableError(f"{origin} holds a number of thousands of digits; numbers must stay below 2**62") from fault


def from_json(kind: type[T], text: str | bytes | Mapping[str, Any], origin: str = "the JSON") -> T:
    """Read a ``CostTable``, ``Budget`` or ``Plan`` (or any other dataclass of theirs) from JSON text or plain values.

    Raises ``TableError`` naming the path of the first fault. A table is checked for sense too (see sense.py).
    """
    values = parse(text, origin) if isinstance(text, str | bytes) else text
    if not isinstance(values, Mapping):
        raise TableError(f"{origin} is {_short(values)}; it must be an object")
    values = dict(values)
    wanted = FORMATS.get(kind, "")
    found = values.pop("schema", wanted)
    if found != wanted:
        raise TableError(f"{origin} says schema {_short(found)}; this version reads {wanted!r}")
    made: T = decode(kind, values, "$")
    return made


def to_json(value: Any) -> str:
    """Readable JSON of a dataclass: one line per entry of its lists."""
    parts = {"schema": FORMATS[type(value)]} if type(value) in FORMATS else {}
    lines = []
    for name, part in {**parts, **encode(value)}.items():
        if isinstance(part, list) and part and isinstance(part[0], dict | list):
            rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in part)
            lines.append(f"{json.dumps(name)}: [\n  {rows}\n ]")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(part, allow_nan=False)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def digest(value: Any) -> str:
    """Content key of a table (or budget): SHA-256 of its canonical JSON, in hexadecimal."""
    text = json.dumps(encode(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, unpacked where its name ends in ``.gz``; ``TableError`` where it cannot be read."""
    import gzip
    import zlib

    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as fault:
        raise TableError(f"{path} cannot be read ({fault}); name a readable file") from fault


def schema(kind: Any) -> dict[str, Any]:
    """JSON Schema of what ``from_json(kind, ...)`` reads: made from the dataclass, so the two cannot differ."""
    if dataclasses.is_dataclass(kind):
        fields = _fields(typing.cast(type, kind))
        body: dict[str, Any] = {"type": "object", "additionalProperties": False}
        body["properties"] = {name: schema(hint) for name, hint, _ in fields}
        body["required"] = [name for name, _, default in fields if default is dataclasses.MISSING]
        if kind in FORMATS:
            body["properties"]["schema"] = {"const": FORMATS[kind]}
        return body
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema(part) for part in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (tuple, Sequence):
        arguments = arguments if origin is tuple else (*arguments, ...)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return {"type": "array", "items": schema(arguments[0])}
        return {"type": "array", "prefixItems": [schema(part) for part in arguments], "minItems": len(arguments)}
    names = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
    return {"type": names[kind]}
