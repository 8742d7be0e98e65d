"""The captured model without skipped blocks: equal to the reference graph, with nothing left that is not needed."""

import itertools

import pytest
import torch
from torch import nn

from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.capture import Capture
from adaflex.passes.decision import Decision
from adaflex.passes.export_door import from_export
from adaflex.passes.menu import Machine
from adaflex.passes.restructure import restructure
from adaflex.passes.rewrite import rewrite, run
from adaflex.passes.sites import find_sites
from tests.passes.models import zoo
from tests.passes.test_sites_and_rewrite import Layer

MACHINE = Machine("avx512", 2)
SKIPPING = ("bert", "gpt2", "qwen2", "vit")


def found(model: nn.Module, inputs: tuple[torch.Tensor, ...]):  # type: ignore[no-untyped-def]
    capture, weights = from_export(model.eval().requires_grad_(False), inputs)
    return capture, weights, find_sites(capture, weights, MENU, MACHINE)


def check_sound(capture: Capture, sites) -> None:  # type: ignore[no-untyped-def]
    """Everything the Capture says of its graph is true of it."""
    capture.graph.graph.lint()
    names = {node.name for node in capture.graph.graph.nodes}
    placeholders = [node.name for node in capture.graph.graph.nodes if node.op == "placeholder"]
    assert placeholders == [each.node for each in (*capture.constants, *capture.inputs)]
    assert all(output.node in names or not output.node for output in capture.outputs)
    assert set(capture.provenance) <= names
    for site in sites.sites:
        assert set(sites.uses[site.id]) <= names
        assert capture.constants[sites.source[site.id][0]].name == site.id
    assert all(set(pair) <= names for block in sites.blocks for pair in block.adds)


@pytest.mark.parametrize("name", SKIPPING)
def test_each_block_of_the_zoo(name: str) -> None:
    entry = zoo()[name]
    inputs = entry.inputs()
    capture, weights, sites = found(entry.model(), inputs)
    flat = [each for each in torch.utils._pytree.tree_leaves(inputs) if isinstance(each, torch.Tensor)]
    assert sites.blocks
    for block in sites.blocks:
        small = restructure(capture, sites, Decision({}, (block.id,)))
        check_sound(small.capture, small.sites)
        left = {site.id for site in small.sites.sites}
        assert left == {site.id for site in sites.sites} - set(block.sites)
        assert not {each.name for each in small.capture.constants} & set(block.sites)
        got = small.capture.run(small.weights(weights), flat)
        wanted = run(rewrite(capture, sites, MENU, {}, (block.id,)), weights, flat)
        for mine, theirs in zip(got, wanted, strict=True):
            assert not isinstance(theirs, torch.Tensor) or torch.equal(mine, theirs)


def test_a_layer_is_its_attention_and_its_mlp_in_any_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Layer(), Layer(), Layer())
    x = torch.randn(2, 5, 64)
    capture, weights, sites = found(model, (x,))
    whole = restructure(capture, sites, Decision({}, ("0:layer", "1:layer")))
    expected = model[2](x)
    assert torch.allclose(whole.capture.run(whole.weights(weights), [x])[0], expected, atol=1e-5)
    halves = [block.id for block in sites.blocks if block.kind != "layer" and not block.id.startswith("2")]
    for order in itertools.permutations(halves):
        small = restructure(capture, sites, Decision({}, order))
        assert small.capture.graph.code == whole.capture.graph.code
        assert torch.allclose(run(rewrite(capture, sites, MENU, {}, order), weights, [x])[0], expected, atol=1e-5)


def test_a_skipped_output_is_said_to_be_the_input() -> None:
    torch.manual_seed(0)
    model = Layer()
    x = torch.randn(2, 5, 64)
    capture, weights, sites = found(model, (x,))
    small = restructure(capture, sites, Decision({}, (":layer",)))
    assert (small.capture.outputs[0].kind, small.capture.outputs[0].index) == ("input", 0)
    assert small.capture.constants == () and small.sites.sites == () and small.sites.blocks == ()
    assert torch.equal(small.capture.run(small.weights(weights), [x])[0], x)


def test_constants_of_a_restructured_model_can_be_bound_again() -> None:
    model = nn.Sequential(Layer(), Layer())
    capture, weights, sites = found(model, (torch.randn(2, 5, 64),))
    small = restructure(capture, sites, Decision({}, ("0:attention",)))
    by_name = dict(model.named_parameters())
    bound = small.capture.bind([by_name[each.name] for each in small.capture.sources])
    assert all(torch.equal(a, b) for a, b in zip(bound, small.weights(weights), strict=True))
    assert [tuple(each.shape) for each in bound] == [each.shape for each in small.capture.constants]


def test_a_reference_stays_where_a_skip_goes_around_to_it() -> None:
    """The operand that a skip falls back on may be a site's own output."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.stem(x)
            return y + self.inner(torch.relu(y))

    capture, weights, sites = found(Stem(), (torch.randn(2, 64),))
    assert [block.sites for block in sites.blocks] == [("inner.weight",)]
    entry = next(each for each in MENU if each.name == "bf16")
    stored = entry.encode(sites.weight(weights, "stem.weight"), entry.offers(sites.sites[0], MACHINE)[0], None)
    x = torch.randn(2, 64)
    graph = rewrite(capture, sites, MENU, {"stem.weight": stored}, (sites.blocks[0].id,))
    bias = dict(zip([each.name for each in capture.constants], weights, strict=True))["stem.bias"]
    assert torch.equal(run(graph, weights, [x])[0], entry.reference(x, stored, bias))


class Branches(nn.Module):
    """Two branches of one kind in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x).tanh()
        return x + self.second(x).tanh()


def test_branches_of_one_module_are_skipped_one_by_one() -> None:
    torch.manual_seed(0)
    model, x = Branches(), torch.randn(2, 8)
    capture, weights, sites = found(model, (x,))
    assert len({block.id for block in sites.blocks}) == len(sites.blocks) == 2
    for block, other in zip(sites.blocks, (model.second, model.first), strict=True):
        small = restructure(capture, sites, Decision({}, (block.id,)))
        check_sound(small.capture, small.sites)
        torch.testing.assert_close(small.capture.run(small.weights(weights), [x])[0], x + other(x).tanh())
