"""Structured width: which linears share neurons, what is kept of them, and the graph that is left."""

import pytest
import torch
from torch import nn

from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.calibration import Calibration, samples
from adaflex.passes.decision import Decision
from adaflex.passes.encoder import Encoder
from adaflex.passes.export_door import any_sizes, from_export
from adaflex.passes.menu import Machine
from adaflex.passes.repair import statistics
from adaflex.passes.restructure import restructure
from adaflex.passes.rewrite import rewrite, run
from adaflex.passes.score import score
from adaflex.passes.sites import find_sites, with_widths
from adaflex.passes.widths import kept_of, shrink, widths, with_width
from tests.passes.models import zoo
from tests.passes.test_restructure import check_sound
from tests.passes.test_sites_and_rewrite import Layer

MACHINE = Machine("avx512", 2)


class Gated(nn.Module):
    """A gated mlp with biases, and a residual."""

    def __init__(self, width: int = 64, inner: int = 128) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def found(model: nn.Module, x: torch.Tensor):  # type: ignore[no-untyped-def]
    model = model.eval().requires_grad_(False)
    capture, weights = from_export(model, (x,), None, any_sizes((x,), None, model))
    return capture, weights, with_widths(find_sites(capture, weights, MENU, MACHINE), MENU, MACHINE)


