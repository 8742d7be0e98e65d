"""The menu: every kernel family, in the order in which tables list them. Adding one is a line here.

In: the family files. Out: ``MENU``, which scoring, rewriting, packing and lowering are handed.
"""

from __future__ import annotations

from adaflex.codegen.kernels import bf16, embed8, embed16, embed32, fp32, w4, w4a8, w8, w8a8
from adaflex.codegen.kernels.family import Kernel

MENU: tuple[Kernel, ...] = (fp32, bf16, w8a8, w8, w4a8, w4, embed32, embed16, embed8)
