"""Windows that slide over images, on every instruction set and in the evaluator, against torch's own operators."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import random
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaflex.codegen.evaluate_windows import evaluate_windows
from adaflex.passes.windows import windows
from adaflex.runtime.program import Operand, WindowStep

Harness = Callable[[str], ctypes.CDLL]
KINDS = {"patches": 0, "depthwise": 1, "mean": 1, "max": 2}
Pair = tuple[int, int]


PLACES = ("kernel", "stride", "padding", "dilation")


class Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "out")),
        *((name, ctypes.c_long) for name in ("kind", "columns")),
        ("share", ctypes.c_float),
        *((name, ctypes.c_long) for name in ("height", "width", "channels")),
        ("strides", ctypes.c_long * 4),
        *((name, ctypes.c_long * count) for name, count in zip(PLACES, (2, 2, 4, 2), strict=True)),
    ]


@dataclass(frozen=True)
class Shape:
    """Images, windows, and how the images lie: channels "last", channels "first", or as a "part" of wider ones."""

    kind: str
    n: int
    h: int
    w: int
    c: int
    kernel: Pair
    stride: Pair
    padding: tuple[int, int, int, int]  # top, left, bottom, right
    dilation: Pair
    lie: str

    @property
    def places(self) -> tuple[Pair, Pair, tuple[int, int, int, int], Pair]:
        return self.kernel, self.stride, self.padding, self.dilation


def fits(shape: Shape) -> bool:
    step = step_of(shape, (0, 0, 0, 0))
    return step.windows(0, shape.h) > 0 and step.windows(1, shape.w) > 0


def every_shape() -> list[Shape]:
    """Each kind at windows of all sorts; channels, images and how they lie are drawn."""
    geometry = [
        ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
        ((1, 1), (2, 2), (1, 1, 1, 1), (1, 1)),
        ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        ((3, 3), (2, 2), (0, 0, 1, 1), (1, 1)),
        ((3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
        ((2, 3), (1, 2), (0, 1, 0, 1), (1, 1)),
        ((2, 3), (3, 1), (3, 3, 2, 0), (2, 1)),
        ((7, 7), (2, 2), (3, 3, 3, 3), (1, 1)),
        ((5, 1), (1, 1), (0, 4, 4, 0), (1, 3)),
        ((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
        ((1, 2), (1, 11), (0, 0, 0, 0), (1, 1)),
        ((3, 5), (1, 1), (1, 2, 1, 2), (1, 1)),
        ((3, 5), (2, 2), (0, 1, 1, 2), (1, 1)),
        ((5, 7), (1, 1), (2, 3, 2, 3), (1, 1)),
    ]
    sizes = [(1, 7, 9), (2, 5, 12), (3, 4, 3), (1, 1, 20), (2, 2, 2), (1, 12, 23), (1, 3, 31)]
    channels, lies = [1, 3, 5, 16, 17, 33, 64, 40, 96], ["last", "last", "first", "part"]
    draw, found = random.Random(1), []
    for _, kind, places in itertools.product(range(5), KINDS, geometry):
        shape = Shape(kind, *draw.choice(sizes), draw.choice(channels), *places, draw.choice(lies))
        if fits(shape):
            found.append(shape)
    return found


def step_of(shape: Shape, strides: tuple[int, ...], offset: int = 0) -> WindowStep:
    weight = 1 if shape.kind == "depthwise" else -1
    x = Operand(0, strides, offset)
    return WindowStep(shape.kind, x, weight, 2, shape.n, shape.h, shape.w, shape.c, *shape.places)


SHAPES = every_shape()


def operands(shape: Shape) -> tuple[Tensor, Tensor]:
    """Images [N, H, W, C] that lie as the shape says, and weights."""
    make = torch.Generator().manual_seed(zlib.crc32(repr(shape).encode()))
    n, h, w, c = shape.n, shape.h, shape.w, shape.c
    if shape.lie == "first":
        x = torch.randn(n, c, h, w, generator=make).permute(0, 2, 3, 1)
    elif shape.lie == "part":
        x = torch.randn(n, h + 1, w + 2, c + 3, generator=make)[:, 1:, 1 : w + 1, 2 : c + 2]
    else:
        x = torch.randn(n, h, w, c, generator=make)
    return x, torch.randn(shape.kernel[0] * shape.kernel[1], c, generator=make)


def expected(shape: Shape, x: Tensor, weight: Tensor) -> Tensor:
    """Rows [N * OH * OW, columns] by torch's own operators, in float64."""
    kernel, stride, padding, dilation = shape.places
    taps, images = kernel[0] * kernel[1], x.double().permute(0, 3, 1, 2)
    top, left, bottom, right = padding
    border = -torch.inf if shape.kind == "max" else 0.0
    images = F.pad(images, (left, right, top, bottom), value=border)
    if shape.kind == "patches":
        rows = F.unfold(images, kernel, dilation, 0, stride).unflatten(1, (shape.c, taps))
        return rows.permute(0, 3, 2, 1).reshape(-1, taps * shape.c)
    if shape.kind == "max":
        made = F.max_pool2d(images, kernel, stride, 0, dilation)
    else:
        if shape.kind == "mean":
            weight = torch.full_like(weight, 1.0).double() / taps
        weights = weight.double().t().reshape(shape.c, 1, *kernel)
        made = F.conv2d(images, weights, None, stride, 0, dilation, shape.c)
    return made.permute(0, 2, 3, 1).reshape(-1, shape.c)


