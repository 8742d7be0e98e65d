"""Memory problems and solutions in files: MiniMalloc's CSV, and JSON with spaces, separations and more.

In: bytes of a file. Out: a ``MemoryProblem``, or a ``TableError`` with the line or path of the first fault.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaflex.errors import TableError
from adaflex.solver.pack.columns import BufferTable, check_buffer
from adaflex.solver.pack.columns import columns as columns_of
from adaflex.solver.pack.library import read_rows
from adaflex.solver.table import Buffer
from adaflex.solver.table_json import decode, parse, read_bytes

GAP = re.compile(r"(-?\d+)-(-?\d+)")
MOST_DIGITS = 20
MUCH = 1_000_000  # bytes of a CSV from which on its columns are read in one go
KNOWN = {"id", "lower", "upper", "start", "end", "size", "alignment", "hint", "gaps", "offset"}


@dataclass(frozen=True)
class Space:
    """An address space of its own."""

    name: str
    capacity_bytes: int


@dataclass(frozen=True)
class Operator:
    """A step of a graph for which an order may be chosen: the buffers it reads and writes."""

    id: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    time_ns: int = 0
    elsewhere: tuple[tuple[str, int], ...] = ()  # (store, time in ns) where it can also be computed in a slower memory


@dataclass(frozen=True)
class Store:
    """A memory below the one that compute reads: capacity, and what its link into the one above can do."""

    name: str
    capacity_bytes: int | None = None
    bytes_per_second: int = 1_000_000_000
    latency_ns: int = 0
    bandwidth: tuple[tuple[int, int], ...] = ()  # (request bytes, bytes per second), ascending; (): as above


@dataclass(frozen=True)
class MemoryProblem:
    """Buffers to place; ``spaces`` in order of preference; ``operators`` where lives follow from an order.

    ``stores`` are the tiers below ``capacity_bytes`` of working memory, nearest first: then operators are executed
    in the order given and buffers move between the tiers.
    """

    buffers: Sequence[Buffer]
    capacity_bytes: int | None = None
    alignment: int = 1
    spaces: tuple[Space, ...] = ()
    separate: tuple[tuple[str, str], ...] = ()
    operators: tuple[Operator, ...] = ()
    stores: tuple[Store, ...] = ()
    in_place: tuple[tuple[str, str], ...] = ()  # (input, output) that may share a place
    homes: tuple[tuple[str, str], ...] = ()  # (input, store it lies in at first); the last store where not named


def read_problem(path: Path) -> MemoryProblem:
    """Read a problem from ``.csv`` or ``.json`` (also ``.gz``)."""
    raw = read_bytes(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        return problem_from_json(raw, str(path))
    buffers = buffers_from_csv(raw, str(path))
    return MemoryProblem(buffers if isinstance(buffers, BufferTable) else tuple(buffers))


def problem_from_json(raw: bytes, origin: str) -> MemoryProblem:
    """A problem from JSON: the fields of ``MemoryProblem``."""
    values = parse(raw, origin)
    if not isinstance(values, Mapping):
        raise TableError(f"{origin} must be an object with the field 'buffers'")
    made: MemoryProblem = decode(MemoryProblem, values, "$")
    for buffer in made.buffers:
        check_buffer(buffer)
    return made


def _rows(raw: bytes, origin: str) -> Iterator[tuple[int, list[str]]]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise TableError(f"{origin} is not UTF-8 text at byte {fault.start}; save it as UTF-8") from fault
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as fault:
        raise TableError(f"{origin}, line {reader.line_num}: {fault}") from fault


def _whole(text: str, where: str) -> int:
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit():
        raise TableError(f"{where} is {text[:40]!r}; it must be a whole number")
    if len(digits) > MOST_DIGITS:
        raise TableError(f"{where} has {len(digits)} digits; numbers must stay below 2**60")
    return int(text)


def header_of(row: Sequence[str], origin: str) -> tuple[dict[str, int], bool]:
    """Column numbers by name, and whether lives end inclusively (the older header ``start,end``)."""
    columns = {name.lower(): number for number, name in enumerate(row)}
    if len(columns) != len(row):
        raise TableError(f"{origin}, line 1: a column stands twice in the header")
    old = "start" in columns and "lower" not in columns
    needed = ("id", "start", "end", "size") if old else ("id", "lower", "upper", "size")
    missing = [name for name in needed if name not in columns]
    if missing:
        raise TableError(f"{origin}, line 1: column {missing[0]!r} is missing; a problem needs id,lower,upper,size")
    return columns, old


def plain_table(raw: bytes, origin: str) -> BufferTable | None:
    """The buffers of a large and plain CSV as columns; None where it is not plain, or not well formed."""
    cut = raw.find(b"\n") + 1
    if len(raw) < MUCH or not raw[:cut].isascii():
        return None
    names = [cell.strip() for cell in raw[:cut].decode().split(",")]
    columns, old = header_of(names, origin)
    needed = ("id", "start", "end", "size") if old else ("id", "lower", "upper", "size")
    empty = [int(name in KNOWN and name not in needed) for name in columns]
    text = raw[cut:]
    found = read_rows(text, len(columns), [*(columns[name] for name in needed), *empty])
    if found is None:
        return None
    letters = text.decode("ascii")
    begin, end, first, last, size = found
    ids = [letters[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]
    table = BufferTable(ids, size, first, last + 1 if old else last)
    try:
        columns_of(table)
    except TableError:
        return None  # the other reader names the line
    return table


def buffers_from_csv(raw: bytes, origin: str = "the CSV") -> Sequence[Buffer]:
    """Buffers in MiniMalloc's format: id, lower, upper, size and optionally alignment, hint, gaps, offset.

    Lives are half open; with the older header ``start,end`` the end is inclusive. A large plain file gives a
    ``BufferTable``.
    """
    table = plain_table(raw, origin)
    if table is not None:
        return table
    rows = _rows(raw, origin)
    first = next(rows, None)
    if first is None:
        raise TableError(f"{origin} is empty; its first line must name the columns id,lower,upper,size")
    columns, old = header_of(first[1], origin)
    low, high, size, name = (
        columns["start" if old else "lower"],
        columns["end" if old else "upper"],
        columns["size"],
        columns["id"],
    )
    optional = [(field, columns[field]) for field in ("alignment", "hint", "offset", "gaps") if field in columns]
    found: list[Buffer] = []
    seen: set[str] = set()
    for line, row in rows:
        where = f"{origin}, line {line}"
        if len(row) != len(columns):
            raise TableError(f"{where}: {len(row)} cells for {len(columns)} columns")
        extra = {field: row[at] for field, at in optional if row[at]}
        end = _whole(row[high], f"{where}: {'end' if old else 'upper'}") + (1 if old else 0)
        first_step = _whole(row[low], f"{where}: {'start' if old else 'lower'}")
        buffer = Buffer(
            row[name],
            _whole(row[size], f"{where}: size"),
            first_step,
            end,
            _whole(extra["alignment"], f"{where}: alignment") if "alignment" in extra else 1,
            _gaps(extra["gaps"], where) if "gaps" in extra else (),
            _whole(extra["offset"], f"{where}: offset") if "offset" in extra else None,
            hint=_whole(extra["hint"], f"{where}: hint") if "hint" in extra else None,
        )
        if buffer.id in seen:
            raise TableError(f"{where}: id {buffer.id!r} stands twice; ids are unique")
        seen.add(buffer.id)
        try:
            check_buffer(buffer)
        except TableError as fault:
            raise TableError(f"{where}: {fault}") from fault
        found.append(buffer)
    return found


def _gaps(text: str, where: str) -> tuple[tuple[int, int], ...]:
    spans = []
    for part in text.split():
        found = GAP.fullmatch(part)
        if found is None:
            raise TableError(f"{where}: gap {part!r} is not of the form lower-upper (address windows are not read)")
        spans.append((_whole(found.group(1), where), _whole(found.group(2), where)))
    return tuple(spans)


def offsets_from_csv(raw: bytes, origin: str = "the CSV") -> dict[str, int]:
    """Offsets by id from anybody's solution: any CSV with the columns id and offset."""
    rows = _rows(raw, origin)
    first = next(rows, None)
    names = [cell.lower() for cell in first[1]] if first else []
    if "id" not in names or "offset" not in names:
        raise TableError(f"{origin}, line 1: a solution needs the columns id and offset")
    found: dict[str, int] = {}
    for line, row in rows:
        if len(row) != len(names):
            raise TableError(f"{origin}, line {line}: {len(row)} cells for {len(names)} columns")
        name = row[names.index("id")]
        if name in found:
            raise TableError(f"{origin}, line {line}: id {name!r} stands twice")
        found[name] = _whole(row[names.index("offset")], f"{origin}, line {line}: offset")
    return found


def solution_csv(raw: bytes, offsets: Mapping[str, int]) -> str:
    """The problem's CSV with the column ``offset`` filled in: same columns, same order of rows."""
    rows = [row for _, row in _rows(raw, "the CSV")]
    names = [cell.lower() for cell in rows[0]]
    at, key = (names.index("offset") if "offset" in names else -1), names.index("id")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0] if at >= 0 else [*rows[0], "offset"])
    for row in rows[1:]:
        value = str(offsets[row[key]])
        writer.writerow([value if i == at else cell for i, cell in enumerate(row)] + ([] if at >= 0 else [value]))
    return text.getvalue()


def solution_of(buffers: Sequence[Buffer], offsets: Mapping[str, int]) -> str:
    """A CSV of buffers and offsets where the problem came from JSON."""
    lines = ["id,lower,upper,size,offset"]
    lines += [f"{b.id},{b.first},{b.end},{b.size_bytes},{offsets[b.id]}" for b in buffers]
    return "\n".join(lines) + "\n"
