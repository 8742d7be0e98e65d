"""The answer of the packer.

In: made by greedy.py, search.py and spaces.py. Out: read by the runtime's layout, reports and the shell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PackStatus = Literal["fits", "optimal", "packed", "infeasible", "unknown"]


@dataclass(frozen=True)
class Packing:
    """Offsets for buffers, or the proof that there are none.

    ``fits``: within the capacity asked; ``optimal``: no lower height exists; ``packed``: a valid packing, not proven
    lowest; ``infeasible``: proven not to fit, ``blame`` names buffers that cannot be together; ``unknown``: the limit
    came first, the packing (where there is one) is valid but over the capacity.
    """

    status: PackStatus
    offsets: tuple[tuple[str, int], ...]  # by buffer id, in the order given
    height: int  # bytes from 0 to the highest end
    bound: int  # no packing is lower: the most bytes alive at once, or more where proven
    capacity: int | None = None
    blame: tuple[str, ...] = ()
    reason: str = ""
    nodes: int = 0
    seconds: float = 0.0
    method: str = ""
    spaces: tuple[tuple[str, str], ...] = ()  # (buffer id, address space) where there are several
    in_place: tuple[tuple[str, str], ...] = ()  # pairs (input, output) that share a place, where there was a choice
    order: tuple[str, ...] = ()  # operators in the order the offsets are for, where an order was chosen

    def offset_of(self, buffer: str) -> int:
        """The offset of a buffer; KeyError where it has none."""
        return dict(self.offsets)[buffer]
