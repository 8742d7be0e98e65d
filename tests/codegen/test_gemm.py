"""Every matrix product against float64 at odd shapes, on every instruction set of this CPU, with guarded outputs."""

import ctypes
import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from adaflex import native
from adaflex.codegen import layout

HERE = Path(__file__).resolve().parent
CPP = HERE.parents[1] / "codegen" / "cpp"
FLAGS = {
    "avx512": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512"),
    "avx2": ("-march=x86-64-v3",),
    "portable": (),
}
NEEDS = {
    "avx512": {"avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"},
    "avx2": {"avx2", "fma", "f16c"},
    "portable": set(),
}
EPS = 2.0**-24
GUARD = 7.5e33  # stands in every float that a kernel must not touch


@functools.cache
def cpu_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split())
    return frozenset()


def library(isa: str) -> Path:
    missing = NEEDS[isa] - cpu_flags()
    if missing:
        pytest.skip(f"this CPU lacks {sorted(missing)}")
    return native.build(
        (HERE / "gemm_harness.cpp").read_text(), includes=[CPP], flags=FLAGS[isa], name=f"gemm-harness-{isa}"
    )


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 64 bytes."""
    room = np.zeros(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def packed(tensor: torch.Tensor) -> np.ndarray:
    plain = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return aligned(plain.contiguous().numpy())


def bf16_numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(0.5, 2.0, shape)).bfloat16().float()


class Args(ctypes.Structure):
    _fields_ = [
        *[("a", ctypes.c_void_p), ("lda", ctypes.c_long), ("rows", ctypes.c_long), ("b", ctypes.c_void_p)],
        *[(name, ctypes.c_void_p) for name in ("sw", "csw", "sums", "zeros")],
        *[(name, ctypes.c_long) for name in ("K", "N", "n0", "n1")],
        *[("y", ctypes.c_void_p), ("ldy", ctypes.c_long)],
    ]


@dataclass(frozen=True)
class Product:
    """Operands of one call; `parts` holds sw, csw, sums, zeros where the kernel reads them."""

    a: np.ndarray  # [rows, lda] bytes
    b: np.ndarray
    k: int
    n: int
    parts: dict[str, np.ndarray] = field(default_factory=dict)


def run(isa: str, name: str, product: Product, columns: tuple[int, int] | None = None) -> np.ndarray:
    """[rows, N] of the kernel; asserts that nothing outside the asked columns was written."""
    rows, lda = product.a.shape
    n0, n1 = columns or (0, product.n)
    out = aligned(np.full((rows + 2, product.n + 16), GUARD, np.float32))
    args = Args(a=product.a.ctypes.data, lda=lda, rows=rows, b=product.b.ctypes.data, K=product.k, N=product.n)
    args.n0, args.n1, args.y, args.ldy = n0, n1, out[1:].ctypes.data, out.shape[1]
    for part, values in product.parts.items():
        setattr(args, part, values.ctypes.data)
    getattr(native.load(library(isa)), name)(ctypes.byref(args))
    touched = out != np.float32(GUARD)
    expected = np.zeros_like(touched)
    expected[1 : rows + 1, n0 : min(n1, product.n)] = True
    assert (touched == expected).all()
    return out[1 : rows + 1, : product.n].astype(np.float64)


def rows_of(array: np.ndarray, extra: np.ndarray | None = None, at: int = 0) -> np.ndarray:
    """Rows of bytes with `array` at 0 and `extra` at byte `at`; zeros between, then 0xAA, stride a multiple of 64."""
    used = max(array.shape[1] * array.itemsize, at + (0 if extra is None else extra.shape[1] * extra.itemsize))
    rows = np.zeros((array.shape[0], -(-used // 64) * 64 + 64), np.uint8)
    rows[:, used:] = 0xAA
    rows[:, : array.shape[1] * array.itemsize] = array.view(np.uint8)
    if extra is not None:
        rows[:, at : at + extra.shape[1] * extra.itemsize] = extra.view(np.uint8)
    return aligned(rows)


def codes_of(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 codes [rows, K], scale and minimum [rows, K/group] in float32: x ~= code * scale + minimum."""
    blocks = x.reshape(x.shape[0], -1, group).astype(np.float32)
    low, high = blocks.min(2), blocks.max(2)
    scale = np.where(high > low, (high - low) / np.float32(255), np.float32(1))
    codes = np.clip(np.rint((blocks - low[..., None]) / scale[..., None]), 0, 255).astype(np.uint8)
    return codes.reshape(x.shape), scale.astype(np.float32), low


