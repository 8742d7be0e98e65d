"""Row kernels of benchmarks/gpu.py: norms, softmax, pointwise chains, with and without a quantised store.

In: sizes and a ``Report`` with the copy rate. Out: a ``Row`` each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from adaflex.codegen.scalar_ops import Writer, layer_norm, rms_norm, softmax
from adaflex.codegen.triton import Named
from adaflex.codegen.triton_build import HEAD, load, write
from adaflex.codegen.triton_launch import launch_rows
from adaflex.codegen.triton_rows import print_rows
from adaflex.runtime.program import Slot
from adaflex.runtime.region import Load, Region, Store
from benchmarks.gpu_report import Report, Row, copies, error, microseconds


def slot(form: str, rows: int, columns: int, row_bytes: int = 0) -> Slot:
    """A slot of whole rows."""
    return Slot("local", form, rows, columns, row_bytes or columns * {"f32": 4, "bf16": 2}[form])


@dataclass
class RowCase:
    """A row kernel: its region, torch's way to do the same, its floor as a share of the copy rate."""

    name: str
    build: Callable[[Writer, int, int], int]  # (writer, x, gain) -> value
    peer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    form: str = "bf16"
    floor: float = 0.85


def _rms(w: Writer, x: int, gain: int) -> int:
    return rms_norm(w, x, gain, 1e-5)


def _rms_peer(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, gain.shape, gain, 1e-5)


def _layer_peer(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, gain.shape, gain, None, 1e-5)


ROW_CASES = (
    RowCase("gelu(x) * g", lambda w, x, g: w.emit("mul", w.emit("gelu", x), g), lambda x, g: F.gelu(x) * g),
    RowCase("softmax", lambda w, x, g: softmax(w, x), lambda x, g: torch.softmax(x, -1)),
    RowCase("layer norm", lambda w, x, g: layer_norm(w, x, g, None, 1e-5), _layer_peer),
    RowCase("rms norm", _rms, _rms_peer),
    RowCase("rms norm to u8t", _rms, _rms_peer, "u8t", 0.8),
    RowCase("rms norm to u8t-h128", _rms, _rms_peer, "u8t-h128", 0.8),
)


def row_case(case: RowCase, rows: int, columns: int, report: Report) -> Row:
    """One row kernel, bf16 in."""
    w = Writer()
    value = case.build(w, w.emit("load", 0), w.emit("load", 1))
    padded = -(-columns // 64) * 64
    out = slot("bf16", rows, columns) if case.form == "bf16" else Slot("local", case.form, rows, columns, padded + 64)
    slots = (slot("bf16", rows, columns), slot("bf16", 1, columns), out)
    region = Region((rows,), columns, (Load(0, (columns,), 1), Load(1, (0,), 1)), tuple(w.ops), (Store(value, 2),))
    (kernel,) = print_rows(region, slots)
    module = load(write(HEAD + "\n\n" + kernel.text("k0")))
    gain = torch.rand(columns, device=report.device).bfloat16() + 0.5
    moved = rows * columns * 2 + rows * (columns * 2 if case.form == "bf16" else padded + 8)
    sets = []
    for _ in range(copies(moved, report.device)):
        x = torch.randn(rows, columns, device=report.device).bfloat16()
        sets.append((x, torch.full((rows * int(out.row_bytes),), 0x7B, dtype=torch.uint8, device=report.device)))

    def run(x: torch.Tensor, y: torch.Tensor) -> None:
        memory = {0: x, 1: gain, 2: y.view(torch.bfloat16) if case.form == "bf16" else y}
        launch_rows(module, Named("k0", kernel), memory.__getitem__, {})

    ours = microseconds([lambda x=x, y=y: run(x, y) for x, y in sets], report.device)
    theirs = microseconds([lambda x=x: case.peer(x, gain) for x, _ in sets], report.device)
    x, y = sets[0]
    want = case.peer(x.double(), gain.double())
    got, allowed = decoded(y.view(rows, -1), case.form, columns), 4e-3
    if case.form.endswith("h128"):
        got = turned(got)
    if case.form != "bf16":
        allowed = 1e-2
    share = moved / ours / 1e3 / report.copy_gbs
    note = "peer does not quantise" if case.form != "bf16" else ""
    floor = f"{case.floor:.0%} of copy"
    held, size = share >= case.floor, f"{rows}x{columns}"
    return Row(case.name, size, error(got, want), allowed, ours, share, theirs / ours, floor, held, note)


def decoded(data: torch.Tensor, form: str, columns: int) -> torch.Tensor:
    """A stored result as float64."""
    if form == "bf16":
        return data.view(torch.bfloat16)[:, :columns].double()
    padded = -(-columns // 64) * 64
    tail = data[:, padded : padded + 8].contiguous().view(torch.float32).double()
    return data[:, :columns].double() * tail[:, :1] + tail[:, 1:]


def turned(x: torch.Tensor) -> torch.Tensor:
    """Blocks of 128 columns times the Hadamard matrix, which is its own inverse."""
    matrix = torch.ones(1, 1, dtype=torch.float64, device=x.device)
    while len(matrix) < 128:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return (x.view(len(x), -1, 128) @ (matrix / 128**0.5)).view(x.shape)
