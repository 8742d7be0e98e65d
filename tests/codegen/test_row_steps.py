"""Row steps as the C++ printer writes them, on rows that are hard for sums in one pass, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adaflex.codegen.evaluate import Evaluator
from adaflex.native import compiler
from adaflex.passes.export_door import from_export
from adaflex.runtime.execute import Executor
from adaflex.solver.table import Encoding
from tests.codegen import lowered
from tests.codegen.batched import BatchedKernels, build_together, supported
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


class NormLinear(nn.Module):
    """A norm of a sum whose reader quantises; the sum goes on as well."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(columns), nn.Linear(columns, 32)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return self.linear(self.norm(total)), total


FORMS = [
    Encoding("w8a8", 8, g, rotation=h) for g, h in ((0, 0), (0, 128), (32, 0), (32, 64), (64, 0), (64, 128), (128, 0))
]


@pytest.mark.parametrize("columns", [384, 1152])  # one part of the columns, and several
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_norms_in_activation_forms(columns: int, isa: str) -> None:
    from adaflex.machine import NEEDS, cpu

    if not NEEDS[isa] <= cpu()[1]:
        pytest.skip(f"this processor has no {isa}")
    torch.manual_seed(columns)
    model = NormLinear(columns).eval()
    rows = torch.export.Dim("rows", min=1, max=64)
    given = (torch.randn(5, columns), torch.randn(5, columns))
    capture, weights = from_export(model, given, dynamic_shapes=({0: rows}, {0: rows}))
    forms = FORMS[columns > 384 :: 2] if isa == "portable" else FORMS  # whose compiler takes a second for each
    made = [lowered.program_of(capture, weights, lambda _, e=encoding: e) for encoding in forms]
    library = build_together([program for program, _ in made], isa)
    for number, (program, block) in enumerate(made):
        native = Executor(program, block, BatchedKernels(library, 1, number), threads=1)
        meaning = Executor(program, block, Evaluator(program), threads=1)
        alone = torch.randn(19, columns), torch.randn(19, columns)
        found, wanted = native(*alone), meaning(*alone)
        assert torch.equal(found[1], wanted[1])
        assert float((found[0] - wanted[0]).norm() / wanted[0].norm()) < 2e-3, forms[number]  # ties fall either way
        for count in (1, 3, 7):  # a row's result is its own, whatever rows it goes with
            part = native(*(x[:count].clone() for x in alone))
            assert torch.equal(part[0], found[0][:count]), (forms[number], count)
        alone[0][2, 77] = float("nan")
        spoilt = native(*alone)[0]
        assert not spoilt[2].isfinite().any(), forms[number]
        assert torch.equal(spoilt[[0, 1, 3, 18]], found[0][[0, 1, 3, 18]])


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


class NormLinears(nn.Module):
    """A norm that several linears read, each in its own form."""

    def __init__(self, columns: int, count: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(columns)
        self.linears = nn.ModuleList(nn.Linear(columns, 16 + 16 * n) for n in range(count))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        normed = self.norm(x)
        return tuple(linear(normed) for linear in self.linears)


SEVERAL = [
    (Encoding("bf16", 16), Encoding("w8a8", 8, 64)),
    (Encoding("w8a8", 8, 64, rotation=64), Encoding("bf16", 16)),
    (Encoding("w8a8", 8, 64), Encoding("fp32", 32)),
    (Encoding("w8a8", 8, 64), Encoding("w8a8", 8, 64, rotation=64), Encoding("w8a8", 8)),
    (Encoding("bf16", 16), Encoding("w8a8", 8, 32), Encoding("w8a8", 8, rotation=128), Encoding("fp32", 32)),
]


@pytest.mark.parametrize("columns", [384, 1152])
def test_one_value_in_several_forms(columns: int) -> None:
    torch.manual_seed(columns)
    made = []
    for encodings in SEVERAL:
        model, x = NormLinears(columns, len(encodings)).eval(), torch.randn(5, columns)
        capture, weights = from_export(model, (x,))
        made.append(lowered.program_of(capture, weights, lambda shape, e=encodings: e[shape[0] // 16 - 1]))
    isa = supported()
    library = build_together([program for program, _ in made], isa)
    for number, (program, block) in enumerate(made):
        native = Executor(program, block, BatchedKernels(library, 1, number), threads=1)(x)
        meaning = Executor(program, block, Evaluator(program), threads=1)(x)
        for found, wanted, encoding in zip(native, meaning, SEVERAL[number], strict=True):
            assert float((found - wanted).norm() / wanted.norm()) < 2e-3, (SEVERAL[number], encoding)
