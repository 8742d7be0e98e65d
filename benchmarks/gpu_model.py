"""The small encoder that benchmarks/gpu.py times: captured, its linears stored by one family, run on the device.

In: the name of a kernel family. Out: a call that runs the program once, the expected output, and the error allowed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adaflex
from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.rewrite import rewrite, run
from adaflex.verifying import decision_of

WIDTH, HEADS, LAYERS, BATCH, LENGTH = 1024, 16, 4, 4, 512
Microseconds = Callable[[list[Callable[[], object]]], float]


class Layer(nn.Module):
    """Pre-norm attention and a GELU MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, WIDTH] to the same."""
        y = self.first(x)
        shape = (*y.shape[:2], HEADS, WIDTH // HEADS)
        q, k, v = (part(y).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.second(x))))


def model() -> nn.Module:
    """Random weights, the same at every call."""
    torch.manual_seed(0)
    return nn.Sequential(*(Layer() for _ in range(LAYERS))).eval().requires_grad_(False)


def eager(microseconds: Microseconds) -> tuple[Tensor, dict[str, float]]:
    """An input on the CPU, and torch's own times on the device."""
    whole = model()
    x = torch.randn(BATCH, LENGTH, WIDTH)
    times = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        moved, given = whole.to("cuda", dtype), x.to("cuda", dtype)
        times[name] = microseconds([lambda moved=moved, given=given: moved(given)])
    return x, times


def build(family: str, x: Tensor, device: str = "cuda") -> tuple[Callable[[], Tensor], Tensor, float]:
    """The program that ``adaflex.plan`` makes for the device, every linear pinned to the family: as a call, what the
    reference graph gives, and the error allowed between them."""
    made = adaflex.plan(model(), x, device=device, pin={"*": family}, axes=("precision",), loss=1.0, on_broken="warn")
    planned, program = made.planned, made.compile()
    tensors = planned.scores.tensors(decision_of(planned.table, planned.plan).encodings)
    graph = rewrite(planned.model.capture, planned.sites, MENU, tensors)
    (want,) = run(graph, planned.model.weights, (x,))
    given = x.to(device)
    return lambda: program(given), want.to(device), 1e-2
