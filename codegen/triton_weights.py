"""The weights of a program's products as the GPU reads them, from the bytes that the CPU's kernels read.

In: a ``Program``, its constants' bytes, the menu. Out: int4 weights repacked for the templates, all others decoded to
fp32 for torch's product; and the program with those constants dropped, so that they are not stored twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adaflex.codegen.hadamard import rotate
from adaflex.codegen.kernels.family import Kernel, kernel
from adaflex.codegen.triton import is_int4
from adaflex.codegen.triton_templates.w4_layout import GROUPS, Packed, pack
from adaflex.runtime.program import Constant, GemmStep, Program, Slot
from adaflex.runtime.region import evaluate
from adaflex.solver.table import Encoding

ALIGNMENT = 64


@dataclass(frozen=True)
class Dense:
    """A decoded weight, fp32 [N, K], in the basis of the activations that its kernel reads."""

    values: Tensor

    @property
    def size_bytes(self) -> int:
        """Stored bytes."""
        return 4 * self.values.numel()


Weight = Packed | Dense


def encoding_of(label: str, menu: Sequence[Kernel]) -> Encoding:
    """The encoding that a constant's form names (``Encoding.label``); KeyError for an unknown family."""
    family, *rest = label.split("-")
    numbers = {part[0]: int(part[1:]) for part in rest if part[1:].isdigit()}
    return Encoding(
        family,
        kernel(menu, family).bits,
        numbers.get("g", 0),
        "asym" not in rest,
        numbers.get("h", 0),
        "compensated" if "comp" in rest else "nearest",
    )


def product_weights(program: Program, weights: Tensor, menu: Sequence[Kernel], device: str) -> dict[int, Weight]:
    """The weight of each product step, on ``device``; equal constants are shared."""
    made: dict[int, Weight] = {}
    found: dict[int, Weight] = {}
    for number, step in enumerate(program.steps):
        if isinstance(step, GemmStep):
            constant = program.slots[step.weight].constant
            if constant not in made:
                made[constant] = _weight(program.constants[constant], step, weights, menu, device)
            found[number] = made[constant]
    return found


def _weight(constant: Constant, step: GemmStep, weights: Tensor, menu: Sequence[Kernel], device: str) -> Weight:
    encoding = encoding_of(constant.form, menu)
    family = kernel(menu, encoding.family)
    block = weights[constant.offset : constant.offset + constant.size_bytes]
    encoded = family.unpack(block, (step.n, step.k), encoding)
    if is_int4(step) and encoding.group in GROUPS and not encoding.rotation:
        parts = encoded.parts
        packed = pack(parts["codes"], parts["scale"], parts.get("zero"), encoding.group)
        return replace(
            packed, codes=packed.codes.to(device), scale=packed.scale.to(device), zero=packed.zero.to(device)
        )
    return Dense(rotate(family.decode(encoded).float(), encoding.rotation).to(device))


def without_products(program: Program, weights: Tensor, device: str) -> tuple[Program, Tensor]:
    """The program with the constants that only products read emptied, and the other constants' bytes on ``device``."""
    packed = {program.slots[step.weight].constant for step in program.steps if isinstance(step, GemmStep)}
    constants, pieces, offset = [], [], 0
    for number, constant in enumerate(program.constants):
        if number in packed:
            constants.append(replace(constant, offset=offset, size_bytes=0))
            continue
        data = weights[constant.offset : constant.offset + constant.size_bytes]
        padding = -len(data) % ALIGNMENT
        pieces += [data, data.new_zeros(padding)]
        constants.append(replace(constant, offset=offset))
        offset += len(data) + padding
    whole = torch.cat(pieces) if pieces else weights[:0]
    slots = tuple(
        replace(slot, rows=0, columns=0, row_bytes=0) if slot.kind == "constant" and slot.constant in packed else slot
        for slot in program.slots
    )
    return replace(program, constants=tuple(constants), slots=slots), whole.to(device)


def activations(memory: Tensor, slot: Slot, rows: int, columns: int, values: Mapping[str, int]) -> Tensor:
    """Rows in an activation form as fp32 [rows, columns], for torch's product."""
    pitch = evaluate(slot.row_bytes, values)
    data = memory.reshape(-1).view(torch.uint8)[: rows * pitch].view(rows, pitch)
    base = slot.form.partition("-")[0]
    if base in ("f32", "bf16", "f16"):
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[base]
        return data.view(dtype)[:, :columns].float()
    padded = -(-columns // 64) * 64
    groups = columns // int(base.removeprefix("u8g")) if base != "u8t" else 1
    tail = data[:, padded : padded + 8 * groups].contiguous().view(torch.float32)
    scale, low = (part.repeat_interleave(columns // groups, 1) for part in (tail[:, :groups], tail[:, groups:]))
    return data[:, :columns].float() * scale + low
