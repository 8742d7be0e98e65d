"""Orders a draft's steps into segments, phases and loops, and says how much of each slot must be live.

In: a ``Draft``. Out: the schedule and the slots with their windows.

A segment ends at a library step, where a step reads rows of another group that the segment itself made, and at the
border of two blocks of prefetch where streamed weights come or go. A phase ends where a step reads rows other than its
own that this phase made. A loop holds steps that walk the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from adaflex.codegen.draft import Draft, StepRows
from adaflex.codegen.sizes import is_multiple, known, same
from adaflex.runtime.program import (
    AttentionStep,
    GemmStep,
    LibraryStep,
    Loop,
    Phase,
    RowStep,
    Segment,
    Slot,
    Step,
    WindowStep,
)
from adaflex.runtime.region import Size

CACHE_BYTES = 512 << 10  # what a block's rows may fill of a core's second-level cache
BLOCK_ROWS = (8, 64)  # smallest and largest block: whole tiles of 8 rows


@dataclass
class _Loop:
    rows: Size
    steps: list[int]
    whole: bool  # walked at once: attention packs keys and values for all its rows


@dataclass
class _Segment:
    groups: Size
    phases: list[list[_Loop]] = field(default_factory=lambda: [[]])
    made: set[int] = field(default_factory=set)  # slots written in this segment
    made_now: set[int] = field(default_factory=set)  # slots written in this phase
    block: int = -1  # of prefetch, that it is in by now


def schedule(draft: Draft) -> tuple[tuple[Segment | int, ...], tuple[Slot, ...]]:
    """The schedule of a draft's steps, and its slots with their windows."""
    entries: list[_Segment | int] = []
    batch = common_lead(draft)
    current: _Segment | None = None
    borders = _borders(draft)
    for number, step in enumerate(draft.steps):
        walk, block = draft.walks[number], block_of(draft, step)
        if isinstance(step, LibraryStep) or walk is None:
            entries.append(number)
            current = None
            continue
        if current is not None and _is_border(current.block, block, borders):
            current = None
        if current is None or not _belongs(current, draft, number, walk, batch):
            current = _Segment(_groups(walk, batch))
            entries.append(current)
        current.block = max(block, current.block)
        _append(current, draft, number, walk)
    placed = [_finish(entry, draft) if isinstance(entry, _Segment) else entry for entry in entries]
    return tuple(placed), _windows(draft, placed)


def block_of(draft: Draft, step: Step) -> int:
    """The block of prefetch whose weight a step reads; -1 where it reads none."""
    return draft.constants[draft.slots[step.weight].constant].block if isinstance(step, GemmStep) else -1


def streamed_blocks(draft: Draft) -> set[int]:
    """Blocks of prefetch that have streamed weights."""
    return {use.block for use in draft.constants if use.tier != "memory"}


def _borders(draft: Draft) -> set[int]:
    """Blocks that begin and end with a segment of their own: streamed ones, and those whose end lets one be read."""
    streamed = streamed_blocks(draft)
    count = 1 + max((use.block for use in draft.constants), default=0)
    return {(block - back) % count for block in streamed for back in (0, 1, 2)}


def _is_border(left: int, right: int, borders: set[int]) -> bool:
    return left != right and min(left, right) >= 0 and bool({left, right} & borders)


def common_lead(draft: Draft) -> Size:
    """The batch: the first axis of the attention steps, else of most steps."""
    attention = [
        walk.lead
        for step, walk in zip(draft.steps, draft.walks, strict=True)
        if isinstance(step, AttentionStep) and walk
    ]
    leads = attention or [walk.lead for walk in draft.walks if walk is not None]
    counted = [(sum(same(lead, other) for other in leads), -place) for place, lead in enumerate(leads)]
    return leads[-max(counted)[1]] if leads else 1


def _groups(walk: StepRows, batch: Size) -> Size:
    """How many groups a segment that begins with this step has."""
    return batch if is_multiple(walk.rows, batch) else walk.lead


