"""A call behind ``torch.compile``, kept for planning, and the graphs that it ran.

In: the tensors of a running call. Out: ``Call`` and ``Part``, which hold copies, and the original model's outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaflex.errors import AdaflexError
from adaflex.passes.calibration import Batch
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.export_door import any_sizes, from_export


@dataclass(frozen=True, eq=False)
class Call:
    """The call that led to planning. Tensors are copies."""

    inputs: tuple[Any, ...]  # of the captured graph
    batch: Batch | None  # the user's own arguments; None where the whole call is not known
    root: nn.Module | None  # the module that was compiled
    autocast: torch.dtype | None = None  # what the call's autocast turns matrix products into; None: it is off
    whole: bool = True  # the graph is all of the call; else a piece of it, whose inputs are not the call's

    def original(self, batch: Batch) -> Any:
        """The original model's output for a call, in eager, its buffers left as they are."""
        if self.root is None:
            raise AdaflexError("the compiled function belongs to no module: its original cannot be run by itself")
        with torch.autocast("cpu", self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            return run_original(self.root, batch)

    def recaptured(self) -> tuple[Capture, Weights] | None:
        """The whole model with varying sizes, for calibration calls of other sizes than this one; None without a root.

        CaptureError where torch.export cannot trace what Dynamo could.
        """
        if self.root is None or self.batch is None:
            return None
        shapes = any_sizes(self.batch.args, self.batch.kwargs, self.root)
        return from_export(self.root, self.batch.args, self.batch.kwargs, shapes)


@dataclass(frozen=True, eq=False)
class Part:
    """One graph with one set of weights: what is planned, alone or together with others of the same call."""

    capture: Capture
    weights: Weights
    call: Call


def run_original(root: nn.Module, batch: Batch) -> Any:
    """``root(*args, **kwargs)`` in eager even inside a compiled call; buffers and the random state do not move."""
    with torch.compiler.set_stance("force_eager"), torch.no_grad(), torch.random.fork_rng(devices=[]):
        buffers = {name: buffer.clone() for name, buffer in root.named_buffers()}
        return torch.func.functional_call(root, buffers, batch.args, dict(batch.kwargs))


def copied(value: Any) -> Any:
    """The value with every tensor in lists, tuples and dicts copied."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping) and type(value) is dict:
        return {key: copied(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(each) for each in value)
    return value


def copied_batch(batch: Batch) -> Batch:
    """The call with its tensors copied."""
    return Batch(copied(batch.args), copied(dict(batch.kwargs)))
