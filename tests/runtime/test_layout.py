"""Layouts of random programs against lives worked out another way: what meets in time never shares bytes."""

from __future__ import annotations

import pytest

from adaflex.runtime.layout import BY_COLUMN, BY_GROUP, FULL, Layout, plan_layout, touched
from adaflex.runtime.program import Program, Segment
from tests.codegen import graphs
from tests.codegen.lowered import program_of

SEEDS = (2, 8, 11, 15, 25, 10_001, 10_004, 10_008, 10_012, 10_019)


def times(program: Program, layout: Layout) -> list[tuple[int, int, int, int]]:
    """(step, segment, time in shared memory, time of a thread): threads meet after a step by column, after a phase by
    row, after a segment by group. A loop is walked again for each block, so its steps share one thread time."""
    found, shared, loops, segment = [], 0, 0, 0
    for entry in program.schedule:
        shared += 1
        if not isinstance(entry, Segment):
            loops += 1
            found.append((entry, -1, shared, loops))
            continue
        mode = layout.modes[segment].mode
        for phase in entry.phases:
            shared += mode != BY_GROUP
            for loop in phase.loops:
                loops += 1
                for step in loop.steps:
                    shared += mode == BY_COLUMN
                    found.append((step, segment, shared, loops))
        segment += 1
    return found


def collisions(program: Program, layout: Layout) -> list[tuple[int, int]]:
    """Pairs of local slots that are alive at one time and share bytes."""
    lives: dict[int, list[int]] = {}
    own: dict[int, bool] = {}
    for step, segment, shared, thread in times(program, layout):
        for slot in touched(program.steps[step]):
            if program.slots[slot].kind == "local":
                own[slot] = segment >= 0 and layout.windows[segment][slot] != FULL
                lives.setdefault(slot, []).append(thread if own[slot] else shared)
    sizes = {slot: piece.size_bytes for slot, piece in (*layout.shared_pieces, *layout.thread_pieces)}
    found = []
    for a in lives:
        for b in lives:
            if a >= b or own[a] != own[b] or (own[a] and program.slots[a].window == program.slots[b].window == "block"):
                continue  # within a loop, blocks live from step to step: checked by running them
            meet = min(lives[a]) <= max(lives[b]) and min(lives[b]) <= max(lives[a])
            first, second = layout.offsets[a], layout.offsets[b]
            if meet and first < second + sizes[b] and second < first + sizes[a]:
                found.append((a, b))
    return found


def problems(seed: int) -> list[str]:
    """Collisions in every mode and number of threads."""
    case = graphs.graph(seed)
    program, _ = program_of(case.capture, case.weights)
    found = []
    for batch in (2, 5, 8) if case.symbolic else (4,):
        for threads, whole in ((1, False), (2, False), (3, False), (5, False), (1, True)):
            layout = plan_layout(program, dict.fromkeys(program.symbols, batch), threads, 100, whole)
            bad = collisions(program, layout)
            found += [f"seed {seed}, batch {batch}, {threads} threads: slots {pair}" for pair in bad]
            if layout.arena_bytes < layout.shared_bytes + threads * layout.thread_bytes and not whole:
                found.append(f"seed {seed}: the arena is too small")
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_what_lives_at_one_time_lies_apart(seed: int) -> None:
    assert not problems(seed)
