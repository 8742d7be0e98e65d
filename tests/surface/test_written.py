"""Models as users write them: dtypes, outputs and masks that no library's model has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adaflex
from tests.surface.test_zoo import tensors


class Written(nn.Module):
    """A linear and what is done with it."""

    def __init__(self, function: Callable[..., Any], width: int = 16) -> None:
        super().__init__()
        self.linear = nn.Linear(16, width)
        self.function = function

    def forward(self, *given: Tensor) -> Any:
        return self.function(self.linear, *given)


def turned(linear: nn.Module, x: Tensor) -> Tensor:
    """Pairs of columns as complex numbers, turned by their position, and spectra."""
    pairs = torch.view_as_complex(linear(x).reshape(*x.shape[:-1], -1, 2))
    angles = torch.polar(torch.ones(8), torch.arange(8) / 8.0)
    return torch.view_as_real(pairs * angles * 1j).flatten(-2) + torch.fft.fft2(x).conj().real


def additive(batch: int, length: int) -> Tensor:
    mask = torch.zeros(batch, length)
    mask[-1, max(1, length - 2) :] = -torch.inf
    return mask


def rows(batch: int, length: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, length, 16),)


def masked(batch: int, length: int) -> tuple[Tensor, ...]:
    return (*rows(batch, length), additive(batch, length))


CASES: dict[str, tuple[Callable[..., Any], Callable[[int, int], tuple[Tensor, ...]]]] = {
    "truths out of a product": (lambda f, x: (f(x), f(x) > 0, (f(x) * 100).bool()), rows),
    "complex numbers": (turned, rows),
    "complex output": (lambda f, x: f(x).mul(0.1).exp() * torch.exp(1j * x), rows),
    "scores that are -inf where masked": (lambda f, x, mask: f(x) + mask[..., None], masked),
    "indices alone": (lambda f, x: f(x).argmax(-1), rows),
}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("door", ["export", "torch.compile"])
@pytest.mark.parametrize("name", CASES)
def test_written(name: str, door: str) -> None:
    torch.manual_seed(0)
    function, inputs = CASES[name]
    model, calls = Written(function).eval().requires_grad_(False), [inputs(2, 8) for _ in range(4)]
    if door == "export":
        found: Any = adaflex.compile(model, calls[0], calibration=calls, axes=())
    else:
        options = {"axes": (), "calibration": calls}
        found = torch.compile(model, backend="adaflex", fullgraph=True, options=options)
    for batch, length in ((2, 8), (3, 11)):
        given = inputs(batch, length)
        with torch.no_grad():
            equal_enough(model, given, found(*given))


def equal_enough(model: nn.Module, inputs: tuple[Tensor, ...], found: Any) -> None:
    """Truths and indices are equal, -inf stands where it did, numbers are as near as eager's own."""
    for got, wanted in zip(tensors(found), tensors(model(*inputs)), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_run_as_torch_runs_them(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = nn.Embedding(20, 16), nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 8)
    model = nn.Sequential(*parts).to(dtype).eval().requires_grad_(False)
    calls = [(torch.randint(0, 20, (2, 8)),) for _ in range(4)]
    program = adaflex.compile(model, calls[0], calibration=calls)
    for x in (*calls[0], torch.randint(0, 20, (3, 5))):
        wanted = model(x)
        assert program(x).dtype == dtype and (program(x) - wanted).float().norm() < 0.02 * wanted.float().norm()


class Pooled(nn.Module):
    """Truths that mark what to leave out, as torch's own attention takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x))).masked_fill(padding_mask[..., None], 0)


def test_a_mask_that_leaves_nothing_out_does_not_hide_the_loss() -> None:
    torch.manual_seed(0)
    model = Pooled().eval().requires_grad_(False)
    calls = [(torch.randn(2, 8, 32), torch.zeros(2, 8, dtype=torch.bool)) for _ in range(4)]
    program = adaflex.compile(model, calls[0], calibration=calls)
    wanted = model(*calls[0])
    assert (program(*calls[0]) - wanted).norm() < 0.02 * wanted.norm()
