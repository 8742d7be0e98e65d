"""The programs that benchmarks/region_rows.py times: small models through capture, lowering and printing.

In: a model, its input shapes, the encoding of its linears, which steps to keep. Out: a ``Program`` of those steps
alone, whose first axis may be of any size; what the other steps made is an input of it, what they read an output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaflex.assembly import skeleton
from adaflex.codegen.kernels.menu import MENU
from adaflex.codegen.layout import PANEL
from adaflex.passes.decision import Decision
from adaflex.passes.export_door import from_export
from adaflex.passes.menu import Machine
from adaflex.passes.sites import find_sites
from adaflex.runtime.layout import read, written
from adaflex.runtime.program import AttentionStep, GemmStep, Phase, Program, RowStep, Segment, Slot, Step, WindowStep
from adaflex.solver.table import Encoding

EVERY = (RowStep, GemmStep, AttentionStep, WindowStep)
HEADS, HEAD_WIDTH = 12, 32


class NormLinear(nn.Module):
    """A norm whose only reader quantises; with a residual, the sum goes on as well."""

    def __init__(self, norm: nn.Module, columns: int) -> None:
        super().__init__()
        self.norm, self.linear = norm, nn.Linear(columns, PANEL)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        if residual is None:
            return (self.linear(self.norm(x)),)
        total = x + residual
        return self.linear(self.norm(total)), total


class Chain(nn.Module):
    """GELU, residual, rounded to bf16."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return (F.gelu(x) + residual).to(torch.bfloat16)


class Add(nn.Module):
    """The smallest region of one step."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return x + residual


class SelfAttention(nn.Module):
    """Heads out of three linears."""

    def __init__(self) -> None:
        super().__init__()
        width = HEADS * HEAD_WIDTH
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Case:
    """A model to be lowered; ``inputs`` are shapes without their first axis."""

    model: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    steps: tuple[type[Step], ...] = EVERY  # that are kept
    encoding: Encoding | None = None


def program_of(case: Case, isa: str) -> Program:
    """The kept steps as the project lowers them; weights have no bytes."""
    model = case.model().eval()
    given = tuple(torch.zeros((4, *shape)) for shape in case.inputs)
    rows = torch.export.Dim("rows", min=1, max=1 << 20)
    capture, weights = from_export(model, given, dynamic_shapes=_named(len(given), rows))
    sites = find_sites(capture, weights, MENU, Machine(isa, 1))
    chosen = {site.id: case.encoding or sites.keep[site.id] for site in sites.sites}
    return only(skeleton(capture, sites, Decision(chosen))[0], case.steps)


def _named(count: int, rows: object) -> tuple[dict[int, object], ...]:
    return tuple({0: rows} for _ in range(count))


def only(program: Program, kinds: tuple[type[Step], ...]) -> Program:
    """The program without its steps of other kinds. ValueError where what is left is not one segment."""
    kept = [number for number, step in enumerate(program.steps) if isinstance(step, kinds)]
    entries = [_kept_entry(entry, kept) for entry in program.schedule if isinstance(entry, Segment)]
    schedule = tuple(entry for entry in entries if entry.phases)
    if len(schedule) != 1:
        raise ValueError("a case's steps must be one segment")
    left = tuple(program.steps[number] for number in kept)
    gone = [step for step in program.steps if not isinstance(step, kinds)]
    return replace(program, schedule=schedule, steps=left, slots=_cut(program.slots, left, gone))


def _kept_entry(entry: Segment, kept: Sequence[int]) -> Segment:
    phases = []
    for phase in entry.phases:
        steps = [tuple(kept.index(step) for step in loop.steps if step in kept) for loop in phase.loops]
        loops = zip(phase.loops, steps, strict=True)
        phases.append(Phase(tuple(replace(loop, steps=own) for loop, own in loops if own)))
    return Segment(entry.groups, tuple(phase for phase in phases if phase.loops))


def _cut(slots: Sequence[Slot], left: Sequence[Step], gone: Sequence[Step]) -> tuple[Slot, ...]:
    """Slots between kept and removed steps become inputs and outputs; what is not touched takes no room."""
    reads, makes = ({slot for step in left for slot in of(step)} for of in (read, written))
    wanted = {slot for step in gone for slot in read(step)}
    made = []
    for number, slot in enumerate(slots):
        if number not in reads | makes:
            made.append(replace(slot, rows=0, kind="value", window="full"))
        elif slot.kind in ("local", "output", "value"):
            kind = "input" if number not in makes else "output" if number in wanted else slot.kind
            made.append(replace(slot, kind=kind, window=slot.window if kind == "local" else "full"))
        else:
            made.append(slot)
    return tuple(made)
