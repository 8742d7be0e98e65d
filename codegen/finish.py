"""Turns a draft into a program with its bytes: schedule, windows, and every constant at its offset.

In: a ``Draft``, the weights of one model, a packer for encoded weights. Out: a ``Program``, its ``Bytes``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adaflex.codegen.draft import ConstantUse, Draft
from adaflex.codegen.schedule import block_of, schedule, streamed_blocks
from adaflex.errors import CaptureError
from adaflex.runtime.program import Constant, Prefetch, Program, Segment

ALIGNMENT = 64
PAGE = 4096  # blocks of streamed constants begin on whole pages: direct reads need it
TAIL_BYTES = 64  # kernels may read up to a vector beyond the last constant

Packer = Callable[[ConstantUse], Tensor]  # the physical bytes of an encoded weight, uint8 [size_bytes]


@dataclass(frozen=True)
class Bytes:
    """The constants' bytes, uint8: those that lie in memory, and those that are streamed from disk."""

    resident: Tensor
    streamed: Tensor


def finish(
    draft: Draft, weights: Mapping[str, Tensor], names: Mapping[str, str], packer: Packer
) -> tuple[Program, Bytes]:
    """The program and its constants.

    ``weights`` and ``names`` map placeholders to tensors and to qualified names.
    """
    program, total = place(draft, names)
    block = torch.zeros(total + ALIGNMENT, dtype=torch.uint8)
    skip = -block.data_ptr() % ALIGNMENT
    made = Bytes(block[skip : skip + total], torch.zeros(streamed_bytes(program), dtype=torch.uint8))
    constants = []
    for use, constant in zip(draft.constants, program.constants, strict=True):
        raw = packer(use) if use.encoding is not None else weights[use.node].detach().contiguous()
        data = raw.reshape(-1).view(torch.uint8)
        assert data.numel() == use.size_bytes, (use, data.numel())
        home = made.resident if use.tier == "memory" else made.streamed
        home[constant.offset : constant.offset + use.size_bytes] = data
        constants.append(replace(constant, digest=hashlib.sha256(data.numpy().tobytes()).hexdigest()))
    return replace(program, constants=tuple(constants)), made


def place(draft: Draft, names: Mapping[str, str]) -> tuple[Program, int]:
    """The program without bytes, and how many bytes its constants take in memory."""
    entries, slots = schedule(draft)
    blocks, streamed = _blocks(draft, entries)
    constants, offset = [], 0
    for number, use in enumerate(draft.constants):
        at = streamed.get(number, offset)
        if number not in streamed:
            offset += -(-use.size_bytes // ALIGNMENT) * ALIGNMENT
        name = names.get(use.node, use.node)
        constants.append(Constant(name, at, use.size_bytes, use.form, use.shape, use.tier))
    program = Program(
        symbols=draft.symbols,
        sources=draft.sources,
        inputs=draft.inputs,
        input_names=draft.input_names,
        outputs=draft.outputs,
        slots=slots,
        constants=tuple(constants),
        steps=draft.steps,
        schedule=entries,
        ranges=draft.ranges,
        hints=draft.hints,
        blocks=blocks,
        guards=draft.guards,
    )
    return program, offset + TAIL_BYTES


def streamed_bytes(program: Program) -> int:
    """Bytes of the streamed file."""
    return max((_padded(block.offset + block.size_bytes) for block in program.blocks), default=0)


def _padded(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _blocks(draft: Draft, entries: Sequence[Segment | int]) -> tuple[tuple[Prefetch, ...], dict[int, int]]:
    """The tier schedule, and the offset of each streamed constant: block after block, each on whole pages."""
    if not streamed_blocks(draft):
        return (), {}
    spans: dict[int, list[int]] = {}
    for number, entry in enumerate(entries):
        steps = [entry] if isinstance(entry, int) else [s for p in entry.phases for loop in p.loops for s in loop.steps]
        for step in steps:
            spans.setdefault(block_of(draft, draft.steps[step]), []).append(number)
    made: list[Prefetch] = []
    offsets: dict[int, int] = {}
    start = 0
    for block in range(1 + max(use.block for use in draft.constants)):
        size = 0
        for number, use in enumerate(draft.constants):
            if use.block == block and use.tier != "memory":
                offsets[number] = start + size
                size += -(-use.size_bytes // ALIGNMENT) * ALIGNMENT
        before = made[-1].last if made else 0  # where a block has no step left
        span = spans.get(block, [before])
        made.append(Prefetch(span[0], span[-1], start if size else 0, size))
        start += _padded(size)
    _check_order(made)
    return tuple(made), offsets


def _check_order(blocks: Sequence[Prefetch]) -> None:
    """Blocks are numbered as the program uses them, and one ends before the next but one is waited for."""
    for number, block in enumerate(blocks):
        earlier = [other.last for other in blocks[:number]]
        if any(last > block.last for last in earlier):
            raise CaptureError(
                "the model uses its blocks of weights in turns, so they cannot be read ahead; drop the placement axis"
            )
        if block.size_bytes and number >= 2 and earlier[number - 2] >= block.first:
            raise CaptureError(
                "a block of weights is needed before the one before last is done; drop the placement axis"
            )
