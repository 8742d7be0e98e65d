"""What programs from files are held against, against what the families themselves pack."""

import pytest

from adaflex.codegen.kernels.menu import MENU
from adaflex.codegen.products import product_reads
from adaflex.solver.table import Encoding

SHAPES = ((32, 128), (33, 256), (1, 640), (100, 96), (7, 5))
ENCODINGS = [
    Encoding(family.name, bits, group, symmetric, rotation)
    for family in MENU
    for bits in (32, 16, 8, 4)
    for group in (0, 32, 64, 128)
    for symmetric in (True, False)
    for rotation in (0, 64, 128)
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_product_reads_what_its_family_packs(shape: tuple[int, int]) -> None:
    met = set()
    n, k = shape
    for encoding in ENCODINGS:
        family = next(entry for entry in MENU if entry.name == encoding.family)
        if "linear" not in family.ops or not family.supports(shape, encoding):
            continue
        call, held = family.call(encoding, k, n), family.size_bytes(shape, encoding)
        reads = product_reads(call.function, n, k)
        assert reads is not None, call.function
        form, parts = reads
        assert form == family.form(encoding).partition("-")[0]
        assert [name for name, _ in parts] == [name for name, _ in call.parts]
        ends = [offset + size for (_, offset), (_, size) in zip(call.parts, parts, strict=True)]
        assert max(ends) <= held < max(ends) + 64
        met.add(encoding.family)
    assert met >= {"fp32", "bf16", "w8", "w8a8"}


@pytest.mark.parametrize(
    "function", ["gemm_f64", "gemm_w4", "gemm_w4<48, true>", "gemm_w8<64>", "gemm_w8a8_grouped<0>"]
)
def test_no_other_product_is_known(function: str) -> None:
    assert product_reads(function, 32, 96) is None
