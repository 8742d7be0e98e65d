"""The memory of a program for one set of sizes: which mode each segment runs in, and where every local slot lies.

In: a ``Program``, the values of its symbols, the number of threads. Out: a ``Layout``.

Slots that threads share are packed by the phases they live in, because threads are somewhere within a phase; slots of
which every thread has its own window are packed by the loops they live in, once per thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaflex.runtime.arena import Packing, Piece, pack
from adaflex.runtime.program import AttentionStep, LibraryStep, Program, RowStep, Segment, Step, WindowStep
from adaflex.runtime.region import evaluate

BY_GROUP, BY_ROW, BY_COLUMN = 0, 1, 2
FULL, GROUP, BLOCK = 0, 1, 2
TILE_ROWS = 8
ITEM_ROWS = 64  # a thread takes so many groups at a time that it has about these rows
GUARD_BYTES = 64  # after each slot: kernels read, and never write, up to a vector beyond a row


@dataclass(frozen=True)
class SegmentMode:
    """How a segment runs for these sizes."""

    mode: int
    groups: int
    item_groups: int
    threads: int


@dataclass(frozen=True)
class Layout:
    """Everything a call with these sizes needs that does not change from call to call."""

    symbols: tuple[int, ...]
    modes: tuple[SegmentMode, ...]  # one per segment, in schedule order
    row_bytes: tuple[int, ...]
    rows: tuple[int, ...]
    windows: tuple[tuple[int, ...], ...]  # per segment, per slot
    group_rows: tuple[tuple[int, ...], ...]  # per segment, per slot
    offsets: tuple[int, ...]  # in the shared arena (full) or a thread's own (windowed); -1 where neither
    shared_bytes: int
    thread_bytes: int
    scratch_offset: int
    arena_bytes: int
    library_bytes: int  # most bytes of value slots alive at one time
    shared_pieces: tuple[tuple[int, Piece], ...]  # (slot, piece), for checks
    thread_pieces: tuple[tuple[int, Piece], ...]


def plan_layout(
    program: Program, values: Mapping[str, int], threads: int, scratch_bytes: int, whole: bool = False
) -> Layout:
    """The layout for one set of symbol values; ``whole``: step by step on one thread, every slot in full."""
    rows = tuple(evaluate(slot.rows, values) for slot in program.slots)
    row_bytes = tuple(evaluate(slot.row_bytes, values) for slot in program.slots)
    segments = [entry for entry in program.schedule if isinstance(entry, Segment)]
    threads = 1 if whole else threads
    modes = tuple(_mode(segment, values, threads, whole) for segment in segments)
    windows = tuple(_windows(program, mode) for mode in modes)
    group_rows = tuple(tuple(count // max(mode.groups, 1) for count in rows) for mode in modes)
    shared, own = _lives(program, rows, row_bytes, modes, windows)
    shared_packing, own_packing = _pack(shared), _pack(own)
    offsets = [-1] * len(program.slots)
    for pieces, packing in ((shared, shared_packing), (own, own_packing)):
        for (slot, _), offset in zip(pieces, packing.offsets, strict=True):
            offsets[slot] = offset
    scratch = -(-scratch_bytes // 64) * 64
    thread_bytes = own_packing.height + scratch
    return Layout(
        symbols=tuple(values[name] for name in program.symbols),
        modes=modes,
        row_bytes=row_bytes,
        rows=rows,
        windows=windows,
        group_rows=group_rows,
        offsets=tuple(offsets),
        shared_bytes=shared_packing.height,
        thread_bytes=thread_bytes,
        scratch_offset=own_packing.height,
        arena_bytes=shared_packing.height + threads * thread_bytes,
        library_bytes=_library_bytes(program, rows, row_bytes),
        shared_pieces=tuple(shared),
        thread_pieces=tuple(own),
    )


def _mode(segment: Segment, values: Mapping[str, int], threads: int, whole: bool) -> SegmentMode:
    groups = evaluate(segment.groups, values)
    if whole:
        return SegmentMode(BY_COLUMN, groups, groups, 1)
    rows = max(evaluate(loop.rows, values) for phase in segment.phases for loop in phase.loops)
    if threads == 1:
        return SegmentMode(BY_ROW, groups, groups, 1) if groups <= 1 else _by_group(groups, rows, 1)
    if rows < TILE_ROWS * threads:
        return SegmentMode(BY_COLUMN, groups, groups, threads)
    if groups >= 4 * threads or (groups and groups % threads == 0):
        return _by_group(groups, rows, threads)
    return SegmentMode(BY_ROW, groups, groups, threads)


def _by_group(groups: int, rows: int, threads: int) -> SegmentMode:
    per_group = max(rows // groups, 1)
    most = max(groups // threads, 1)
    return SegmentMode(BY_GROUP, groups, max(1, min(most, ITEM_ROWS // per_group)), threads)


def _windows(program: Program, mode: SegmentMode) -> tuple[int, ...]:
    """Which window each slot has in a segment that runs in this mode."""
    kinds = {
        BY_GROUP: {"full": FULL, "group": GROUP, "block": BLOCK},
        BY_ROW: {"full": FULL, "group": FULL, "block": BLOCK},
        BY_COLUMN: {"full": FULL, "group": FULL, "block": FULL},
    }[mode.mode]
    return tuple(kinds[slot.window] if slot.kind == "local" else FULL for slot in program.slots)


def touched(step: Step) -> tuple[int, ...]:
    """All slots a step reads or writes."""
    return (*read(step), *written(step))


def read(step: Step) -> tuple[int, ...]:
    """All slots a step reads."""
    if isinstance(step, AttentionStep):
        operands = [step.q, step.k, step.v, *([step.mask] if step.mask is not None else [])]
        return tuple(operand.slot for operand in operands)
    if isinstance(step, WindowStep):
        return (step.x.slot, step.weight) if step.weight >= 0 else (step.x.slot,)
    if isinstance(step, LibraryStep):
        return _argument_slots(step)
    loaded = tuple(load.slot for load in step.region.loads)
    return loaded if isinstance(step, RowStep) else (step.a, step.weight, *loaded)


def written(step: Step) -> tuple[int, ...]:
    """All slots a step writes."""
    if isinstance(step, AttentionStep):
        return (step.out.slot,)
    if isinstance(step, WindowStep):
        return (step.out,)
    if isinstance(step, LibraryStep):
        return tuple(slot for slot in step.outputs if slot >= 0)
    return tuple(store.slot for store in step.region.stores)


def _argument_slots(step: LibraryStep) -> tuple[int, ...]:
    found: list[int] = []
    stack = [*step.args, *(value for _, value in step.kwargs)]
    while stack:
        argument = stack.pop()
        stack.extend(argument.items)
        if argument.kind == "slot":
            found.append(argument.slot)
    return tuple(found)


@dataclass(frozen=True)
class Moment:
    """When a step runs. ``shared`` counts what threads can be in at once: a whole segment by group, a phase by row, a
    step by column. ``own`` counts a thread's own steps; its loop runs from ``loop_first`` to ``loop_end``, again and
    again for each block of rows."""

    step: int
    segment: int  # -1 for a library step
    shared: int
    own: int
    loop_first: int
    loop_end: int


def moments(program: Program, modes: Sequence[SegmentMode]) -> list[Moment]:
    """The moment of every step, in order."""
    found, shared, own, segment = [], 0, 0, 0
    for entry in program.schedule:
        if isinstance(entry, int):
            found.append(Moment(entry, -1, shared, own, own, own + 1))
            shared, own = shared + 1, own + 1
            continue
        mode = modes[segment].mode
        for phase in entry.phases:
            for loop in phase.loops:
                end = own + len(loop.steps)
                for place, step in enumerate(loop.steps):
                    found.append(Moment(step, segment, shared, own + place, own, end))
                    shared += mode == BY_COLUMN
                own = end
            shared += mode == BY_ROW
        shared += mode == BY_GROUP
        segment += 1
    return found


Pieces = list[tuple[int, Piece]]


def _lives(
    program: Program,
    rows: Sequence[int],
    row_bytes: Sequence[int],
    modes: Sequence[SegmentMode],
    windows: Sequence[Sequence[int]],
) -> tuple[Pieces, Pieces]:
    first: dict[int, tuple[int, int]] = {}
    last: dict[int, tuple[int, int]] = {}
    size: dict[int, int] = {}
    where: dict[int, int] = {}
    blocks = _blocks(program)
    for at in moments(program, modes):
        segment = at.segment
        for slot in touched(program.steps[at.step]):
            if program.slots[slot].kind != "local":
                continue
            window = FULL if segment < 0 else windows[segment][slot]
            where[slot] = window
            # what a loop shares between its blocks lives through all of them; a block's own slots do not
            span = (at.own, at.own + 1) if window == BLOCK else (at.loop_first, at.loop_end)
            first.setdefault(slot, (at.shared, span[0]))
            last[slot] = (at.shared + 1, span[1])
            count = rows[slot]
            if window == GROUP:
                count = rows[slot] // modes[segment].groups * modes[segment].item_groups
            elif window == BLOCK:
                count = min(rows[slot], blocks[at.step])
            size[slot] = count * row_bytes[slot] + GUARD_BYTES
    shared_pieces: Pieces = []
    own_pieces: Pieces = []
    for slot in sorted(first):
        kind = 0 if where[slot] == FULL else 1
        piece = Piece(size[slot], first[slot][kind], last[slot][kind])
        (own_pieces if kind else shared_pieces).append((slot, piece))
    return shared_pieces, own_pieces


def _blocks(program: Program) -> dict[int, int]:
    """Block rows of the loop that each step stands in."""
    found = {}
    for entry in program.schedule:
        if isinstance(entry, Segment):
            for phase in entry.phases:
                for loop in phase.loops:
                    found.update(dict.fromkeys(loop.steps, loop.block))
    return found


def _pack(pieces: Pieces) -> Packing:
    return pack([piece for _, piece in pieces]) if pieces else Packing((), 0)


def _library_bytes(program: Program, rows: Sequence[int], row_bytes: Sequence[int]) -> int:
    """Most bytes of torch-owned values alive at one time."""
    last: dict[int, int] = {slot: len(program.schedule) for slot in program.outputs}
    born: dict[int, int] = {}
    for place, entry in enumerate(program.schedule):
        steps = [entry] if isinstance(entry, int) else [s for p in entry.phases for loop in p.loops for s in loop.steps]
        for step in steps:
            for slot in touched(program.steps[step]):
                if program.slots[slot].kind == "value":
                    born.setdefault(slot, place)
                    last[slot] = max(last.get(slot, 0), place)
    pieces = [Piece(rows[s] * row_bytes[s], born[s], last[s] + 1) for s in born]
    live = [sum(p.size_bytes for p in pieces if p.first <= t < p.end) for t in range(len(program.schedule))]
    return max(live, default=0)