def assert_near(shape: Shape, got: Tensor, want: Tensor) -> None:
    if shape.kind in ("patches", "max"):
        assert torch.equal(got.double(), want)
    else:
        assert torch.allclose(got.double(), want, rtol=1e-5, atol=2e-6 * shape.kernel[0] * shape.kernel[1])


@pytest.fixture(scope="module")
def lib(harness: Harness) -> ctypes.CDLL:
    return harness("windows")


def run(lib: ctypes.CDLL, shape: Shape, x: Tensor, weight: Tensor, cuts: int = 3) -> Tensor:
    """The library's rows, made in several calls; nothing around them is written."""
    step = step_of(shape, x.stride())
    rows = shape.n * step.windows(0, shape.h) * step.windows(1, shape.w)
    around = torch.full((rows * step.columns + 128,), 7.0)
    out = around[64:-64].view(rows, step.columns)
    pairs = [(ctypes.c_long * len(place))(*place) for place in shape.places]
    given = weight.data_ptr() if shape.kind == "depthwise" else None
    share = 1 / step.taps if shape.kind == "mean" else 1.0
    sizes = (shape.h, shape.w, shape.c, (ctypes.c_long * 4)(*x.stride()), *pairs)
    problem = Problem(x.data_ptr(), given, out.data_ptr(), KINDS[shape.kind], step.columns, share, *sizes)
    ends = [rows * k // cuts for k in range(cuts + 1)]
    for r0, r1 in itertools.pairwise(ends):
        lib.slide(ctypes.byref(problem), ctypes.c_long(r0), ctypes.c_long(r1))
    assert bool((around[:64] == 7).all()) and bool((around[-64:] == 7).all())
    return out


def test_windows_are_torchs(lib: ctypes.CDLL) -> None:
    wide = [shape for shape in SHAPES if shape.kind == "depthwise" and shape.c >= 16 and shape.lie != "first"]
    assert {(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (2, 11)} <= {(s.kernel[1], s.stride[1]) for s in wide}
    for shape in SHAPES:
        x, weight = operands(shape)
        assert_near(shape, run(lib, shape, x, weight), expected(shape, x, weight))


def at_the_end_of_memory(tensor: Tensor) -> Tensor:
    """A copy, strides and all, whose last byte is the last of its page; what lies before and behind is forbidden."""
    base = tensor._base if tensor._base is not None else tensor
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    pages = -(-4 * span // mmap.PAGESIZE)
    whole = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    flat = torch.frombuffer(whole, dtype=torch.float32)[: (pages + 1) * mmap.PAGESIZE // 4][-span:]
    flat.copy_(torch.as_strided(base, (span,), (1,), tensor.storage_offset()))
    for page in (0, pages + 1):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + page * mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    return torch.as_strided(flat, tensor.shape, tensor.stride(), flat.storage_offset())


def test_nothing_beyond_images_and_weights_is_read(lib: ctypes.CDLL) -> None:
    """In a child, which a read of forbidden memory would end."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # a child has no threads of its parent's to wait for
            for shape in SHAPES[:: max(len(SHAPES) // 60, 1)]:
                x, weight = operands(shape)
                run(lib, shape, at_the_end_of_memory(x), at_the_end_of_memory(weight))
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("where", [(0, 0), (3, 4), (6, 8)])
def test_a_nan_reaches_the_maxima_that_see_it_and_no_others(lib: ctypes.CDLL, where: Pair) -> None:
    shape = Shape("max", 1, 7, 9, 19, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), "last")
    x, weight = operands(shape)
    x[0, where[0], where[1], ::2] = torch.nan
    got = run(lib, shape, x, weight).view(7, 9, 19)
    want = F.max_pool2d(x.permute(0, 3, 1, 2), 3, 1, 1)[0].permute(1, 2, 0)
    assert torch.equal(got.isnan(), want.isnan()) and bool(want.isnan().any())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())


def test_what_lies_outside_counts_as_nothing(lib: ctypes.CDLL) -> None:
    """Windows that see no tap at all: zeros, and minus infinity for the maximum."""
    for kind, fill in (("patches", 0.0), ("depthwise", 0.0), ("mean", 0.0), ("max", -torch.inf)):
        shape = Shape(kind, 1, 2, 2, 5, (2, 2), (1, 1), (4, 4, 4, 4), (1, 1), "last")
        x, weight = operands(shape)
        got = run(lib, shape, x, weight).view(9, 9, -1)
        assert bool((got[0] == fill).all()) and bool((got[:, -1] == fill).all())
        assert bool((got[4, 4] != fill).any())


def test_the_evaluator_and_the_operator_are_torchs() -> None:
    for shape in SHAPES:
        x, weight = operands(shape)
        base = x._base if x._base is not None else x
        arrays = {0: base.reshape(-1).numpy(), 1: weight.reshape(-1).numpy()}
        if shape.lie == "first":
            arrays[0] = x.permute(0, 3, 1, 2).reshape(-1).numpy()
        made = evaluate_windows(step_of(shape, x.stride(), x.storage_offset()), arrays, {})
        want = expected(shape, x, weight)
        assert_near(shape, torch.from_numpy(np.ascontiguousarray(made)), want)
        given = weight if shape.kind == "depthwise" else None
        assert_near(shape, windows(x, given, shape.kind, *shape.places).flatten(0, 2), want)
