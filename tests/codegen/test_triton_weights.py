"""Weights on their way to the GPU: encodings read back from labels, products' weights, and launch shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adaflex.codegen.draft import form_row_bytes
from adaflex.codegen.hadamard import rotate
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.codegen.kernels.quantise import expand, quantise_rows
from adaflex.codegen.triton_launch import choose
from adaflex.codegen.triton_templates.w4_layout import Packed, unpack
from adaflex.codegen.triton_weights import Dense, activations, encoding_of, product_weights, without_products
from adaflex.passes.menu import Machine
from adaflex.runtime.program import Constant, GemmStep, Program, Slot
from adaflex.runtime.region import Op, Region, Store
from adaflex.solver.table import Encoding, Site

SITE = Site("w", "linear", 96 * 128, 4 * 96 * 128, (), "", (96, 128))
LINEAR = [
    encoding for entry in MENU if "linear" in entry.ops for encoding in entry.offers(SITE, Machine("avx512", 2))
]  # fmt: skip


@pytest.mark.parametrize("encoding", LINEAR, ids=lambda e: e.label())
def test_labels_name_encodings(encoding: Encoding) -> None:
    assert encoding_of(encoding.label(), MENU) == encoding


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(KeyError):
        encoding_of("w5-g64", MENU)


def one_product(encoding: Encoding, weight: torch.Tensor) -> tuple[Program, torch.Tensor, torch.Tensor]:
    """A program of one product beside another constant, its bytes, and the weight that is stored."""
    family = kernel(MENU, encoding.family)
    encoded = family.encode(weight, encoding, None)
    block = family.pack(encoded)
    n, k = weight.shape
    bias = torch.arange(n, dtype=torch.float32)
    call = family.call(encoding, k, n)
    slots = (
        Slot("local", family.form(encoding), "s0", k, 4 * k),
        Slot("constant", "u8", 1, len(block), len(block), constant=0),
        Slot("constant", "f32", 1, n, 4 * n, (n,), constant=1),
        Slot("local", "f32", "s0", n, 4 * n),
    )
    region = Region(("s0",), n, (), (Op("acc"),), (Store(0, 3),))
    step = GemmStep(0, 1, call.header, call.function, (), k, n, region)
    constants = (
        Constant("w", 0, len(block), encoding.label(), (n, k)), Constant("b", len(block), 4 * n, "f32", (n,)),
    )  # fmt: skip
    program = Program(("s0",), (), (), (), (), slots, constants, (step,), (0,))
    return program, torch.cat([block, bias.view(torch.uint8)]), family.decode(encoded)


@pytest.mark.parametrize("encoding", LINEAR, ids=lambda e: e.label())
def test_weights_stand_for_what_the_family_decodes(encoding: Encoding) -> None:
    program, data, stored = one_product(encoding, torch.randn(96, 128))
    weight = product_weights(program, data, MENU, "cpu")[0]
    assert weight.size_bytes >= (96 * 128 // 2 if encoding.family == "w4" else 4 * 96 * 128)
    assert isinstance(weight, Packed if encoding.family == "w4" else Dense)
    if isinstance(weight, Packed):
        codes, scale, zero = unpack(weight)
        least = expand(zero.float(), 128) if zero is not None else 8.0
        found = (codes.float() - least) * expand(scale, 128)
    else:
        found = rotate(weight.values, encoding.rotation)
    assert torch.allclose(found, stored.float(), atol=1e-5)


def test_packed_weights_leave_the_constants() -> None:
    program, data, _ = one_product(next(e for e in LINEAR if e.family == "w4"), torch.randn(96, 128))
    slim, rest = without_products(program, data, "cpu")
    assert rest.numel() == 4 * 96
    assert [entry.size_bytes for entry in slim.constants] == [0, 384]
    assert torch.equal(rest.view(torch.float32), torch.arange(96.0))


@pytest.mark.parametrize("form", ["f32", "bf16", "u8t", "u8g32"])
def test_activations_are_read_back(form: str) -> None:
    rows, columns = 3, 96
    x = torch.randn(rows, columns)
    width = form_row_bytes(form, columns, 4)
    assert isinstance(width, int)
    memory = torch.zeros(rows, width, dtype=torch.uint8)
    want = x
    if form in ("f32", "bf16"):
        want = x if form == "f32" else x.bfloat16()
        memory[:, : columns * want.element_size()] = want.view(torch.uint8)
    else:
        codes, scale, low = quantise_rows(x, 0 if form == "u8t" else 32)
        tail = torch.cat((scale, low), 1).contiguous().view(torch.uint8)
        memory[:, :columns] = codes.to(torch.uint8)
        memory[:, 128 : 128 + tail.shape[1]] = tail
        want = codes * expand(scale, columns) + expand(low, columns)
    slot = Slot("local", form, rows, columns, width)
    assert torch.allclose(activations(memory.reshape(-1), slot, rows, columns, {}), want.float(), atol=1e-6)


@pytest.mark.parametrize("rows,template,height", [(1, "gemv", 1), (3, "gemv", 4), (5, "gemm", 16), (17, "gemm", 64)])
def test_launch_shapes(rows: int, template: str, height: int) -> None:
    shape = choose(rows, 4096, 4096, 132)
    assert (shape.template, shape.rows) == (template, height)
    programs = -(-4096 // shape.columns) * -(-rows // height) * shape.parts
    assert programs >= 132, "no processor is idle"
    assert choose(rows, 64, 128, 132).parts == 1, "one block of K is not shared"
    assert replace(shape, parts=1) == replace(choose(rows, 4096, 4096, 1), parts=1)
    assert choose(rows, 4096, 4096, 1).parts == 1, "a small chip is full without sharing"
