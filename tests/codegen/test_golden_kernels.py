"""What each family on the menu stores and calls, against one golden file per family: a change of bytes is seen."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from adaflex.codegen.kernels.family import Kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.menu import Encoded
from adaflex.solver.table import Encoding, Site
from tests import golden_files
from tests.codegen.plans import legal

SHAPE = (40, 128)
FOLDER = golden_files.FOLDER / "kernels"


def weight() -> Tensor:
    """Multiples of 1/64 by a formula, so that no generator and no instruction set decides what they are."""
    place = torch.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    return ((place * 7919 + place // 128 * 31) % 509 - 254).float() / 64


def described(entry: Kernel) -> str:
    """Per legal encoding: activation form, call, stored bytes and their digest."""
    lines = [f"{entry.name}: {', '.join(entry.ops)}, a weight of {SHAPE[0]} x {SHAPE[1]}"]
    for op in entry.ops:
        for encoding in legal(entry, Site("w", op, weight().numel(), weight().numel() * 4, shape=SHAPE)):
            lines += form_of(entry, encoding)
    return "\n".join(lines) + "\n"


def form_of(entry: Kernel, encoding: Encoding) -> list[str]:
    encoded: Encoded = entry.encode(weight(), encoding, None)
    block = entry.pack(encoded)
    call = entry.call(encoding, SHAPE[1], SHAPE[0])
    parts = ", ".join(f"{name} at {offset}" for name, offset in call.parts)
    digest = hashlib.sha256(block.numpy().tobytes()).hexdigest()[:16]
    return [
        f"{encoding.label()}",
        f"  reads {entry.form(encoding) or 'row numbers'}",
        f"  calls {call.function} of {call.header} with {parts}",
        f"  stores {len(block)} bytes, sha256 {digest}",
    ]


@pytest.mark.parametrize("entry", MENU, ids=lambda entry: entry.name)
def test_family(entry: Kernel, request: pytest.FixtureRequest) -> None:
    golden_files.check(f"kernels/{entry.name}.txt", described(entry), request.config)


def test_no_golden_file_is_left_over() -> None:
    known = {entry.name for entry in MENU}
    left = sorted(path.name for path in FOLDER.glob("*.txt") if path.stem not in known)
    assert not left, f"no family on the menu is called like these; delete them or add the family: {left}"
