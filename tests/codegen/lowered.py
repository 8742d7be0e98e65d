"""Lowers a capture under chosen encodings and packs its weights: what tests of codegen start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from adaflex.codegen.classify import linear_of, tensor
from adaflex.codegen.draft import Assignment, ConstantUse
from adaflex.codegen.finish import finish
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.codegen.lower import lower
from adaflex.passes.capture import Capture
from adaflex.runtime.program import Program
from adaflex.solver.table import Encoding

Pick = Callable[[tuple[int, int]], Encoding]  # for a weight [N, K]
FP32 = Encoding("fp32")


def fp32(shape: tuple[int, int]) -> Encoding:
    return FP32


def assignments(capture: Capture, pick: Pick) -> dict[str, Assignment]:
    constants = {constant.node for constant in capture.constants}
    made: dict[str, Assignment] = {}
    for node in capture.graph.graph.nodes:
        if node.op == "placeholder" and node.name in constants:
            node.meta["constant"] = True
    for node in capture.graph.graph.nodes:
        parts = linear_of(node)
        if parts is None or parts.weight.name in made:
            continue
        value = tensor(parts.weight)
        assert value is not None
        n, k = (int(size) for size in (reversed(value.shape) if parts.transposed else value.shape))
        encoding = pick((n, k))
        family = kernel(MENU, encoding.family)
        call = family.call(encoding, k, n)
        made[parts.weight.name] = Assignment(encoding, family.form(encoding), family.size_bytes((n, k), encoding), call)
    return made


def program_of(capture: Capture, weights: Sequence[Tensor], pick: Pick = fp32) -> tuple[Program, Tensor]:
    """The program and its constants' bytes."""
    draft = lower(capture, assignments(capture, pick))
    by_node = {constant.node: weight for constant, weight in zip(capture.constants, weights, strict=True)}

    def pack(use: ConstantUse) -> Any:
        assert use.encoding is not None
        family = kernel(MENU, use.encoding.family)
        weight = by_node[use.node].detach().float()
        return family.pack(family.encode(weight.t().contiguous() if use.transposed else weight, use.encoding, None))

    program, made = finish(draft, by_node, {constant.node: constant.name for constant in capture.constants}, pack)
    return program, made.resident
