"""Prints attention steps: loops over groups and heads around the kernel library's attention.

In: an ``AttentionStep``. Out: the C++ text inside its function, and of the scratch it needs.
"""

from __future__ import annotations

from adaflex.codegen.cpp_region import C_TYPE, size_text
from adaflex.runtime.program import AttentionStep, Operand, Program


def attention_scratch(step: AttentionStep, program: Program) -> str:
    """C++ text of the bytes of scratch one thread needs."""
    keys = size_text(step.keys, program.symbols)
    return f"af::attention_scratch_bytes({keys}, {step.width}, {truth(step.bf16)})"


def attention_text(step: AttentionStep, program: Program) -> list[str]:
    """The rows [r0, r1) are query rows of all groups, one group after the other; keys are packed once per kv head."""
    text = _Text(program)
    bf16 = truth(step.bf16)
    kv_heads, heads = text.size(step.kv_heads), text.size(step.heads)
    return [
        f"const long Q = {text.size(step.queries)}, T = {text.size(step.keys)}, D = {step.width};",
        f"const long KH = {kv_heads}, per = {heads} / KH;",
        f"const af::Attention a{{Q, T, {step.width}, {step.scale!r}f, {truth(step.causal)}}};",
        f"char* const packed = t.scratch + af::attention_row_bytes(T, D, {bf16});",
        "for (long b = r0 / Q; b * Q < r1; ++b) {",
        "const long q0 = af::size_max(r0 - b * Q, 0), q1 = af::size_min(r1 - b * Q, Q);",
        "for (long g = 0; g < KH; ++g) {",
        f"af::pack_kv<{bf16}>({text.head(step.k, 'g')}, {text.stride(step.k, 2)},",
        f"{text.head(step.v, 'g')}, {text.stride(step.v, 2)}, T, D, packed, 0, T);",
        "for (long h = g * per; h < (g + 1) * per; ++h)",
        f"af::attend_rows<{bf16}>(a, {text.head(step.q, 'h')}, {text.stride(step.q, 2)}, {text.mask(step.mask)},",
        f"packed, {text.head(step.out, 'h', written=True)}, {text.stride(step.out, 2)}, q0, q1, t.scratch);",
        "}",
        "}",
    ]


class _Text:
    """C++ text of operands."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def size(self, size: object) -> str:
        """A size."""
        return size_text(size, self.program.symbols)  # type: ignore[arg-type]

    def stride(self, operand: Operand, axis: int) -> str:
        """The stride along an axis, in elements."""
        return self.size(operand.strides[axis])

    def head(self, operand: Operand, head: str, *, written: bool = False) -> str:
        """Pointer to the first row of group ``b`` and this head."""
        kind = C_TYPE[self.program.slots[operand.slot].form]
        const = "" if written else "const "
        place = f"{self.size(operand.offset)} + b * {self.stride(operand, 0)} + {head} * {self.stride(operand, 1)}"
        return f"({const}{kind}*)t.p[{operand.slot}] + {place}"

    def mask(self, mask: Operand | None) -> str:
        """The mask of one head."""
        if mask is None:
            return "af::no_mask()"
        return f"af::mask_of({self.head(mask, 'h')}, {self.stride(mask, 2)}, {self.stride(mask, 3)})"


def truth(value: bool) -> str:
    """A bool in C++."""
    return "true" if value else "false"
