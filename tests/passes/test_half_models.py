"""Models whose weights are in half precision: computed in fp32 from the weights as they are, returned as they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.export_door import any_sizes, from_export
from adaflex.passes.menu import Machine
from adaflex.passes.sites import find_sites
from adaflex.passes.small_sizes import _near as near
from tests.passes.models import zoo
from tests.passes.test_sites_and_rewrite import Layer, Tied

HALF = (torch.bfloat16, torch.float16)
MACHINE = Machine("avx512", 2)


def distance(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())


def narrowed(given: Any, dtype: torch.dtype) -> Any:
    return given.to(dtype) if isinstance(given, Tensor) and given.is_floating_point() else given


def captured(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Capture, Weights]:
    return from_export(model, inputs, dynamic_shapes=any_sizes(inputs, {}, model))


@pytest.mark.parametrize(
    ("name", "dtype"), [("bert", HALF[0]), ("gpt2", HALF[1]), ("llama", HALF[0]), ("t5", HALF[1]), ("resnet", HALF[0])]
)
def test_the_zoo_in_half_precision_is_computed_in_single(name: str, dtype: torch.dtype) -> None:
    """As the fp32 model of the same weights says, and no farther from it than the model in its own dtype."""
    entry = zoo()[name]
    model = entry.model().to(dtype)
    inputs = tuple(narrowed(each, dtype) for each in entry.inputs())
    capture, weights = from_export(model, inputs)
    wide = copy.deepcopy(model).float()
    with torch.no_grad():
        leaves = torch.utils._pytree.tree_leaves
        wanted = [x for x in leaves(wide(*(narrowed(x, torch.float32) for x in inputs))) if isinstance(x, Tensor)]
        eager = [x for x in leaves(model(*inputs)) if isinstance(x, Tensor)]
    found = [x for x in capture.run(weights, inputs) if isinstance(x, Tensor)]
    assert [x.dtype for x in found] == [x.dtype for x in eager]
    for ours, theirs, exact in zip(found, eager, wanted, strict=True):
        assert distance(ours, exact) <= max(torch.finfo(dtype).eps, distance(theirs, exact))
    sites = find_sites(capture, weights, MENU, MACHINE).sites
    singles = find_sites(*from_export(wide, entry.inputs()), MENU, MACHINE).sites
    assert [site.id for site in sites] == [site.id for site in singles]
    assert [2 * site.original_bytes for site in sites] == [site.original_bytes for site in singles]


@pytest.mark.parametrize("dtype", HALF)
def test_any_size_and_tied_weights(dtype: torch.dtype) -> None:
    for model, inputs, others in (
        (Layer(), (torch.randn(2, 5, 64),), (torch.randn(3, 9, 64),)),
        (Tied(), (torch.randint(40, (2, 5)),), (torch.randint(40, (4, 3)),)),
    ):
        model = model.eval().to(dtype)
        inputs, others = (tuple(narrowed(x, dtype) for x in given) for given in (inputs, others))
        capture, weights = captured(model, inputs)
        wide = copy.deepcopy(model).float()
        for given in (inputs, others):
            with torch.no_grad():
                wanted = wide(*(narrowed(x, torch.float32) for x in given))
            (found,) = capture.run(weights, given)
            assert found.dtype is dtype and torch.equal(found, wanted.to(dtype))
    assert [site.uses for site in find_sites(capture, weights, MENU, MACHINE).sites if len(site.uses) > 1]


class Odd(nn.Module):
    """Returns views of its argument, the argument itself, a weight, and changes a buffer."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("steps", torch.zeros(16))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.linear(x)
        self.steps.add_(y[0])
        return x.t()[1:], y, x, self.linear.weight, y.float(), x.to(torch.float16) * 2


def test_views_weights_and_buffers_keep_their_dtype() -> None:
    model = Odd().eval().bfloat16()
    x = torch.randn(4, 16).bfloat16()
    capture, weights = from_export(model, (x,))
    with torch.no_grad():
        found = capture.run(weights, (x, torch.zeros(16).bfloat16()))
        wanted = [model.linear(x)[0], *model(x)]
    assert [each.dtype for each in found] == [each.dtype for each in wanted]
    assert [output.kind for output in capture.outputs] == [
        "mutation", "alias", "fresh", "input", "constant", "fresh", "fresh",
    ]  # fmt: skip
    assert all(distance(ours, theirs) < 0.02 for ours, theirs in zip(found, wanted, strict=True))
    assert torch.equal(found[1], x.t()[1:]) and torch.equal(found[4], model.linear.weight)
    assert found[1].data_ptr() == x.t()[1:].data_ptr()


def test_what_looks_at_the_bits_is_left_as_it_is() -> None:
    class Bits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).view(torch.int16) & 0x7FFF

    model, x = Bits().eval().bfloat16(), torch.randn(4, 16).bfloat16()
    capture, weights = from_export(model, (x,))
    with torch.no_grad():
        assert torch.equal(capture.run(weights, (x,))[0], model(x))


def test_single_precision_models_with_a_half_inside_keep_it() -> None:
    """A rounding that an fp32 model asks for is part of the model."""
    model, x = nn.Linear(16, 16).eval(), torch.randn(4, 16)

    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = model

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).bfloat16().float()

    capture, weights = from_export(Rounds().eval(), (x,))
    with torch.no_grad():
        assert torch.equal(capture.run(weights, (x,))[0], model(x).bfloat16().float())


def test_single_numbers_of_half_precision_may_be_far_apart() -> None:
    """A deep model's own roundings are no other way through the model; a tenth of its norm is."""
    made = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    wanted = made * (1 + 2**-7)
    wanted[3, 4] += 1.0
    assert near(wanted.bfloat16(), made.bfloat16()) and not near(wanted, made)
    assert not near((1.2 * made).bfloat16(), made.bfloat16())
    wanted[5, 6] = float("-inf")
    assert not near(wanted.bfloat16(), made.bfloat16())


class WideEnds(nn.Module):
    """Half precision inside, single precision outside."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 128).bfloat16(), nn.Linear(128, 64).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x.bfloat16()))).float()


def test_a_batch_of_one_is_served_where_only_the_ends_are_single() -> None:
    torch.manual_seed(0)
    capture, _ = captured(WideEnds().eval(), (torch.randn(2, 8, 64),))
    assert all(relation != "!=" for relation, *_ in capture.guards)