def data(count: int = 64, seed: int = 1, rank: int = 64) -> list[torch.Tensor]:
    """Calls whose rows span ``rank`` directions, the same ones for every seed."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(rank, 64, generator=torch.Generator().manual_seed(9)) / rank**0.5
    return [torch.randn(2, 8, rank, generator=generator) @ mix for _ in range(count)]


def encoder_of(model: nn.Module, calls: list[torch.Tensor]):  # type: ignore[no-untyped-def]
    capture, weights, sites = found(model, calls[0])
    return Encoder(capture, weights, sites, MENU, samples(capture, Calibration(calls)))


def narrow(sites, family: str, kept: int):  # type: ignore[no-untyped-def]
    """Every site of the only mlp in one family at one width."""
    (mlp,) = sites.mlps
    return {
        site: next(e for e in sites.offers[site] if e.family == family and kept_of(e) == kept) for site in mlp.sites
    }


def test_pairs_are_found_by_structure() -> None:
    torch.manual_seed(0)
    sites = found(Layer(), torch.randn(2, 5, 64))[2]
    assert [(mlp.ups, mlp.down, mlp.neurons) for mlp in sites.mlps] == [(("up.weight",), "down.weight", 128)]
    sites = found(Gated(), torch.randn(2, 5, 64))[2]
    assert [(mlp.ups, mlp.down) for mlp in sites.mlps] == [(("gate.weight", "up.weight"), "down.weight")]
    widest = [each for each in sites.offers["down.weight"] if kept_of(each) is not None]
    assert {(each.family, each.sparsity) for each in widest} >= {
        (family, f"width:{kept}/128") for family in ("fp32", "bf16", "w8a8") for kept in (96, 64)
    }
    assert not any(kept_of(each) for each in found(Layer(), torch.randn(1, 3, 64))[2].offers["query.weight"])


@pytest.mark.parametrize(("name", "count"), [("bert", 2), ("qwen2", 2), ("vit", 2)])
def test_pairs_of_the_zoo(name: str, count: int) -> None:
    entry = zoo()[name]
    capture, weights = from_export(entry.model(), entry.inputs())
    assert len(find_sites(capture, weights, MENU, MACHINE).mlps) == count


def test_what_else_is_read_is_no_pair() -> None:
    class Read(nn.Module):
        """The inner value is an output too, mixed across neurons, or shifted by a tensor of its width."""

        def __init__(self, how: str) -> None:
            super().__init__()
            self.up, self.down, self.how = nn.Linear(64, 128), nn.Linear(128, 64), how
            self.shift = nn.Parameter(torch.randn(128))

        def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
            h = torch.relu(self.up(x))
            if self.how == "mixed":
                return self.down(torch.softmax(h, -1))
            if self.how == "shifted":
                return self.down(h + self.shift)
            return (self.down(h), h) if self.how == "output" else self.down(h * 2.0 + h.mean(-1, keepdim=True))

    for how in ("mixed", "shifted", "output", "mean"):
        assert found(Read(how), torch.randn(4, 64))[2].mlps == (), how


def test_widths_are_whole_steps_below_all() -> None:
    assert widths(512) == (384, 256) and widths(128) == (96, 64)
    assert widths(32) == () and widths(64) == (32,) and widths(1536) == (1152, 768)


@pytest.mark.parametrize("model", [Layer, Gated])
@pytest.mark.parametrize("family", ["fp32", "bf16", "w8a8", "w4a8"])
def test_the_smaller_graph_computes_what_was_scored(model: type[nn.Module], family: str) -> None:
    """Shapes really shrink, and the small graph with the tensors that ship equals the rewritten reference."""
    torch.manual_seed(0)
    encoder = encoder_of(model(), data())
    capture, sites = encoder.capture, encoder.sites
    chosen = narrow(sites, family, 64)
    stored = encoder.encoded(chosen)
    small = restructure(capture, sites, Decision(chosen))
    check_sound(small.capture, small.sites)
    shapes = {site.id: site.shape for site in small.sites.sites}
    assert shapes["up.weight"] == (64, 64) and shapes["down.weight"] == (64, 64)
    assert {each.name: each.shape for each in small.capture.constants}["up.bias"] == (64,)
    nodes = {node.name: node for node in small.capture.graph.graph.nodes}
    assert all(nodes[name].meta["val"].shape[-1] == 64 for mlp in small.sites.mlps for name in mlp.inner)
    kept = {site: each.parts["kept"] for site, each in stored.items() if "kept" in each.parts}
    assert set(kept) == set(sites.mlps[0].ups)
    bound = small.weights(encoder.weights, kept)
    x = data(1, seed=5)[0]
    (mine,) = run(rewrite(small.capture, small.sites, MENU, stored_dense(stored)), bound, [x])
    (reference,) = run(rewrite(capture, sites, MENU, stored), encoder.weights, [x])
    assert torch.allclose(mine, reference, atol=1e-5)


def stored_dense(stored):  # type: ignore[no-untyped-def]
    """The same tensors, without the neurons that biases were cut by already."""
    return {
        site: type(each)(each.encoding, each.shape, {k: v for k, v in each.parts.items() if k != "kept"})
        for site, each in stored.items()
    }


def test_all_neurons_that_matter_are_kept_exactly() -> None:
    """A model half of whose neurons are silent loses nothing at half its width."""
    torch.manual_seed(0)
    model = Gated()
    with torch.no_grad():
        silent = torch.randperm(128)[:64]
        model.up.weight[silent], model.up.bias[silent] = 0.0, 0.0
    encoder = encoder_of(model, data())
    stored = encoder.encoded(narrow(encoder.sites, "fp32", 64))
    assert not set(stored["up.weight"].parts["kept"].tolist()) & set(silent.tolist())
    x = data(1, seed=5)[0]
    (out,) = run(rewrite(encoder.capture, encoder.sites, MENU, stored), encoder.weights, [x])
    assert torch.allclose(out, model(x), atol=1e-4)


def test_the_refit_beats_plain_removal_on_data_held_out() -> None:
    """On inputs of eight directions neurons resemble one another, so that others can stand in for those removed."""
    torch.manual_seed(0)
    model = Gated().eval().requires_grad_(False)
    inner = lambda x: nn.functional.silu(model.gate(x)) * model.up(x)  # noqa: E731
    fitted, unseen = (torch.cat([inner(x) for x in data(64, seed, rank=8)]).reshape(-1, 128) for seed in (1, 2))
    made = shrink(model.down.weight, statistics([(fitted, None)]), 96)
    whole = unseen @ model.down.weight.T
    refitted = float((unseen[:, made.kept] @ made.down.T - whole).norm())
    plain = float((unseen[:, made.kept] @ model.down.weight[:, made.kept].T - whole).norm())
    assert refitted < 0.7 * plain


def test_too_few_rows_leave_the_columns_as_they_were() -> None:
    down = torch.randn(8, 128)
    made = shrink(down, statistics([(torch.randn(10, 128), None)]), 96)
    assert torch.equal(made.down, down[:, made.kept])


def test_losses_of_widths_add_up_to_what_was_measured() -> None:
    """The first site bears what the removal costs, an encoding's site what it adds: on data the refit has not seen."""
    torch.manual_seed(0)
    capture, weights, sites = found(Layer(), data(1)[0])
    scores = score(capture, weights, sites, MENU, Calibration(data(16)))
    up, down = (narrow(sites, "fp32", 64)[name] for name in ("up.weight", "down.weight"))
    whole = scores.plan_loss({"up.weight": up, "down.weight": down})
    assert scores.loss["up.weight", up] == pytest.approx(whole) and scores.loss["down.weight", down] == 0.0
    eight = narrow(sites, "w8a8", 64)["down.weight"]
    both = scores.plan_loss({"up.weight": up, "down.weight": eight})
    assert scores.loss["up.weight", up] + scores.loss["down.weight", eight] == pytest.approx(max(both, whole))
    seen = scores.plan_loss({"up.weight": up, "down.weight": down}, held=False)
    assert seen < scores.loss["up.weight", up], "what was fitted looks better than it is"
    wide = narrow(sites, "fp32", 96)
    assert 0 < scores.plan_loss(wide) < whole


def test_a_torn_width_is_refused() -> None:
    capture, _, sites = found(Layer(), torch.randn(2, 5, 64))
    with pytest.raises(ValueError, match="must keep the same"):
        restructure(capture, sites, Decision({"up.weight": with_width(sites.keep["up.weight"], 64, 128)}))
