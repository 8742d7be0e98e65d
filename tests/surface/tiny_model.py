"""A model small enough to be planned in a second or two: what the command line's tests name as FILE.py:CALLABLE."""

from typing import Any

import torch
from torch import Tensor, nn

ROWS, WIDE = 4, 64


class Tiny(nn.Module):
    """Two linears with a GELU between them, and a residual: [rows, 64] to [rows, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDE, 2 * WIDE)
        self.down = nn.Linear(2 * WIDE, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))


def model(seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    return Tiny().eval().requires_grad_(False)


def calls(count: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(ROWS, WIDE, generator=generator)} for _ in range(count)]


def tiny() -> tuple[nn.Module, Any, Any]:
    made = calls()
    return model(), made[0], made


def other() -> tuple[nn.Module, Any, Any]:
    """The same layers with other weights."""
    made = calls()
    return model(seed=5), made[0], made


def only_model() -> nn.Module:
    return model()


def failing() -> Any:
    raise ValueError("no weights on this machine")