def _belongs(segment: _Segment, draft: Draft, number: int, walk: StepRows, batch: Size) -> bool:
    """Can the step run group by group with the segment?"""
    if not same(segment.groups, _groups(walk, batch)) or not is_multiple(walk.rows, segment.groups):
        return False
    aligned_lead = same(walk.lead, segment.groups) or known(segment.groups) == 1
    for read in draft.reads[number]:
        if read.slot in segment.made and not read.aligned and not (read.local and aligned_lead):
            return False
    return True


def _append(segment: _Segment, draft: Draft, number: int, walk: StepRows) -> None:
    step = draft.steps[number]
    phase = segment.phases[-1]
    meets = any(read.slot in segment.made_now and not read.aligned for read in draft.reads[number])
    other_rows = any(
        read.slot in segment.made_now and not same(draft.slots[read.slot].rows, walk.rows)
        for read in draft.reads[number]
    )
    if meets or other_rows:
        segment.phases.append([])
        segment.made_now.clear()
        phase = segment.phases[-1]
    whole = isinstance(step, AttentionStep)
    last = phase[-1] if phase else None
    if last is not None and same(last.rows, walk.rows) and last.whole == whole and not whole:
        last.steps.append(number)
    else:
        phase.append(_Loop(walk.rows, [number], whole))
    for slot in written(step):
        segment.made.add(slot)
        segment.made_now.add(slot)


def written(step: Step) -> tuple[int, ...]:
    """The slots a step writes."""
    if isinstance(step, RowStep | GemmStep):
        return tuple(store.slot for store in step.region.stores)
    if isinstance(step, AttentionStep):
        return (step.out.slot,)
    if isinstance(step, WindowStep):
        return (step.out,)
    return tuple(slot for slot in step.outputs if slot >= 0)


def _finish(segment: _Segment, draft: Draft) -> Segment:
    phases = [
        Phase(tuple(Loop(tuple(loop.steps), loop.rows, 0 if loop.whole else _block(loop, draft)) for loop in phase))
        for phase in segment.phases
        if phase
    ]
    return Segment(segment.groups, tuple(phases))


def _block(loop: _Loop, draft: Draft) -> int:
    """Rows of a block: as many whole tiles as keep what the loop writes in cache."""
    width = 0
    for number in loop.steps:
        for slot in written(draft.steps[number]):
            width += known(draft.slots[slot].row_bytes) or 4096
    least, most = BLOCK_ROWS
    return max(least, min(most, CACHE_BYTES // max(width, 1) // 8 * 8))


def _windows(draft: Draft, entries: Sequence[Segment | int]) -> tuple[Slot, ...]:
    """A slot used in one loop alone, row by row, needs a block of rows; in one segment alone, a thread's groups."""
    places: dict[int, set[tuple[int, int, int]]] = {}
    rowwise: dict[int, bool] = {}
    for place, phase, loop, number in _walk(entries):
        step = draft.steps[number]
        for made in written(step):
            places.setdefault(made, set()).add((place, phase, loop))
        for read in draft.reads[number]:
            places.setdefault(read.slot, set()).add((place, phase, loop))
            rowwise[read.slot] = rowwise.get(read.slot, True) and read.aligned
    slots: list[Slot] = []
    for number, slot in enumerate(draft.slots):
        used = places.get(number, set())
        window = "full"
        if slot.kind == "local" and used and all(isinstance(entries[place], Segment) for place, _, _ in used):
            blocked = len(used) == 1 and rowwise.get(number, True) and _is_blocked(entries, next(iter(used)))
            grouped = len({place for place, _, _ in used}) == 1
            window = "block" if blocked else "group" if grouped else "full"
        slots.append(replace(slot, window=window))
    return tuple(slots)


def _is_blocked(entries: Sequence[Segment | int], at: tuple[int, int, int]) -> bool:
    segment = entries[at[0]]
    return isinstance(segment, Segment) and segment.phases[at[1]].loops[at[2]].block > 0


def _walk(entries: Sequence[Segment | int]) -> list[tuple[int, int, int, int]]:
    """(entry, phase, loop, step) of every step."""
    found = []
    for place, entry in enumerate(entries):
        if isinstance(entry, int):
            found.append((place, 0, 0, entry))
            continue
        for p, phase in enumerate(entry.phases):
            for l, loop in enumerate(phase.loops):
                found += [(place, p, l, number) for number in loop.steps]
    return found
