"""The mean error of rounding, folded into the bias: less error on data not calibrated on, in every level alike."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import adaflex
from adaflex.assembly import assemble, executor
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.machine import isa
from adaflex.passes.calibration import calibration, samples
from adaflex.passes.decision import Decision
from adaflex.passes.encoder import Encoder
from adaflex.passes.export_door import from_export
from adaflex.passes.menu import Encoded, Machine
from adaflex.passes.repair import bias_shift, statistics
from adaflex.passes.rewrite import rewrite, run
from adaflex.passes.sites import find_sites
from adaflex.verifying import decision_of

WIDE, ROWS = 512, 64  # rows enough for a mean, too few for second-order repair: an eighth of the columns
MEAN = torch.linspace(-3, 3, WIDE)


class Means(nn.Module):
    """Linears over values that are far from zero in the mean, as those behind norms and GELUs are."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDE)
        self.up, self.down = nn.Linear(WIDE, WIDE, bias), nn.Linear(WIDE, WIDE, bias)
        with torch.no_grad():
            self.norm.bias.copy_(MEAN)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(self.norm(x))))


def model(bias: bool = True) -> Means:
    torch.manual_seed(0)
    return Means(bias).eval().requires_grad_(False)


def calls(seed: int, count: int = 4) -> list[tuple[Tensor]]:
    made = torch.Generator().manual_seed(seed)
    return [(torch.randn(ROWS // 4, WIDE, generator=made),) for _ in range(count)]


def encoded(given: Means, family: str) -> tuple[Encoder, dict[str, Encoded]]:
    capture, weights = from_export(given, calls(1)[0], None, ({0: Dim("rows", min=2)},))
    sites = find_sites(capture, tuple(weights), MENU, Machine(isa(), 1))
    data = samples(capture, calibration(calls(1, 3)))
    encoder = Encoder(capture, tuple(weights), sites, MENU, data)
    chosen = {site.id: next(each for each in sites.offers[site.id] if each.family == family) for site in sites.sites}
    return encoder, encoder.encoded(chosen)


@pytest.mark.parametrize("family", ["w8", "w8a8", "w4", "w4a8"])
def test_the_error_falls_on_other_data_and_programs_compute_it(family: str) -> None:
    given = model()
    encoder, made = encoded(given, family)
    assert all("shift" in each.parts and each.encoding.rounding == "nearest" for each in made.values())
    plain = {
        name: Encoded(each.encoding, each.shape, {k: v for k, v in each.parts.items() if k != "shift"})
        for name, each in made.items()
    }
    unseen = torch.cat([each for (each,) in calls(2, 16)])
    errors = []
    for stored in (plain, made):
        graph = rewrite(encoder.capture, encoder.sites, MENU, stored)
        errors.append(float((run(graph, encoder.weights, [unseen])[0] - given(unseen)).norm()))
    assert errors[1] < 0.95 * errors[0]
    decision = Decision({name: _asked(encoder, name, family) for name in made})
    program = assemble(encoder.capture, encoder.weights, encoder.sites, decision, lambda site, _: made[site])
    here = Machine(isa(), 1)
    (found,) = executor(program, here)(unseen)
    (wanted,) = run(rewrite(encoder.capture, encoder.sites, MENU, made), encoder.weights, [unseen])
    assert float((found - wanted).norm() / wanted.norm()) < 5e-3
    assert float((found - given(unseen)).norm()) < 0.96 * errors[0]


def _asked(encoder: Encoder, name: str, family: str):  # type: ignore[no-untyped-def]
    return next(each for each in encoder.sites.offers[name] if each.family == family)


def test_without_a_bias_or_with_rows_enough_nothing_is_shifted() -> None:
    assert not any("shift" in each.parts for each in encoded(model(bias=False), "w8")[1].values())
    capture, weights = from_export(model(), calls(1)[0], None, ({0: Dim("rows", min=2)},))
    sites = find_sites(capture, tuple(weights), MENU, Machine(isa(), 1))
    encoder = Encoder(capture, tuple(weights), sites, MENU, samples(capture, calibration(calls(1, 20))))
    wanted = {site: next(e for e in offers if e.family == "w8") for site, offers in sites.offers.items()}
    for made in encoder.encoded(wanted).values():
        assert made.encoding.rounding == "compensated" and "shift" not in made.parts


def test_a_mean_that_is_lost_in_noise_is_not_corrected() -> None:
    """Against its definition: the mean of the output error, held back by its own variance."""
    torch.manual_seed(3)
    error = torch.randn(7, 32) / 100
    far = torch.randn(40, 32) + 2
    found = bias_shift(error, statistics([(far, None)]))
    each = far @ error.T
    mean, noise = each.mean(0), float(each.var(0, unbiased=True).sum()) / 40
    assert found is not None
    assert torch.allclose(found, mean * (1 - noise / float(mean.square().sum())), rtol=1e-3)
    centred = torch.randn(40, 32)
    centred -= centred.mean(0)
    assert bias_shift(error, statistics([(centred, None)])) is None
    assert bias_shift(error, statistics([(far[:1], None)])) is None
    assert bias_shift(error * float("nan"), statistics([(far, None)])) is None


def test_through_both_doors_and_in_later_graphs() -> None:
    given, x = model(), calls(4)[0][0]
    options = {"calibration": calls(1), "bits": 5.0, "threads": 1, "on_broken": "warn", "axes": ["precision"]}
    planned = adaflex.plan(given, calls(1)[0], **options)
    found = planned.planned
    taken = found.scores.tensors(decision_of(found.table, found.plan).encodings)
    assert any("shift" in each.parts for each in taken.values())
    first = planned.compile()(x)
    torch._dynamo.reset()
    compiled = torch.compile(given, backend="adaflex", fullgraph=True, options=options)
    with torch.no_grad():
        assert torch.allclose(compiled(x), first, atol=1e-3)
        other = torch.randn(5, WIDE)
        assert torch.allclose(compiled(other), planned.compile()(other), atol=1e-3)


def test_families_ignore_the_shift_when_they_pack() -> None:
    _, made = encoded(model(), "w8")
    for each in made.values():
        assert len(kernel(MENU, "w8").pack(each)) == kernel(MENU, "w8").size_bytes(each.shape, each.encoding)
