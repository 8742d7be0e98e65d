"""Sites, residual blocks and the rewritten graph on the zoo of small models."""

import dataclasses

import pytest
import torch
from torch import nn

from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.export_door import any_sizes, from_export
from adaflex.passes.menu import Machine
from adaflex.passes.rewrite import rewrite, run
from adaflex.passes.sites import Sites, find_sites
from tests.passes.models import zoo

MACHINE = Machine("avx512", 2)
REWRITTEN = ("bert", "gpt2", "qwen2", "vit")


class Layer(nn.Module):
    """A pre-norm layer: attention, then an mlp, each with its residual."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (4, 16)).transpose(1, 2) for f in (self.query, self.key, self.value))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Tied(nn.Module):
    """An embedding whose table is the head as well, a Conv1D-like weight [in, out], and one weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 64)
        self.turned = nn.Parameter(torch.randn(64, 64) / 8)
        self.shared = nn.Linear(64, 64)
        self.head = nn.Linear(64, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.shared(torch.relu(self.shared(self.embed(ids))))
        return self.head(torch.matmul(x, self.turned))


def sites_of(model: nn.Module, *inputs: torch.Tensor):  # type: ignore[no-untyped-def]
    capture, weights = from_export(model.eval().requires_grad_(False), inputs)
    return capture, weights, find_sites(capture, weights, MENU, MACHINE)


def in_form(sites: Sites, weights: tuple[torch.Tensor, ...], wanted: tuple[str, ...]):  # type: ignore[no-untyped-def]
    """Every site in the first offer of one of these families."""
    chosen = {}
    for site, offers in sites.offers.items():
        encoding = next((each for each in offers if each.family in wanted), sites.keep[site])
        chosen[site] = kernel(MENU, encoding.family).encode(sites.weight(weights, site).float(), encoding, None)
    return chosen


@pytest.fixture(scope="module")
def layers():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return sites_of(nn.Sequential(Layer(), Layer()), torch.randn(2, 5, 64))


def test_sites_in_order_with_blocks_and_siblings(layers) -> None:  # type: ignore[no-untyped-def]
    _, _, sites = layers
    assert [site.id for site in sites.sites][:6] == [
        f"0.{name}.weight" for name in ("query", "key", "value", "out", "up", "down")
    ]
    first = sites.sites[0]
    assert (first.op, first.shape, first.weight_count, first.original_bytes) == ("linear", (64, 64), 4096, 16384)
    assert first.uses == ("0.query:linear:0",) and first.block.endswith(":attention")
    assert sites.siblings[0] == ("0.query.weight", "0.key.weight", "0.value.weight")
    assert [block.kind for block in sites.blocks] == ["attention", "mlp"] * 2 + ["layer"] * 2
    assert sites.blocks[1].sites == ("0.up.weight", "0.down.weight")
    assert set(sites.blocks[4].sites) == {site.id for site in sites.sites[:6]}
    assert all(sites.keep[site.id].family == "fp32" for site in sites.sites)
    offered = {encoding.family for encoding in sites.offers["0.up.weight"]}
    assert {"fp32", "bf16", "w8a8", "w8", "w4a8", "w4"} <= offered
    assert offered == {entry.name for entry in MENU if "linear" in entry.ops}


def test_skipping_a_block_leaves_the_residual(layers) -> None:  # type: ignore[no-untyped-def]
    capture, weights, sites = layers
    torch.manual_seed(1)
    x = torch.randn(2, 5, 64)
    model = nn.Sequential(Layer(), Layer())
    with torch.no_grad():
        for name, value in zip([each.name for each in capture.constants], weights, strict=True):
            model.get_parameter(name).copy_(value)
        (second,) = run(rewrite(capture, sites, MENU, {}, ["0:layer"]), weights, [x])
        assert torch.allclose(second, model[1](x), atol=1e-5)
        (no_mlp,) = run(rewrite(capture, sites, MENU, {}, ["1:mlp"]), weights, [x])
    assert not torch.allclose(no_mlp, capture.run(weights, [x])[0], atol=1e-2)
    with pytest.raises(KeyError, match="no-such-block"):
        rewrite(capture, sites, MENU, {}, ["no-such-block"])


def test_tied_turned_and_shared_weights() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (2, 6))
    capture, weights, sites = sites_of(Tied(), ids)
    by_id = {site.id: site for site in sites.sites}
    assert by_id["embed.weight"].op == "embedding+linear" and len(by_id["embed.weight"].uses) == 2
    assert {each.family for each in sites.offers["embed.weight"]} == {"fp32", "bf16", "w8a8", "w8"}
    assert len(by_id["shared.weight"].uses) == 2 and len(sites.uses["shared.weight"]) == 2
    assert sites.source["turned"][1] and sites.weight(weights, "turned").shape == (64, 64)
    chosen = in_form(sites, weights, ("w8a8",))
    found = run(rewrite(capture, sites, MENU, chosen), weights, [ids])[0]
    original = capture.run(weights, [ids])[0]
    assert 1e-4 < float((found - original).norm() / original.norm()) < 0.03


