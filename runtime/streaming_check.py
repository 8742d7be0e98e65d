"""Checks that the tier schedule of a program read from a file serves every streamed constant, in time and in bounds.

In: a ``Program`` whose tables are sound, the streamed bytes in the file. Out: nothing, or ``ArtifactError``.
"""

from __future__ import annotations

from collections.abc import Iterator

from adaflex.runtime.extents import fault
from adaflex.runtime.layout import touched
from adaflex.runtime.program import GemmStep, Program
from adaflex.runtime.stream import PAGE, padded


def check_streamed(program: Program, streamed_bytes: int) -> None:
    """Raise where a block lies outside the file, comes too late for a step, or could never be read."""
    _check_blocks(program, streamed_bytes)
    home = _homes(program)
    for entry, steps in enumerate(_entries(program)):
        for step in steps:
            for slot in touched(program.steps[step]):
                if program.slots[slot].kind == "constant" and program.slots[slot].constant in home:
                    _check_read(program, entry, step, slot, home[program.slots[slot].constant])


def _check_blocks(program: Program, streamed_bytes: int) -> None:
    at, last = 0, 0
    for number, block in enumerate(program.blocks):
        where = f"block {number} of the streamed weights"
        if not last <= block.last < len(program.schedule) or block.first > block.last:
            raise fault(f"{where} is used from entry {block.first} to {block.last} of the schedule, out of order")
        last = block.last
        if not block.size_bytes:
            continue
        if block.offset % PAGE or block.offset < at or block.offset + padded(block.size_bytes) > streamed_bytes:
            raise fault(f"{where} of {block.size_bytes} bytes begins at byte {block.offset} of {streamed_bytes}")
        at = block.offset + padded(block.size_bytes)
        if number >= 2 and program.blocks[number - 2].last >= block.first:
            raise fault(f"{where} would be waited for before there is room for it")
    if at != streamed_bytes:
        raise fault(f"the blocks of the streamed weights end at byte {at} of {streamed_bytes}")


def _homes(program: Program) -> dict[int, int]:
    """The block of each streamed constant."""
    found = {}
    for number, constant in enumerate(program.constants):
        if constant.tier == "memory":
            continue
        end = constant.offset + constant.size_bytes
        inside = [
            place
            for place, block in enumerate(program.blocks)
            if block.offset <= constant.offset and end <= block.offset + block.size_bytes and block.size_bytes
        ]
        if len(inside) != 1:
            raise fault(f"constant {number} is streamed and lies in no block of the streamed weights")
        found[number] = inside[0]
    return found


def _check_read(program: Program, entry: int, step: int, slot: int, block: int) -> None:
    made = program.steps[step]
    if not isinstance(made, GemmStep) or made.weight != slot:
        raise fault(f"step {step} reads a streamed constant otherwise than as the weight of a product")
    if not program.blocks[block].first <= entry <= program.blocks[block].last:
        raise fault(f"step {step} reads a streamed constant outside of the entries in which it is there")


def _entries(program: Program) -> Iterator[list[int]]:
    for entry in program.schedule:
        yield [entry] if isinstance(entry, int) else [s for p in entry.phases for l in p.loops for s in l.steps]
