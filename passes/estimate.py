"""Cheap second-order estimates of a choice's loss: what a layer's own output error does to the model's output.

In: an Encoder and a Judge (calls and original outputs). Out: ``Estimator.loss(site, encoded)``. A few backward passes
from random directions of the output give every layer's sensitivity at once; each choice then costs one layer.
For the squared relative error, E over v ~ N(0, I) of (v J dy)^2 / |y0|^2 is |J dy|^2 / |y0|^2; for KL, a class drawn
from the model's own softmax gives the Fisher form, half of which is the divergence to second order.
It prunes and fills in, it does not decide: measured losses are preferred wherever there is time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from adaflex.passes.encoder import Encoder
from adaflex.passes.losses import Judge
from adaflex.passes.menu import Encoded, family
from adaflex.passes.rewrite import Reference, arguments_of
from adaflex.passes.suffix import evaluate

PROBES = 4  # random directions per call
MOST_CALLS = 8  # calls looked at


class Estimator:
    """Inputs, outputs and sensitivities of every use of every site, for some of the calls."""

    def __init__(self, encoder: Encoder, judge: Judge) -> None:
        self.encoder, self.judge = encoder, judge
        capture = encoder.capture
        self.nodes = {node.name: node for node in capture.graph.graph.nodes}
        self.uses = {use for uses in encoder.sites.uses.values() for use in uses}
        generator = torch.Generator().manual_seed(0)
        self.traces = [self._trace(call, generator) for call in range(min(MOST_CALLS, len(judge.calls)))]

    def loss(self, site: str, encoded: Encoded) -> float:
        """The estimated loss of this choice alone."""
        reference = Reference(family(self.encoder.menu, encoded.encoding.family), encoded)
        total, count = 0.0, 0
        for trace in self.traces:
            moved: Tensor | None = None
            for use in self.encoder.sites.uses[site]:
                arguments, output, slopes = trace[use]
                with torch.no_grad():
                    off = (reference(*arguments) - output).reshape(1, *output.shape)
                    part = (slopes * off).reshape(*slopes.shape[: 2 if self._rows(slopes) else 1], -1).sum(-1)
                moved = part if moved is None else moved + part
            assert moved is not None
            total, count = total + float(moved.double().square().sum()), count + moved.numel()
        return total / count * (0.5 if self.judge.loss == "kl" else 1.0)

    def _rows(self, slopes: Tensor) -> bool:
        return self.judge.samples.by_rows and self.judge.loss != "kl"

    def _trace(self, call: int, generator: torch.Generator) -> dict[str, tuple[Any, Tensor, Tensor]]:
        """For each use: what the node was called with, its output, its slopes [probes, *output]."""
        capture, values = self.encoder.capture, {}
        for node, value in zip(self.nodes.values(), (*self.encoder.weights, *self.judge.calls[call]), strict=False):
            values[node] = value.detach() if isinstance(value, Tensor) else value
        kept: dict[str, tuple[Any, Tensor]] = {}
        with torch.enable_grad():
            for node in list(self.nodes.values())[len(values) : -1]:
                values[node] = evaluate(capture.graph, node, values)
                if node.name in self.uses:
                    values[node] = self._watched(values[node])
                    arguments = fx.node.map_arg(arguments_of(node), values.__getitem__)
                    kept[node.name] = (arguments, values[node])
        outputs = self.nodes["output"].args[0]
        assert isinstance(outputs, tuple | list)
        found = [values[outputs[index]] for index in self.judge.compared]
        watched = [output for _, output in kept.values()]
        slopes = [self._backward(found, watched, generator) for _ in range(PROBES)]
        return {
            name: (_detached(arguments), output.detach(), torch.stack([each[index] for each in slopes]))
            for index, (name, (arguments, output)) in enumerate(kept.items())
        }

    @staticmethod
    def _watched(output: Tensor) -> Tensor:
        return output if output.requires_grad else output.detach().requires_grad_(True)

    def _backward(self, found: list[Tensor], watched: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        with torch.enable_grad():
            goal = sum((self._direction(each, generator) for each in found), torch.zeros(()))
        slopes = torch.autograd.grad(goal, watched, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(w) if s is None else s for w, s in zip(watched, slopes, strict=True)]

    def _direction(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A scalar whose slope is one probe of this output."""
        flat = output.float()
        if self.judge.loss == "kl":
            logits = flat.reshape(-1, flat.shape[-1])
            with torch.no_grad():
                drawn = torch.multinomial(F.softmax(logits, -1), 1, generator=generator)
            picked: Tensor = F.log_softmax(logits, -1).gather(1, drawn).sum()
            return torch.mul(picked, len(logits) ** -0.5)
        rows = output.shape[0] if self.judge.samples.by_rows else 1
        size = flat.detach().reshape(rows, -1).norm(dim=1, keepdim=True).clamp(min=1e-30)
        probe = torch.randn(flat.reshape(rows, -1).shape, generator=generator) / size
        projected: Tensor = (flat.reshape(rows, -1) * probe).sum()
        return torch.mul(projected, len(self.judge.compared) ** -0.5)


def _detached(arguments: Any) -> Any:
    return tuple(each.detach() if isinstance(each, Tensor) else each for each in arguments)