def test_convolutions_are_sites_by_their_own_names_and_are_rewritten_like_linears() -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.point = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Conv2d(32, 64, 1)
            self.each, self.groups = nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 3, groups=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.groups(self.each(self.point(self.norm(self.stem(x)).relu())))

    model, x = Images().eval().requires_grad_(False), torch.randn(2, 3, 9, 9)
    capture, weights, sites = sites_of(model, x)
    assert [site.id for site in sites.sites] == ["stem.weight", "point.weight"]
    assert [site.shape for site in sites.sites] == [(32, 27), (64, 32)]
    assert {"bf16", "w8a8"} <= {encoding.family for encoding in sites.offers["stem.weight"]}
    exact = model(x)
    losses = {}
    for family in ("fp32", "bf16", "w8a8"):
        made = rewrite(capture, sites, MENU, in_form(sites, weights, (family,)))
        losses[family] = float((run(made, weights, (x,))[0] - exact).norm() / exact.norm())
    assert losses["fp32"] < 1e-5 < losses["bf16"] < 0.01 and 1e-5 < losses["w8a8"] < 0.03


def test_a_weight_with_nan_keeps_its_form() -> None:
    model = Layer()
    with torch.no_grad():
        model.up.weight[3, 4] = float("nan")
    _, _, sites = sites_of(model, torch.randn(1, 3, 64))
    assert sites.offers["up.weight"] == (sites.keep["up.weight"],)
    assert ("up.weight", "holds NaN or Inf: it keeps its form") in sites.notes


def test_double_and_otherwise_used_weights_are_no_sites() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(64, 64).double()
            self.plain = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.plain(self.wide(x.double()).float())
            return y + (x.unsqueeze(1) * self.plain.weight).sum(-1)

    _, _, sites = sites_of(Odd(), torch.randn(2, 64))
    assert sites.sites == ()
    assert [name for name, why in sites.notes if "also used by" in why] == ["plain.weight"]


@pytest.mark.parametrize("name", REWRITTEN)
def test_rewriting_the_zoo(name: str) -> None:
    """Keeping every site changes nothing; bf16 a little; 8 bits more."""
    entry = zoo()[name]
    inputs = entry.inputs()
    model = entry.model()
    capture, weights = from_export(model, inputs)
    sites = find_sites(capture, weights, MENU, MACHINE)
    flat = [each for each in torch.utils._pytree.tree_leaves(inputs) if isinstance(each, torch.Tensor)]
    if len(flat) != len(capture.inputs):
        pytest.skip("takes buffers or numbers beside its tensors")
    original = capture.run(weights, flat)

    def off(found: list[torch.Tensor]) -> float:
        pairs = [
            (a, b)
            for a, b in zip(found, original, strict=True)
            if isinstance(b, torch.Tensor) and b.is_floating_point()
        ]
        return max(float((a - b).norm() / b.norm().clamp(min=1e-9)) for a, b in pairs)

    kept = in_form(sites, weights, ("fp32", "embed32"))
    assert off(run(rewrite(capture, sites, MENU, kept), weights, flat)) < 1e-5
    if sites.sites:
        half = off(run(rewrite(capture, sites, MENU, in_form(sites, weights, ("bf16", "embed16"))), weights, flat))
        assert 0 < half < 0.03
        ours = in_form(sites, weights, ("w8a8", "embed8"))
        assert 0 < off(run(rewrite(capture, sites, MENU, ours), weights, flat)) < 0.2


def test_sites_are_plain_frozen_data(layers) -> None:  # type: ignore[no-untyped-def]
    _, _, sites = layers
    with pytest.raises(dataclasses.FrozenInstanceError):
        sites.sites = ()


def test_free_sizes_hide_no_block() -> None:
    """Sizes read from the input are used in every layer, and are no values that a branch computes."""
    model, x = nn.Sequential(Layer(), Layer()).eval().requires_grad_(False), torch.randn(2, 5, 64)
    fixed = sites_of(model, x)[2]
    capture, weights = from_export(model, (x,), None, any_sizes((x,), None, model))
    free = find_sites(capture, weights, MENU, MACHINE)
    assert [block.id for block in free.blocks] == [block.id for block in fixed.blocks]
    for block in free.blocks:
        longer = torch.randn(3, 9, 64)
        (out,) = run(rewrite(capture, free, MENU, {}, (block.id,)), weights, [longer])
        assert out.shape == longer.shape
