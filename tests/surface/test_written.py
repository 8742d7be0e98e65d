"""Models as users write them: dtypes, outputs and masks that no library's model has."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adaflex
from adaflex.errors import AdaflexError
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


def rounded(linear: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Whole tenths, and a sum of squares in double precision."""
    y = linear(x)
    return torch.round(x, decimals=1), torch.linalg.vector_norm(y, dim=-1, keepdim=True, dtype=torch.float64)


def causal(linear: nn.Module, x: Tensor) -> Tensor:
    """The first queries of every call, over all keys; then the last ones."""
    q, k = (each.view(*x.shape[:2], 2, 8).transpose(1, 2) for each in (linear(x), x))
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(q[:, :, :3], k, k, is_causal=True) + attend(q[:, :, -3:], k, k + 1)


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
    "rounding to decimals, norms in another dtype": (rounded, rows),
    "causal over more keys than queries": (causal, rows),
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
def test_models_in_half_precision_are_planned(dtype: torch.dtype, tmp_path: Path) -> None:
    """Every layer is decided about; results come in the model's dtype, as near to its fp32 self as was promised."""
    torch.manual_seed(0)
    parts = nn.Embedding(20, 64), nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 64)
    model = nn.Sequential(*parts).to(dtype).eval().requires_grad_(False)
    wide = copy.deepcopy(model).float()
    calls = [(torch.randint(0, 20, (2, 8)),) for _ in range(4)]
    made = adaflex.plan(model, calls[0], calibration=calls, loss=0.05)
    assert {name for name, _ in made.planned.plan.choices} == {"0.weight", "1.weight", "4.weight"}
    program = made.compile()
    program.save(tmp_path / "half.afx")
    loaded = adaflex.load(tmp_path / "half.afx")
    options = {"calibration": calls, "loss": 0.05}
    compiled = torch.compile(model, backend="adaflex", fullgraph=True, options=options)
    for x in (*calls[0], torch.randint(0, 20, (3, 5))):
        wanted, found = wide(x), program(x)
        assert found.dtype is dtype and torch.equal(found, loaded(x))
        for each in (found, compiled(x)):
            assert each.dtype is dtype and (each.float() - wanted).norm() < 0.1 * wanted.norm()


class Cut(nn.Module):
    """A mask may be longer than what it masks: its last positions, or those from a difference on, count."""

    def __init__(self, cut: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)
        self.cut = cut

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.cut(self.linear(x), mask)


CUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the last": lambda y, mask: y * mask[:, -y.shape[1] :, None],
    "every second of the last": lambda y, mask: mask[:, -y.shape[1] :: 2] * 2,
    "one from the end": lambda y, mask: y.sum(1) * mask[:, -y.shape[1], None],
    "from a difference on": lambda y, mask: y * mask[:, mask.shape[1] - y.shape[1] :, None],
    "one at a difference": lambda y, mask: y.sum(1) * mask[:, y.shape[1] - mask.shape[1], None],
    "half of it before the end": lambda y, mask: mask[:, -(y.shape[1] // 2) - 1 :] + 1,
    "all but the last": lambda y, mask: mask[:, : -y.shape[1]] + 1,
    "the last one": lambda y, mask: y[:, y.shape[1] - 1 :] + y[:, y.shape[1] - 1, None],
}


@pytest.mark.parametrize("door", ["export", "torch.compile"])
@pytest.mark.parametrize("cut", CUTS)
def test_slices_from_a_size_before_the_end(cut: str, door: str) -> None:
    torch.manual_seed(0)
    model = Cut(CUTS[cut]).eval().requires_grad_(False)
    example = (torch.randn(2, 8, 16), torch.randn(2, 11))
    if door == "export":
        found: Any = adaflex.compile(model, example, axes=())
    else:
        found = torch.compile(model, backend="adaflex", fullgraph=True, dynamic=True, options={"axes": ()})
    with torch.no_grad():
        for length, longer in ((8, 11), (3, 9), (5, 7)):
            given = torch.randn(3, length, 16), torch.randn(3, longer)
            torch.testing.assert_close(found(*given), model(*given))


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


class Pair(nn.Module):
    """Two arguments that are treated differently; the second is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        kept[:, 0] = x[:, 0] * 3
        return self.linear(x) * kept.sum()


def test_one_tensor_given_twice_as_an_example_is_two_inputs_that_may_be_written_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Pair().eval().requires_grad_(False), torch.randn(4, 16)
    program = adaflex.compile(model, {"x": x, "kept": x}, axes=())
    program.save(tmp_path / "pair.adaflex")
    for run in (program, adaflex.load(tmp_path / "pair.adaflex")):
        first, kept = torch.randn(3, 16), torch.randn(3, 16)
        other = kept.clone()
        torch.testing.assert_close(run(first, kept), model(first, other))
        assert torch.equal(kept, other)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval().requires_grad_(False)


@pytest.mark.parametrize("unfit", [torch.zeros(0, 16), torch.full((3, 16), torch.nan), torch.zeros(3, 16)])
def test_a_first_call_that_says_nothing_runs_and_a_later_one_is_planned_on(unfit: Tensor) -> None:
    model = linear()
    for part in (model[0].bias, model[2].bias):
        part.zero_()
    found = torch.compile(model, backend="adaflex", fullgraph=True, options={"axes": ()})
    with torch.no_grad():
        torch.testing.assert_close(found(unfit), model(unfit), equal_nan=True)
        assert adaflex.programs(found) == []
        x = torch.randn(3, 16)
        torch.testing.assert_close(found(x), model(x))
    assert len(adaflex.programs(found)) == 1


def test_an_answer_that_never_varies_is_left_unplanned_in_the_end() -> None:
    model = nn.Sequential(linear(), nn.Hardtanh(-1e-9, 0)).eval()
    model[0][2].bias.fill_(100)
    found = torch.compile(model, backend="adaflex", fullgraph=True)
    with torch.no_grad():
        for _ in range(7):
            assert torch.equal(found(torch.randn(3, 16)), torch.zeros(3, 8))


@pytest.mark.parametrize("door", ["export", "torch.compile"])
def test_what_draws_random_numbers_is_planned_without_loss(door: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 64)).train().requires_grad_(False)
    calls = [(torch.randn(8, 64),) for _ in range(4)]
    if door == "export":
        found: Any = adaflex.compile(model, calls[0], calibration=calls)
    else:
        found = torch.compile(model, backend="adaflex", fullgraph=True, options={"calibration": calls})
    x = torch.randn(500, 64)
    with torch.no_grad():
        one, other = found(x), found(x)
        mean = torch.stack([found(x) for _ in range(100)]).mean(0)
        wanted = model.eval()(x)
    assert not torch.equal(one, other) and "draws random numbers" in caplog.text
    assert (mean - wanted).norm() < 0.2 * wanted.norm()


def test_activations_that_overflow_bf16_leave_the_default_budget_finite() -> None:
    model = nn.Sequential(linear(), Written(lambda f, x: (f(x.repeat(1, 2)) * 1e37).clamp(-3e38, 3e38) * 1e-37))
    model.eval().requires_grad_(False)
    calls = [(torch.randn(4, 16),) for _ in range(4)]
    program = adaflex.compile(model, calls[0], calibration=calls)
    assert (program(*calls[0]) - model(*calls[0])).norm() < 0.02 * model(*calls[0]).norm()


def test_an_array_where_a_tensor_belongs_is_refused() -> None:
    program = adaflex.compile(linear(), torch.randn(4, 16), axes=())
    with pytest.raises(AdaflexError, match="a ndarray; this program takes a tensor"):
        program(torch.randn(4, 16).numpy())


def test_a_loss_of_ones_own_is_measured_on_calls_held_out_too() -> None:
    seen = set()

    def loss(output: Tensor, batch: tuple[Tensor]) -> float:
        seen.add(float(batch[0].sum()))
        return float(output.square().mean())

    calls = [(torch.randn(4, 16),) for _ in range(4)]
    program = adaflex.compile(linear(), calls[0], calibration=calls, loss_fn=loss, loss=0.1)
    assert program.verdict is not None and program.verdict.held and len(seen) == 4


class Turned(nn.Module):
    """Its first half gives rows as columns, which the second half views as rows again, where torch allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.convolution(x).relu()
        z = self.linear(y.flatten(2).transpose(1, 2)).transpose(1, 2)
        return y, z


def test_outputs_lie_in_memory_as_torch_lays_them() -> None:
    torch.manual_seed(0)
    model = Turned().to(memory_format=torch.channels_last).eval().requires_grad_(False)
    found = torch.compile(model, backend="adaflex", fullgraph=True, options={"axes": ()})
    with torch.no_grad():
        for batch in (2, 3):
            x = torch.randn(batch, 3, 8, 6).contiguous(memory_format=torch.channels_last)
            for got, wanted in zip(found(x), model(x), strict=True):
                torch.testing.assert_close(got, wanted)
                assert got.stride() == wanted.stride()
