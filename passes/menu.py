"""What the scorer needs to know of a kernel family, without knowing any: the menu is handed in by the caller.

In: nothing. Out: the protocol that every file in codegen/kernels fulfils, and the values that pass through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from adaflex.solver.table import Encoding, Site

TIED = "embedding+linear"  # a site's op: a table of embeddings that is a linear's weight too


@dataclass(frozen=True)
class Machine:
    """What decides whether a kernel can run here, and how fast."""

    isa: str  # "avx512", "avx2" or "portable"
    threads: int
    device: str = "cpu"
    name: str = ""
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """One weight tensor as a family stores it, before packing: exact, device independent.

    ``parts`` maps names ("codes", "scale", "zero", ...) to tensors in the weight's own [out, in] orientation.
    """

    encoding: Encoding
    shape: tuple[int, ...]
    parts: Mapping[str, Tensor]


class Family(Protocol):
    """One way to store and compute with a weight tensor; a file in codegen/kernels."""

    name: str
    ops: tuple[str, ...]  # site ops it serves: "linear", "embedding", "conv2d"

    def offers(self, site: Site, machine: Machine) -> Sequence[Encoding]:
        """The encodings for which a kernel exists for this site here."""

    def encode(self, weight: Tensor, encoding: Encoding, gram: Tensor | None) -> Encoded:
        """Store ``weight`` [out, in] fp32; ``gram`` [in, in] fp32 is sum x xᵀ over calibration rows, for repair."""

    def decode(self, encoded: Encoded) -> Tensor:
        """The dense fp32 weight [out, in] the stored one stands for, in the model's own basis."""

    def reference(self, x: Tensor, encoded: Encoded, bias: Tensor | None) -> Tensor:
        """The op on ``x`` in plain ATen, with the arithmetic of the kernel (activation rounding included)."""

    def size_bytes(self, shape: Sequence[int], encoding: Encoding) -> int:
        """Exact stored bytes, scales and padding included: what ``pack`` returns is this long."""

    def pack(self, encoded: Encoded) -> Tensor:
        """The physical bytes, uint8 [size_bytes], in the layout that the kernels of every instruction set read."""


Menu = tuple[Family, ...]


def family(menu: Menu, name: str) -> Family:
    """The family of that name; KeyError where the menu has none."""
    for entry in menu:
        if entry.name == name:
            return entry
    raise KeyError(f"no kernel family '{name}' on the menu")