def form_u8(codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """Rows of the forms u8t (one group) and u8g."""
    kp = -(-codes.shape[1] // 64) * 64
    full = np.zeros((codes.shape[0], kp), np.uint8)
    full[:, : codes.shape[1]] = codes
    return rows_of(full, np.concatenate((scale, minimum), axis=1), kp)


Case = tuple[Product, np.ndarray, np.ndarray]  # operands, exact result, error bound
SHAPES = [(k, n) for k in (3, 37, 64, 130) for n in (1, 17, 40, 96)]
ROWS = (*range(1, 10), 11, 17, 33)


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def check(y: np.ndarray, exact: np.ndarray, bound: np.ndarray) -> None:
    worst = (np.abs(y - exact) - bound).argmax()
    assert (np.abs(y - exact) <= bound).all(), (y.flat[worst], exact.flat[worst], bound.flat[worst])


def float_case(name: str, rows: int, k: int, n: int) -> Case:
    """Operands, exact result, bound of gemm_float.h."""
    rng = np.random.default_rng(rows * 10007 + k * 101 + n)
    x, w = torch.from_numpy(floats(rng, rows, k)), torch.from_numpy(floats(rng, n, k))
    if name == "bf16":
        x, w = x.bfloat16(), w.bfloat16()
        wide = torch.zeros(rows, layout.round_up(k, 32), dtype=torch.bfloat16)
        wide[:, :k] = x
        product = Product(rows_of(packed(wide)), packed(layout.pack_bf16(w)), k, n)
    else:
        product = Product(rows_of(packed(x)), packed(layout.pack_f32(w)), k, n)
    x64, w64 = x.double().numpy(), w.double().numpy()
    return product, x64 @ w64.T, (k + 8) * EPS * (np.abs(x64) @ np.abs(w64).T)


@pytest.mark.parametrize("isa", FLAGS)
@pytest.mark.parametrize("name", ["f32", "bf16"])
def test_float_products(isa: str, name: str) -> None:
    for i, (k, n) in enumerate(SHAPES):
        for rows in ROWS[i % 2 :: 2]:
            product, exact, bound = float_case(name, rows, k, n)
            check(run(isa, name, product), exact, bound)


def token_case(rows: int, k: int, n: int, group: int = 0) -> Case:
    """8-bit codes on both sides, per token or per group; the bound of gemm_w8a8.h."""
    rng = np.random.default_rng(rows * 10007 + k * 101 + n)
    size = group or k
    codes, scale, minimum = codes_of(floats(rng, rows, k) + 0.3, size)
    if rows > 1:
        codes[0], scale[0], minimum[0] = 255, 0.5, -3.0
    w = rng.integers(-127, 128, (n, k)).astype(np.int8)
    w[0] = 127  # with a row of 255 the largest sum there is
    wt = torch.from_numpy(w)
    if group:
        sw = bf16_numbers(rng, (n, k // size))
        parts = {"sw": packed(layout.pack_scales(sw)), "sums": packed(layout.int8_sums(wt, k // size))}
    else:
        sw = torch.from_numpy(rng.uniform(0.5, 2.0, n).astype(np.float32))
        parts = {"sw": packed(layout.pack_columns(sw)), "csw": packed(layout.column_sums(wt, sw))}
    product = Product(form_u8(codes, scale, minimum), packed(layout.pack_int8(wt)), k, n, parts)
    sums = np.einsum("rgk,ngk->rgn", codes.reshape(rows, -1, size).astype(np.float64), w.reshape(n, -1, size))
    scales = sw.double().numpy().reshape(n, -1).T
    main = sums * scale[..., None] * scales
    offset = minimum[..., None] * (w.reshape(n, -1, size).sum(2, dtype=np.float64).T * scales)
    terms = (np.abs(main) + np.abs(offset)).sum(1)
    return product, (main + offset).sum(1), (3 + k // size if group else 4) * EPS * terms


@pytest.mark.parametrize("isa", FLAGS)
def test_w8a8(isa: str) -> None:
    for i, (k, n) in enumerate(SHAPES):
        for rows in ROWS[i % 2 :: 2]:
            product, exact, bound = token_case(rows, k, n)
            check(run(isa, "w8a8", product), exact, bound)


@pytest.mark.parametrize("isa", FLAGS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_w8a8_grouped(isa: str, group: int) -> None:
    for groups, n in [(1, 17), (3, 40), (2, 96)]:
        for rows in ROWS:
            product, exact, bound = token_case(rows, groups * group, n, group)
            check(run(isa, f"w8a8_g{group}", product), exact, bound)


def int4_case(rows: int, k: int, n: int, group: int, asym: bool) -> Case:
    """8-bit activations, int4 weights, both per group; the bound of gemm_w4a8.h."""
    rng = np.random.default_rng(rows * 10007 + k * 101 + n)
    codes, scale, minimum = codes_of(floats(rng, rows, k) + 0.3, group)
    if rows > 1:
        codes[0], scale[0], minimum[0] = 255, 0.5, -3.0
    w = torch.from_numpy(rng.integers(0, 16, (n, k)).astype(np.uint8))
    w[0], w[-1] = 15, 0
    shape = (n, k // group)
    sw = bf16_numbers(rng, shape)
    zero = torch.from_numpy(rng.integers(0, 16, shape) if asym else np.full(shape, 8)).to(torch.uint8)
    parts = {"sw": packed(layout.pack_scales(sw)), "sums": packed(layout.int4_sums(w, zero))}
    product = Product(form_u8(codes, scale, minimum), packed(layout.pack_int4(w)), k, n, parts)
    x64 = codes.reshape(rows, -1, group).astype(np.float64)
    scale64, sw64, z64 = (part.astype(np.float64) for part in (scale, sw.numpy(), zero.numpy()))
    centred = w.numpy().reshape(n, -1, group).astype(np.float64) - z64[..., None]
    main = np.einsum("rgk,ngk->rgn", x64, centred) * scale64[..., None] * sw64.T
    offset = minimum[..., None] * (centred.sum(2) * sw64).T
    terms = (np.abs(main) + np.abs(offset)).sum(1)
    return product, (main + offset).sum(1), (3 + k // group) * EPS * terms


@pytest.mark.parametrize("isa", FLAGS)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("asym", [False, True])
def test_w4a8(isa: str, group: int, asym: bool) -> None:
    name = f"w4a8_{'asym_' if asym else ''}g{group}"
    for groups, n in [(1, 17), (3, 40), (2, 96)]:
        for rows in ROWS:
            product, exact, bound = int4_case(rows, groups * group, n, group, asym)
            check(run(isa, name, product), exact, bound)


def weight_only_case(rows: int, k: int, n: int, group: int = 0, asym: bool = False) -> Case:
    """bf16 activations by int8 (no group) or int4 weights; the bound of gemm_weight_only.h."""
    rng = np.random.default_rng(rows * 10007 + k * 101 + n)
    x = torch.zeros(rows, layout.round_up(k, 32), dtype=torch.bfloat16)
    x[:, :k] = torch.from_numpy(floats(rng, rows, k) + 0.2)
    low, high = (0, 16) if group else (-128, 128)
    w = torch.from_numpy(rng.integers(low, high, (n, k)).astype(np.uint8 if group else np.int8))
    w[0], w[-1] = low, high - 1
    shape = (n, k // group) if group else (n,)
    sw = bf16_numbers(rng, shape)
    zero = torch.from_numpy(rng.integers(0, 16, shape) if asym else np.full(shape, 8)).to(torch.uint8)
    parts = {"sw": packed(layout.pack_scales(sw) if group else layout.pack_columns(sw))}
    if asym:
        parts["zeros"] = packed(layout.pack_zeros(zero))
    product = Product(rows_of(packed(x)), packed(layout.pack_int4(w) if group else layout.pack_int8(w)), k, n, parts)
    sw64, z64 = (table.double().numpy().reshape(n, -1, 1) for table in (sw, zero if group else torch.zeros(n)))
    codes = w.double().numpy().reshape(n, sw64.shape[1], -1)
    x64 = x[:, :k].double().numpy()
    spread = np.abs(codes - (8 if group else 0)) + asym * np.abs(8 - z64)
    exact = x64 @ ((codes - z64) * sw64).reshape(n, k).T
    size = (spread * sw64).reshape(n, k).T
    bound = (k + 16) * EPS * (np.abs(x64) @ size)
    if not group and rows <= 2:  # fixed point, gemv_int8.h
        bound += 4 * EPS * np.abs(x64).max(1, keepdims=True) * size.sum(0)
    return product, exact, bound


def test_w8_with_outliers_zeros_and_infinities() -> None:
    """Rows for which the fixed point of the one-row kernel is coarse, or does not exist."""
    isa = "avx512" if NEEDS["avx512"] <= cpu_flags() else "portable"
    for factor in (1e-30, 3000.0, 0.0, np.inf, np.nan):
        product = weight_only_case(2, 96, 40)[0]
        x = product.a.view(np.uint16)[:, :96]
        values = (x.astype(np.uint32) << 16).view(np.float32)
        changed = np.array([[factor]], np.float32) * (values if factor in (1e-30, 0.0) else values[:, :1])
        target = slice(None) if factor in (1e-30, 0.0) else slice(0, 1)
        x[:, target] = torch.from_numpy(changed).bfloat16().view(torch.int16).numpy().view(np.uint16)
        x64 = (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        w64 = layout.unpack_int8(torch.from_numpy(product.b), 40, 96).double().numpy() * product.parts["sw"][:40, None]
        with np.errstate(invalid="ignore"):
            exact = x64 @ w64.T
        y = run(isa, "w8", product)
        if not np.isfinite(exact).all():
            assert not np.isfinite(y[~np.isfinite(exact)]).any()
            continue
        sizes = np.abs(w64).T
        check(y, exact, 112 * EPS * (np.abs(x64) @ sizes) + 4 * EPS * np.abs(x64).max(1, keepdims=True) * sizes.sum(0))


@pytest.mark.parametrize("isa", FLAGS)
def test_w8(isa: str) -> None:
    for i, (k, n) in enumerate([*SHAPES, (600, 40)]):
        for rows in ROWS[i % 2 :: 2]:
            product, exact, bound = weight_only_case(rows, k, n)
            check(run(isa, "w8", product), exact, bound)


@pytest.mark.parametrize("isa", FLAGS)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("asym", [False, True])
def test_w4(isa: str, group: int, asym: bool) -> None:
    for groups, n in [(1, 17), (3, 40), (2, 96)]:
        for rows in ROWS:
            product, exact, bound = weight_only_case(rows, groups * group, n, group, asym)
            check(run(isa, f"w4_{'asym_' if asym else ''}g{group}", product), exact, bound)


def test_many_code_sums() -> None:
    """Asymmetric int4 keeps 8192 sums at a time: rows go in chunks."""
    for rows, k in [(300, 1024), (3, 32 * 1100)]:
        product, exact, bound = int4_case(rows, k, 33, 32, True)
        check(run("avx512" if NEEDS["avx512"] <= cpu_flags() else "portable", "w4a8_asym_g32", product), exact, bound)


@pytest.mark.parametrize("isa", FLAGS)
def test_many_rows_and_row_blocks(isa: str) -> None:
    """Row blocks (more activations than fit) and the prefetch of the next panel."""
    product, exact, bound = float_case("f32", 301, 700, 70)
    check(run(isa, "f32", product), exact, bound)
    product, exact, bound = token_case(70, 384, 100)
    check(run(isa, "w8a8", product), exact, bound)


@pytest.mark.parametrize("isa", FLAGS)
@pytest.mark.parametrize("name", ["f32", "bf16", "w8a8"])
def test_column_ranges(isa: str, name: str) -> None:
    """Ranges give the same bits as the whole, and write nothing outside themselves."""
    product = token_case(5, 96, 130)[0] if name == "w8a8" else float_case(name, 5, 96, 130)[0]
    whole = run(isa, name, product)
    for n0, n1 in [(0, 32), (32, 128), (96, 160), (128, 130)]:
        part = run(isa, name, product, (n0, n1))
        assert (part[:, n0:n1] == whole[:, n0:n1]).all()
