"""The text of printed kernels, against golden files; names, and equal texts printed once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adaflex.codegen.scalar_ops import Writer, layer_norm, softmax
from adaflex.codegen.triton import after_sums, render
from adaflex.codegen.triton_forms import legalise
from adaflex.codegen.triton_rows import print_rows, tile
from adaflex.runtime.program import GemmStep, Program, RowStep, Slot
from adaflex.runtime.region import Load, Op, Region, Store
from tests import golden_files


def norm_region() -> tuple[Region, tuple[Slot, ...]]:
    """Layer norm of s0 rows by 384, stored plain and quantised."""
    w = Writer()
    value = layer_norm(w, w.emit("load", 0), w.emit("load", 1), w.emit("load", 2), 1e-5)
    slots = (
        Slot("local", "f32", "s0", 384, 1536), Slot("constant", "f32", 1, 384, 1536),
        Slot("constant", "f32", 1, 384, 1536), Slot("local", "f32", "s0", 384, 1536),
        Slot("local", "u8t-h128", "s0", 384, 448),
    )  # fmt: skip
    loads = (Load(0, (384,), 1), Load(1, (0,), 1), Load(2, (0,), 1))
    return Region(("s0",), 384, loads, tuple(w.ops), (Store(value, 3), Store(value, 4))), slots


def softmax_region() -> tuple[Region, tuple[Slot, ...]]:
    """Softmax over a number of columns known at run time, bf16 in and out."""
    w = Writer()
    value = softmax(w, w.emit("load", 0))
    slots = (Slot("local", "bf16", "s0", "s1", ("*", "s1", 2)),) * 2
    return Region(("s0",), "s1", (Load(0, ("s1",), 1),), tuple(w.ops), (Store(value, 1),)), slots


def product_program() -> Program:
    """Two int4 products with equal epilogues over different slots, and a row step."""
    ops = (Op("load", (0,)), Op("acc"), Op("add", (1, 0)), Op("silu", (2,)))
    slots = [Slot("local", "bf16", "s0", 256, 512), Slot("constant", "u8", 1, 1, 1)]
    slots += [Slot("constant", "f32", 1, 256, 1024), Slot("local", "bf16", "s0", 256, 512)]
    slots += [Slot("constant", "u8", 1, 1, 1), Slot("local", "bf16", "s0", 256, 512)]
    regions = [Region(("s0",), 256, (Load(2, (0,), 1),), ops, (Store(3, out),)) for out in (3, 5)]
    steps = (
        GemmStep(0, 1, "gemm_w4.h", "gemm_w4<128, true>", (), 256, 256, regions[0], "secret name"),
        GemmStep(3, 4, "gemm_w4.h", "gemm_w4<128, true>", (), 256, 256, regions[1], "another"),
        RowStep(Region(("s0",), 256, (Load(0, (256,), 1),), (Op("load", (0,)), Op("relu", (0,))), (Store(1, 3),))),
    )
    return Program(("s0",), (), (), (), (), tuple(slots), (), steps, (0, 1, 2))


@pytest.mark.parametrize("name", ["norm", "softmax"])
def test_row_kernels(name: str, request: pytest.FixtureRequest) -> None:
    region, slots = {"norm": norm_region, "softmax": softmax_region}[name]()
    text = "\n".join(kernel.text(f"k{place}") for place, kernel in enumerate(print_rows(region, slots)))
    golden_files.check(f"triton/{name}.txt", text, request.config)


def test_program(request: pytest.FixtureRequest) -> None:
    source = render(product_program())
    golden_files.check("triton/int4_program.txt", source.text, request.config)


def test_equal_steps_share_kernels_and_no_label_is_printed() -> None:
    source = render(product_program())
    first, second = source.products[0], source.products[1]
    assert (first.gemm, first.gemv, first.finish.name) == (second.gemm, second.gemv, second.finish.name)
    assert (first.slots, second.slots) == ((2, 3), (2, 5))
    assert "secret" not in source.text and "another" not in source.text
    assert source.text.count("def k") == 4


def test_sums_become_a_fold() -> None:
    step = product_program().steps[0]
    assert isinstance(step, GemmStep)
    region = after_sums(step.region, 6, 256)
    assert region.inner == "parts"
    assert region.loads[-1] == Load(6, (256,), 1, inner=("*", "s0", 256))
    assert [op.name for op in region.ops] == ["load", "fold_sum", "load", "depth", "add", "silu"]
    assert region.ops[4].args == (1, 2)


def test_formed_stores_become_ops() -> None:
    region, slots = norm_region()
    legal, targets = legalise(region, slots)
    assert [target.kind for target in targets] == ["plain", "codes", "tail", "tail"]
    assert [op.name for op in legal.ops].count("rotate") == 1
    assert targets[2].offset == 384 and targets[3].offset == 388


@pytest.mark.parametrize("rows", [1, 7, 4096])
@pytest.mark.parametrize("columns", [1, 37, 384, 5000])
def test_tiles_cover_everything(rows: int, columns: int) -> None:
    region, slots = norm_region()
    for mode in ("flat", "block", "loop"):
        kernel = replace(print_rows(region, slots)[0], mode=mode)
        shape = tile(kernel, rows, columns)
        assert shape.rows * shape.grid[0] >= rows
        assert mode == "loop" or shape.columns * shape.grid[1] >= columns
        assert shape.columns % kernel.unit == 0
        assert all(size & (size - 1) == 0 for size in (shape.rows, shape.columns, shape.warps))
