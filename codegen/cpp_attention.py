"""Prints attention steps: a loop over groups and heads around the kernel library's attention.

In: an ``AttentionStep``. Out: the C++ text of its function, and of the scratch it needs.
"""

from __future__ import annotations

from adaflex.codegen.cpp_region import C_TYPE, size_text
from adaflex.runtime.program import AttentionStep, Operand, Program


def attention_scratch(step: AttentionStep, program: Program) -> str:
    """C++ text of the bytes of scratch one thread needs."""
    keys = size_text(step.keys, program.symbols)
    kind = "true" if step.bf16 else "false"
    return f"af::attention_scratch_bytes({keys}, {step.width}, {kind})"


def attention_text(step: AttentionStep, program: Program) -> list[str]:
    """Lines inside the function: the rows [r0, r1) are query rows of all groups, one group after the other."""
    return [""]


def pointer(operand: Operand, program: Program) -> str:
    """The operand's first element."""
    kind = C_TYPE[program.slots[operand.slot].form]
    return f"(({kind}*)t.p[{operand.slot}] + {size_text(operand.offset, program.symbols)})"
