"""Kernels compiled ahead of time for two architectures: no spills, and the matrix instruction that was meant."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

pytest.importorskip("triton")

from adaflex.codegen.triton import render
from adaflex.codegen.triton_build import HEAD, Spec, compile_kernel, load, write
from adaflex.codegen.triton_region import pointer_type
from adaflex.codegen.triton_rows import print_rows, tile
from adaflex.codegen.triton_templates.w4_layout import GROUPS, pack, unpack
from adaflex.errors import BuildError
from tests.codegen.test_triton_text import norm_region, product_program, softmax_region

ARCHITECTURES = (80, 90)
MATRIX = {80: "HMMA", 90: "HGMMA"}
TEMPLATE = {
    "x": "*bf16", "b": "*u8", "scale": "*fp32", "zero": "*u8", "partial": "*fp32", "M": "i32", "N": "i32", "K": "i32",
    "pitch": "i32",
}  # fmt: skip


@pytest.fixture(scope="module")
def products() -> ModuleType:
    return load(write(render(product_program()).text))


def spec(constants: dict[str, int], warps: int = 4) -> Spec:
    """The types of an int4 template's arguments, epilogue of ``product_program`` included."""
    chosen = {"GROUP": 128, "H": 64, "ASYMMETRIC": 0, "F16": 0, "WHOLE": 1, "SHARED": 0, **constants}
    signature = {**TEMPLATE, "p0": "*fp32", "p1": "*bf16", **dict.fromkeys(chosen, "constexpr")}
    return Spec(signature, chosen, warps, 4, ("N", "K", "pitch"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rows,asymmetric,group", [(16, 1, 32), (64, 0, 128)])
def test_gemm(products: ModuleType, architecture: int, rows: int, asymmetric: int, group: int) -> None:
    name = render(product_program()).products[0].gemm
    wanted = spec({"BM": rows, "BN": 64, "ASYMMETRIC": asymmetric, "GROUP": group, "H": min(group, 64)})
    built = compile_kernel(getattr(products, name), wanted, architecture)
    assert built.spills == 0 and built.stack_bytes == 0
    assert built.opcodes.get(MATRIX[architecture], 0) >= 4
    assert built.registers <= 168 and built.shared_bytes <= 100 << 10
    assert built.cubin[:4] == b"\x7fELF"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gemv(products: ModuleType, architecture: int) -> None:
    name = render(product_program()).products[0].gemv
    built = compile_kernel(getattr(products, name), spec({"BM": 4, "BN": 16}), architecture)
    assert built.spills == 0 and built.stack_bytes == 0 and built.registers <= 128
    assert not {"HMMA", "HGMMA"} & set(built.opcodes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_norm_with_quantised_store(architecture: int) -> None:
    region, slots = norm_region()
    (kernel,) = print_rows(region, slots)
    module = load(write(HEAD + "\n\n" + kernel.text("k0")))
    pointers = {f"p{place}": pointer_type(slots[slot]) for place, slot in enumerate(kernel.slots)}
    shape = tile(kernel, 4096, 384)
    constants = {"BR": shape.rows, "BC": shape.columns}
    signature = {**pointers, "s0": "i32", "BR": "constexpr", "BC": "constexpr"}
    built = compile_kernel(module.k0, Spec(signature, constants, shape.warps), architecture)
    assert built.spills == 0 and built.stack_bytes == 0


def test_a_refused_kernel_is_a_build_error() -> None:
    module = load(
        write("import triton\nimport triton.language as tl\n\n\n@triton.jit\ndef k0(p0):\n    tl.nothing(p0)\n")
    )
    with pytest.raises(BuildError, match="sm_80"):
        compile_kernel(module.k0, Spec({"p0": "*fp32"}, {}), 80)


def test_spills_are_seen() -> None:
    """A row of 8192 numbers in one warp must spill, and is reported so: the zeros above mean something."""
    region, slots = softmax_region()
    kernel = print_rows(region, slots)[0]
    module = load(write(HEAD + "\n\n" + kernel.text("k0")))
    pointers = {f"p{place}": pointer_type(slots[slot]) for place, slot in enumerate(kernel.slots)}
    constants = {"BR": 1, "BC": 8192}
    signature = {**pointers, "s0": "i32", "s1": "i32", "BR": "constexpr", "BC": "constexpr"}
    built = compile_kernel(module.k0, Spec(signature, constants, 1, whole=("s1",)), 80)
    assert built.spills > 0 and built.stack_bytes > 0


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rows,groups", [(1, 1), (70, 3), (128, 4)])
def test_packing_is_reversible(group: int, symmetric: bool, rows: int, groups: int) -> None:
    codes = torch.randint(0, 16, (rows, group * groups), dtype=torch.uint8)
    scale = torch.rand(rows, groups)
    zero = None if symmetric else torch.randint(0, 16, (rows, groups), dtype=torch.uint8)
    packed = pack(codes, scale, zero, group)
    back = unpack(packed)
    assert torch.equal(back[0], codes) and torch.equal(back[1], scale)
    assert back[2] is None if zero is None else torch.equal(back[2], zero)


def test_a_group_that_no_kernel_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 48"):
        pack(torch.zeros(4, 96, dtype=torch.uint8), torch.ones(4, 2), None, 48)
