"""The small encoder that benchmarks/gpu.py times: captured, its linears stored by one family, run on the device.

In: the name of a kernel family. Out: a call that runs the program once, the expected output, and the error allowed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaflex.assembly import assemble
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.codegen.triton_launch import kernels_for
from adaflex.passes.decision import Decision
from adaflex.passes.export_door import from_export
from adaflex.passes.menu import Encoded, Machine
from adaflex.passes.rewrite import rewrite, run
from adaflex.passes.sites import find_sites
from adaflex.runtime.cuda import CudaExecutor
from adaflex.solver.table import Encoding

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
    """The program on the device as a call, what the reference graph gives, and the error allowed between them."""
    capture, weights = from_export(model(), (x,))
    sites = find_sites(capture, weights, MENU, Machine("portable", 1))
    encodings = {site: next(e for e in offered if e.family == family) for site, offered in sites.offers.items()}
    chosen = {
        site: kernel(MENU, family).encode(sites.weight(weights, site).float(), encoding, None)
        for site, encoding in encodings.items()
    }

    def provide(site: str, encoding: Encoding) -> Encoded:
        return chosen[site]

    made = assemble(capture, weights, sites, Decision(encodings), provide)
    program, constants, kernels = kernels_for(made.program, made.weights, MENU, device, f16=device == "cpu")
    ready = CudaExecutor(program, constants, kernels, device)
    given = x.to(device)
    (want,) = run(rewrite(capture, sites, MENU, chosen), weights, (x,))
    return lambda: ready(given)[0], want.to(device), 1e-2
