"""What generated code needs of a kernel family, beyond what scoring needs.

In: nothing. Out: the protocol that every family file fulfils.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from adaflex.codegen.kernels.call import Call
from adaflex.passes.rewrite import Encoded, Family
from adaflex.solver.table import Encoding


class Kernel(Family, Protocol):
    """A family file: how a weight is stored, what it computes, and which function of the kernel library reads it."""

    bits: int  # of a stored weight, scales not counted; 32 where nothing is rounded

    def supports(self, shape: Sequence[int], encoding: Encoding) -> bool:
        """Whether a kernel reads this encoding of a weight of this shape; ``offers`` lists those worth scoring."""

    def unpack(self, block: Tensor, shape: Sequence[int], encoding: Encoding) -> Encoded:
        """The inverse of ``pack``."""

    def form(self, encoding: Encoding) -> str:
        """The activation form its kernel reads: "f32", "bf16", "u8t", "u8g64", ... with "-h128" where rotated."""

    def call(self, encoding: Encoding, columns: int, rows: int) -> Call:
        """The kernel and the parts of the packed block, for a weight [rows, columns]."""


def kernel(menu: Sequence[Kernel], name: str) -> Kernel:
    """The family of that name; KeyError where the menu has none."""
    for entry in menu:
        if entry.name == name:
            return entry
    raise KeyError(f"no kernel family '{name}' on the menu")
