"""Graphs of other sizes than the first: sizes written in other ways, and weights that another graph folds otherwise."""

import pytest
import torch
from torch import Tensor, nn

import adaflex
from adaflex.errors import AdaflexError


class Patches(nn.Module):
    """Positions are a table of 16 rows, added to a value of height x width rows: both are 16, written differently."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(16, 32)
        self.register_buffer("places", torch.arange(16)[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2) + self.rows(self.places)


class Probe(nn.Module):
    """Attention whose queries are a parameter: at a fixed batch they fold, and the other weights are numbered anew."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, 32))
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(self.probe.repeat(x.shape[0], 1, 1), x, x)[0]
        return found


def test_equal_sizes_that_are_written_differently_are_not_broadcast() -> None:
    torch.manual_seed(0)
    model = Patches().eval().requires_grad_(False)
    calls = [(torch.randn(2, 32, 4, 4),) for _ in range(4)]
    program = adaflex.compile(model, calls[0], calibration=calls, axes=())
    for shape in ((3, 32, 4, 4), (2, 32, 8, 2)):
        x = torch.randn(shape)
        assert torch.equal(program(x), model(x))
    with pytest.raises(AdaflexError):
        program(torch.randn(2, 32, 5, 5))


@pytest.mark.parametrize("axes", [(), ("precision",)])
def test_weights_that_fold_otherwise_at_another_batch_are_told_apart(axes: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = Probe().eval().requires_grad_(False)
    calls = [(torch.randn(2, 16, 32),) for _ in range(4)]
    options = {"calibration": calls, "axes": axes}
    planned = torch.compile(model, backend="adaflex", fullgraph=True, options=options)
    with torch.no_grad():
        for batch in (2, 3, 1, 5):
            x = torch.randn(batch, 16, 32)
            error = (planned(x) - model(x)).norm() / model(x).norm()
            assert error < (1e-5 if not axes else 0.03), batch
