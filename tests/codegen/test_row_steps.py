"""Row steps as the C++ printer writes them, on rows that are hard for sums in one pass, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adaflex.native import compiler
from adaflex.passes.export_door import from_export
from tests.codegen.test_programs import program_of

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")


def hard_rows(columns: int) -> Tensor:
    """Ordinary, far from zero, the first value an outlier (of a lane, of the row), all the same."""
    torch.manual_seed(columns)
    x = torch.randn(7, columns)
    x[1] += 1000
    x[2, 0] = 1e5
    x[3, columns // 2] = -1e4
    x[4] = 3.7
    x[5, : min(columns, 64)] += 300
    return x


@pytest.mark.parametrize("columns", [1, 5, 16, 20, 63, 64, 100, 384, 1000])
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_layer_norm_of_hard_rows(columns: int, isa: str) -> None:
    from adaflex.machine import NEEDS, cpu

    if not NEEDS[isa] <= cpu()[1]:
        pytest.skip(f"this processor has no {isa}")
    model, x = nn.LayerNorm(columns).eval(), hard_rows(columns)
    capture, weights = from_export(model, (x,))
    runs, _ = program_of(capture, weights, "nothing", isa=isa)
    wanted = nn.functional.layer_norm(x.double(), (columns,), eps=model.eps)
    eager = model(x).detach()
    spread = (x.double().var(1, unbiased=False) + model.eps).sqrt()
    rounding = 8 * torch.finfo(torch.float32).eps * x.abs().amax(1) / spread  # of a mean of numbers that large
    for found, theirs, best, unit in zip(runs(x)[0], eager, wanted, rounding, strict=True):
        allowed = max(2 * float((theirs - best).abs().max()), float(unit) + 1e-5)
        assert float((found - best).abs().max()) <= allowed


@pytest.mark.parametrize("family", ["w8a8", "w4a8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_reaches_the_output(family: str, bad: float) -> None:
    model, x = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 32)).eval(), torch.randn(5, 256)
    capture, weights = from_export(model, (x,))
    runs, _ = program_of(capture, weights, family)
    clean = runs(x)[0]
    x[2, 17] = bad
    found = runs(x)[0]
    assert not found[2].isfinite().any()
    assert torch.equal(found[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])
