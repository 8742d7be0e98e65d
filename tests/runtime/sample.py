"""A small hand-made program with every kind of step, its weights, and an artifact of it: what artifact tests save."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaflex.codegen.products import product_reads
from adaflex.runtime import artifact, artifact_file
from adaflex.runtime.artifact_check import KernelLibrary
from adaflex.runtime.program import (
    Argument,
    AttentionStep,
    Constant,
    GemmStep,
    LibraryStep,
    Loop,
    Operand,
    Part,
    Phase,
    Program,
    RowStep,
    Segment,
    Slot,
)
from adaflex.runtime.region import Load, Op, Region, Store

LIBRARY = KernelLibrary(("gemm_float.h", "gemm_w8a8.h"), product_reads)
MANIFEST = {"schema": 1, "plan": {"choices": [1, 2, 3], "bound": 0.25}, "machine": "here"}


def program() -> Program:
    """y = linear(x), z = y + attention(y, y, y), then sorted by torch."""
    b = "s0"
    slots = (
        Slot("input", "f32", b, 8, 32, (b, 8)),
        Slot("constant", "u8", 1, 1024, 1024, constant=0),
        Slot("local", "f32", b, 8, 32, (b, 8), window="group"),
        Slot("local", "f32", b, 8, 32, (b, 8)),
        Slot("constant", "f32", 1, 8, 32, (8,), constant=1),
        Slot("value", "f32", b, 8, 32, (b, 8)),
        Slot("value", "i64", b, 8, 64, (b, 8)),
    )
    view = Operand(2, (8, 8, 8, 1))
    linear = Region((b,), 8, (), (Op("acc"),), (Store(0, 2),))
    add = Region(
        (b,),
        8,
        (Load(2, (8,), 1), Load(4, (0,), 1), Load(3, (8,), 1)),
        (
            Op("load", (0,)),
            Op("load", (1,)),
            Op("load", (2,)),
            Op("add", (0, 1)),
            Op("add", (3, 2)),
            Op("const", (), -1e-3),
        ),
        (Store(4, 3),),
    )
    steps = (
        GemmStep(0, 1, "gemm_float.h", "gemm_f32", (Part("b", 0),), 8, 8, linear),
        AttentionStep(view, view, view, None, Operand(3, (8, 8, 8, 1)), b, 1, 1, 1, 1, 8, 0.5, False, False),
        RowStep(add, "add"),
        LibraryStep(
            "aten.sort.default",
            (Argument("slot", slot=3), Argument("int", size=-1), Argument("bool", number=1.0)),
            (),
            (5, 6),
        ),
    )
    loops = (Loop((0,), b, 8), Loop((1,), b, 0), Loop((2,), b, 8))
    return Program(
        symbols=(b,),
        sources=((0, 0),),
        inputs=(0,),
        input_names=("x",),
        outputs=(5, 6),
        slots=slots,
        constants=(
            Constant("first.weight", 0, 1024, "fp32", (8, 8)),
            Constant("bias", 1024, 32, "f32", (8,)),
        ),
        steps=steps,
        schedule=(Segment(b, (Phase(loops),)), 3),
        ranges=((1, 64),),
        hints=(4,),
        notes=(("door", "export"),),
    )


def weights() -> Tensor:
    """The constants' bytes: two tensors, gaps and tail zero."""
    made = torch.zeros(1152, dtype=torch.uint8)
    made[:1056] = torch.arange(1056).remainder(251).to(torch.uint8)
    return made


def save(path: Path, native: dict[str, bytes] | None = None) -> str:
    return artifact.write(path, program(), weights(), MANIFEST, native)


def load(path: Path, trust: Any = None) -> artifact.Artifact:
    return artifact.read(path, LIBRARY, trust)


def header(raw: bytes) -> Any:
    """The header of a file's bytes, parsed."""
    size = artifact_file.PREAMBLE.unpack(raw[:64])[3]
    return json.loads(raw[64 : 64 + size])


def signed(raw: bytes, text: bytes, version: int = artifact_file.VERSION) -> bytes:
    """The file with another header, its digest and sizes right: what a hostile writer can always do."""
    old = artifact_file.PREAMBLE.unpack(raw[:64])[3]
    text = text.ljust(artifact_file.page(64 + len(text)) - 64)
    rest = raw[64 + old :]
    total = 64 + len(text) + len(rest)
    preamble = artifact_file.Preamble(version, len(text), total, hashlib.sha256(text).digest())
    return artifact_file.write_preamble(preamble) + text + rest


def forged(raw: bytes, change: Callable[[Any], None]) -> bytes:
    """The file with its header changed and signed again."""
    value = header(raw)
    change(value)
    return signed(raw, json.dumps(value).encode())
