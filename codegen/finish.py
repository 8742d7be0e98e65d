"""Turns a draft into a program with its bytes: schedule, windows, and every constant at its offset.

In: a ``Draft``, the weights of one model, a packer for encoded weights. Out: a ``Program`` and its constants' bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from adaflex.codegen.draft import ConstantUse, Draft
from adaflex.codegen.schedule import schedule
from adaflex.runtime.program import Constant, Program

ALIGNMENT = 64
TAIL_BYTES = 64  # kernels may read up to a vector beyond the last constant

Packer = Callable[[ConstantUse], Tensor]  # the physical bytes of an encoded weight, uint8 [size_bytes]


def finish(
    draft: Draft, weights: Mapping[str, Tensor], names: Mapping[str, str], packer: Packer
) -> tuple[Program, Tensor]:
    """The program and its constants, uint8.

    ``weights`` and ``names`` map placeholders to tensors and to qualified names.
    """
    program, offsets, total = place(draft, names)
    block = torch.zeros(total + ALIGNMENT, dtype=torch.uint8)
    skip = -block.data_ptr() % ALIGNMENT
    block = block[skip : skip + total]
    constants = []
    for use, constant, offset in zip(draft.constants, program.constants, offsets, strict=True):
        raw = packer(use) if use.encoding is not None else weights[use.node].detach().contiguous()
        data = raw.reshape(-1).view(torch.uint8)
        assert data.numel() == use.size_bytes, (use, data.numel())
        block[offset : offset + use.size_bytes] = data
        digest = hashlib.sha256(data.numpy().tobytes()).hexdigest()
        constants.append(Constant(constant.name, offset, use.size_bytes, use.form, use.shape, constant.tier, digest))
    return _with_constants(program, tuple(constants)), block


def place(draft: Draft, names: Mapping[str, str]) -> tuple[Program, list[int], int]:
    """The program without bytes, the offset of each constant, and the bytes of all."""
    entries, slots = schedule(draft)
    offsets, offset = [], 0
    for use in draft.constants:
        offsets.append(offset)
        offset += -(-use.size_bytes // ALIGNMENT) * ALIGNMENT
    constants = tuple(
        Constant(names.get(use.node, use.node), at, use.size_bytes, use.form, use.shape)
        for use, at in zip(draft.constants, offsets, strict=True)
    )
    program = Program(
        symbols=draft.symbols,
        sources=draft.sources,
        inputs=draft.inputs,
        input_names=draft.input_names,
        outputs=draft.outputs,
        slots=slots,
        constants=constants,
        steps=draft.steps,
        schedule=entries,
        ranges=draft.ranges,
        hints=draft.hints,
    )
    return program, offsets, offset + TAIL_BYTES


def _with_constants(program: Program, constants: tuple[Constant, ...]) -> Program:
    from dataclasses import replace

    return replace(program, constants=constants)
