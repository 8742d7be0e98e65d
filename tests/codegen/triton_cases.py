"""Runs printed kernels in Triton's interpreter, which is chosen at import: in a process of its own.

Called with names of cases, prints one JSON object: case -> list of [what, error, allowed]. Errors are relative to the
largest expected magnitude. Started by tests/codegen/test_triton_interpret.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from adaflex.codegen.draft import form_row_bytes
from adaflex.codegen.scalar_ops import Writer, layer_norm, rms_norm, softmax
from adaflex.codegen.triton import Named
from adaflex.codegen.triton_build import HEAD, load, write
from adaflex.codegen.triton_launch import launch_rows
from adaflex.codegen.triton_rows import print_rows
from adaflex.runtime.program import ITEM_BYTES, Slot
from adaflex.runtime.region import BINARY, UNARY, Load, Op, Region, Store, evaluate
from tests.codegen import triton_oracle as oracle

Check = tuple[str, float, float]
EPS = 2.0**-23
DTYPES = oracle.DTYPES


def op(name: str, *args: int) -> Op:
    """An op that is no constant."""
    return Op(name, args)


def slot(form: str, rows: Any, columns: Any) -> Slot:
    """A slot as lowering would make it."""
    width = form_row_bytes(form if form != "bf16" else "bf16-plain", columns, ITEM_BYTES.get(form, 1))
    return Slot("local", form, rows, columns, width)


def make(slots: tuple[Slot, ...], symbols: dict[str, int], given: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Memory of each slot: what is given, else poison."""
    memory = {}
    for number, entry in enumerate(slots):
        if number in given:
            memory[number] = given[number]
            continue
        size = evaluate(entry.rows, symbols) * evaluate(entry.row_bytes, symbols)
        raw = torch.full((size,), 0x7B, dtype=torch.uint8)
        plain = entry.form in ITEM_BYTES and entry.form != "bool"
        memory[number] = raw.view(DTYPES[entry.form]) if plain else raw
    return memory


def compare(
    region: Region,
    slots: tuple[Slot, ...],
    symbols: dict[str, int],
    given: dict[int, torch.Tensor],
    allowed: float = 8 * EPS,
    most: int = 8192,
    loops: bool = False,
) -> list[Check]:
    """Run every kernel printed for a region; each store against the oracle."""
    wanted = oracle.run(region, slots, given, symbols)
    checks: list[Check] = []
    for kernel in print_rows(region, slots):
        if loops and kernel.mode == "block":
            continue
        memory = make(slots, symbols, given)
        named = Named("k0", kernel)
        views = {n: t.view(torch.uint8) if t.dtype == torch.bool else t for n, t in memory.items()}
        launch_rows(load(write(HEAD + "\n\n" + kernel.text("k0"))), named, views.__getitem__, symbols, most)
        for store, want in zip(region.stores, wanted, strict=True):
            what = f"{kernel.mode} slot {store.slot}"
            checks += judge(what, memory[store.slot], slots[store.slot], want, (symbols, allowed))
    return checks


def judge(what: str, got: torch.Tensor, entry: Slot, want: Any, how: tuple[dict[str, int], float]) -> list[Check]:
    symbols, allowed = how
    rows, pitch = evaluate(entry.rows, symbols), evaluate(entry.row_bytes, symbols)
    data = got.view(torch.uint8).view(rows, pitch)
    if not isinstance(want, tuple):
        width = want.shape[1]
        item = DTYPES[entry.form]
        values = data.view(item)[:, :width].double().numpy()
        if entry.form in ("bf16", "f16"):
            allowed = 2.0 ** (-7 if entry.form == "bf16" else -11) * 1.01  # the interpreter cuts bf16 off, unrounded
        return [(what, error(values, want), 0.0 if entry.form == "bool" else allowed)]
    codes, scale, low = want
    padded = -(-codes.shape[1] // 64) * 64
    groups = scale.shape[1]
    tail = data[:, padded : padded + 8 * groups].contiguous().view(torch.float32).double().numpy()
    off = np.abs(data[:, : codes.shape[1]].double().numpy() - codes)
    return [
        (what + " codes, ties", float((off != 0).mean()), 0.02),
        (what + " codes", float(off.max()), 1.0),
        (what + " padding", float(data[:, codes.shape[1] : padded].max()) if padded > codes.shape[1] else 0.0, 0.0),
        (what + " scale", error(tail[:, :groups], scale), 4 * allowed),
        (what + " minimum", error(tail[:, groups:], low), 4 * allowed),
    ]


def error(got: Any, want: Any) -> float:
    """Largest difference over largest magnitude; infinite where NaN and infinities do not agree."""
    known = np.isfinite(want)
    if not np.array_equal(known, np.isfinite(got)) or not np.array_equal(got[~known], want[~known], equal_nan=True):
        return float("inf")
    if not known.any():
        return 0.0
    return float(np.abs(got[known] - want[known]).max() / max(np.abs(want[known]).max(), 1e-30))


def norm(rows: Any, columns: Any, kinds: tuple[str, ...], which: str) -> tuple[Region, tuple[Slot, ...]]:
    """A norm or softmax of slot 0, with slots 1 and 2 as weight and bias, stored in several forms."""
    w = Writer()
    x, gain, shift = (w.emit("load", k) for k in range(3))
    if which == "layer_norm":
        value = layer_norm(w, x, gain, shift, 1e-5)
    elif which == "rms_norm":
        value = rms_norm(w, w.emit("add", x, shift), gain, 1e-6)
    else:
        value = softmax(w, w.emit("add", w.emit("mul", x, gain), shift))
    loads = (Load(0, (columns,), 1), Load(1, (0,), 1), Load(2, (0,), 1))
    slots = (slot("f32", rows, columns), slot("f32", 1, columns), slot("f32", 1, columns))
    made = tuple(slot(kind, rows, columns) for kind in kinds)
    stores = tuple(Store(value, 3 + place) for place in range(len(kinds)))
    return Region((rows,), columns, loads, tuple(w.ops), stores), slots + made


def norm_inputs(rows: int, columns: int) -> dict[int, torch.Tensor]:
    x = torch.randn(rows, columns) * 2 + 0.5
    return {0: x, 1: torch.rand(columns) + 0.5, 2: torch.randn(columns)}


def case_layer_norm() -> list[Check]:
    region, slots = norm("s0", 96, ("f32", "bf16", "u8t", "u8g32"), "layer_norm")
    return compare(region, slots, {"s0": 5}, norm_inputs(5, 96))


def case_layer_norm_odd() -> list[Check]:
    region, slots = norm(3, 37, ("f32", "f16", "u8t"), "layer_norm")
    return compare(region, slots, {}, norm_inputs(3, 37))


def case_norm_loops() -> list[Check]:
    region, slots = norm("s0", "s1", ("f32", "u8t"), "rms_norm")
    symbols = {"s0": 5, "s1": 200}
    return compare(region, slots, symbols, norm_inputs(5, 200), most=64, loops=True)


def case_rotated() -> list[Check]:
    checks = []
    for block in (64, 128):
        region, slots = norm(3, 256, (f"u8t-h{block}", f"u8g64-h{block}"), "layer_norm")
        checks += compare(region, slots, {}, norm_inputs(3, 256))
    return checks


def case_softmax() -> list[Check]:
    region, slots = norm("s0", "s1", ("f32",), "softmax")
    checks = []
    for rows, columns in ((1, 1), (4, 50), (7, 129)):
        given = norm_inputs(rows, columns)
        given[0][0, -1] = float("-inf")
        checks += compare(region, slots, {"s0": rows, "s1": columns}, given, most=64)
    return checks


SAFE = {"sqrt": 0.0, "rsqrt": 0.01, "log": 0.01, "log2": 0.01, "log1p": -0.9, "recip": 0.1}


def case_unary() -> list[Check]:
    checks = []
    for name in UNARY:
        w = Writer()
        x = w.emit("load", 0)
        region = Region((3,), 37, (Load(0, (37,), 1),), (*w.ops, op(name, x)), (Store(1, 1),))
        data = torch.linspace(-6, 6, 111).view(3, 37)
        if name in SAFE:
            data = data.abs() + SAFE[name]
        slots = (slot("f32", 3, 37), slot("f32", 3, 37))
        found = compare(region, slots, {}, {0: data}, allowed=2.0**-7 if name == "bf16" else 4 * EPS)
        checks += [(f"{name} {what}", wrong, allowed) for what, wrong, allowed in found]
    return checks


def case_unary_small() -> list[Check]:
    """Relative accuracy near zero, and torch's own answers at the edges."""
    checks = []
    for name in ("expm1", "log1p", "tanh", "erf", "gelu", "silu", "sin"):
        region = Region((1,), 33, (Load(0, (33,), 1),), (op("load", 0), op(name, 0)), (Store(1, 1),))
        data = torch.cat([torch.logspace(-30, -1, 16), -torch.logspace(-30, -1, 17)])
        slots = (slot("f32", 1, 33), slot("f32", 1, 33))
        memory = make(slots, {}, {0: data})
        (kernel,) = print_rows(region, slots)
        launch_rows(load(write(HEAD + "\n\n" + kernel.text("k0"))), Named("k0", kernel), memory.__getitem__, {})
        want = oracle.run(region, slots, {0: data}, {})[0][0]
        relative = np.abs(memory[1].double().numpy() - want) / np.abs(want)
        checks.append((name, float(relative.max()), 8 * EPS))
    return checks


def case_edges() -> list[Check]:
    functions: dict[str, Callable[..., torch.Tensor]] = {
        "tanh": torch.tanh, "sigmoid": torch.sigmoid, "expm1": torch.expm1, "log1p": torch.log1p, "relu": torch.relu,
        "round": torch.round, "trunc": torch.trunc, "sign": torch.sign, "exp": torch.exp,
    }  # fmt: skip
    inf = float("inf")
    data = torch.tensor([inf, -inf, float("nan"), 0.5, -0.5, 1.5, 2.5, 1e30, -1e30, 8388609.0, 100.0, -100.0])
    checks = []
    for name, function in functions.items():
        region = Region((1,), 12, (Load(0, (12,), 1),), (op("load", 0), op(name, 0)), (Store(1, 1),))
        slots = (slot("f32", 1, 12), slot("f32", 1, 12))
        memory = make(slots, {}, {0: data})
        (kernel,) = print_rows(region, slots)
        launch_rows(load(write(HEAD + "\n\n" + kernel.text("k0"))), Named("k0", kernel), memory.__getitem__, {})
        same = torch.allclose(memory[1], function(data), rtol=1e-6, atol=0, equal_nan=True)
        checks.append((f"{name}: {memory[1].tolist()}", 0.0 if same else 1.0, 0.0))
    return checks


def case_binary() -> list[Check]:
    checks = []
    for name in BINARY:
        ops = (op("load", 0), op("load", 1), op(name, 0, 1))
        region = Region((5,), 19, (Load(0, (19,), 1), Load(1, (0,), 1)), ops, (Store(2, 2),))
        left, right = torch.randn(5, 19) * 3, torch.randn(19) * 2
        left[1, :5], right[:3] = right[:5], 0.5
        if name == "pow":
            left = left.abs() + 0.1
        slots = (slot("f32", 5, 19), slot("f32", 1, 19), slot("f32", 5, 19))
        found = compare(region, slots, {}, {0: left, 1: right}, allowed=64 * EPS if name == "pow" else 2 * EPS)
        checks += [(f"{name} {what}", wrong, allowed) for what, wrong, allowed in found]
    return checks


def case_row_extremes() -> list[Check]:
    """Row maximum and minimum hand a NaN through; several stores of one number per row."""
    ops = (op("load", 0), op("rmax", 0), op("rmin", 0), op("sum", 0), op("square", 3), op("bf16", 0))
    slots = (slot("f32", 4, 70), *(slot("f32", 4, 1) for _ in range(4)), slot("bf16", 4, 70))
    stores = (Store(1, 1), Store(2, 2), Store(3, 3), Store(4, 4), Store(5, 5))
    region = Region((4,), 70, (Load(0, (70,), 1),), ops, stores)
    data = torch.randn(4, 70)
    data[2, 5] = float("nan")
    return compare(region, slots, {}, {0: data}, allowed=64 * EPS)


def case_strided() -> list[Check]:
    """[B, T, H, D] read as [B, H, T, D], broadcast along one axis, one column stride, select on bools."""
    b, t, h, d = 2, 5, 3, 7
    loads = (
        Load(0, (t * h * d, d, h * d), 1),
        Load(1, (t, 0, 1), 0),
        Load(2, (0, 0, 0), 2, offset=3),
        Load(3, (0, 0, t), 1),
    )
    w = Writer()
    x, mask, gain, keep = (w.emit("load", k) for k in range(4))
    value = w.emit("select", keep, w.emit("mul", w.emit("add", x, mask), gain), w.const(-3.0))
    flag = w.emit("lt", value, w.emit("column"))
    rows = b * h * t
    slots = (
        slot("f32", b * t, h * d), slot("i64", b, t), slot("f32", 1, 40), slot("bool", t, d), slot("f32", rows, d),
        slot("bool", rows, d),
    )  # fmt: skip
    region = Region((b, h, t), d, loads, tuple(w.ops), (Store(value, 4), Store(flag, 5)))
    given = {
        0: torch.randn(b * t * h * d), 1: torch.randint(0, 9, (b * t,)), 2: torch.randn(40),
        3: torch.rand(t * t + d) > 0.3,
    }  # fmt: skip
    return compare(region, slots, {}, given)


def case_gather() -> list[Check]:
    """Rows of a bf16 table, and of an 8-bit table with a scale and minimum per row inside one block of bytes."""
    v, width, rows = 11, 24, 6
    codes = torch.randint(0, 256, (v, width), dtype=torch.uint8)
    scale, low = torch.rand(v) + 0.01, torch.randn(v)
    packed = torch.cat([codes.reshape(-1), scale.view(torch.uint8), low.view(torch.uint8)])
    table = torch.randn(v, width).to(torch.bfloat16)
    loads = (
        Load(0, (1,), 0),
        Load(1, (0,), 1, gather=0, pitch=width),
        Load(2, (0,), 1, gather=0, pitch=width, form="u8"),
        Load(2, (0,), 0, v * width // 4, gather=0, pitch=1, form="f32"),
        Load(2, (0,), 0, v * width // 4 + v, gather=0, pitch=1, form="f32"),
    )
    w = Writer()
    first, quantised, step, least = (w.emit("load", k) for k in range(1, 5))
    value = w.emit("add", w.emit("add", w.emit("mul", quantised, step), least), first)
    slots = (slot("i64", rows, 1), slot("bf16", v, width), slot("u8", 1, len(packed)), slot("f32", rows, width))
    region = Region((rows,), width, loads, tuple(w.ops), (Store(value, 3),))
    return compare(region, slots, {}, {0: torch.randint(0, v, (rows,)), 1: table, 2: packed})


def case_fold() -> list[Check]:
    """Mean, largest and smallest over the inner axis, masked."""
    b, d = 3, 21
    loads = (Load(0, (("*", "s0", d),), 1, inner=d), Load(1, ("s0",), 0, inner=1))
    w = Writer()
    x, mask = w.emit("load", 0), w.emit("load", 1)
    kept = w.emit("mul", x, mask)
    mean = w.emit("div", w.emit("fold_sum", kept), w.emit("depth"))
    values = (mean, w.emit("fold_max", x), w.emit("square", w.emit("fold_min", x)))
    slots = (slot("f32", ("*", b, "s0"), d), slot("f32", b, "s0"), *(slot("f32", b, d) for _ in values))
    stores = tuple(Store(value, 2 + place) for place, value in enumerate(values))
    region = Region((b,), d, loads, tuple(w.ops), stores, "s0")
    return compare(region, slots, {"s0": 13}, {0: torch.randn(b * 13 * d), 1: (torch.rand(b * 13) > 0.2).float()})


def case_formed_bf16() -> list[Check]:
    """bf16 rows padded to 32 columns: the padding is zero."""
    padded = Slot("local", "bf16", 5, 37, 128)
    slots = (slot("f32", 5, 37), padded)
    region = Region((5,), 37, (Load(0, (37,), 1),), (op("load", 0), op("silu", 0)), (Store(1, 1),))
    data = torch.randn(5, 37)
    memory = make(slots, {}, {0: data})
    (kernel,) = print_rows(region, slots)
    launch_rows(load(write(HEAD + "\n\n" + kernel.text("k0"))), Named("k0", kernel), memory.__getitem__, {})
    rows = memory[1].view(5, 64).double().numpy()
    want = oracle.run(region, (slots[0], slot("f32", 5, 37)), {0: data}, {})[0]
    return [("padding", float(np.abs(rows[:, 37:]).max()), 0.0), ("values", error(rows[:, :37], want), 2.0**-7)]


def random_region(random: np.random.Generator) -> tuple[Region, tuple[Slot, ...], dict[str, int], dict[int, Any]]:
    """A region of a dozen bounded ops over loads of every kind, with up to three reductions; sizes partly symbols."""
    b, t, c = (int(random.integers(1, high)) for high in (4, 5, 90))
    rows, width = "s0", "s1"
    loads = (
        Load(0, (("*", t, width), width), 1),
        Load(1, (t, 1), 0),
        Load(2, (0, 0), 1, offset=1),
        Load(3, (0, 0), 0, offset=2),
        Load(4, (width, 0), 1),
    )
    w = Writer()
    values = [w.emit("load", k) for k in range(len(loads))] + [w.emit("column"), w.emit("const", value=0.75)]
    reductions = 0
    for _ in range(int(random.integers(6, 14))):
        first, second = (int(random.choice(values[-8:])) for _ in range(2))
        kind = int(random.integers(0, 10))
        if kind < 2 and reductions < 3:
            reductions += 1
            value = w.emit(str(random.choice(["sum", "rmax", "rmin"])), w.emit("tanh", first))
        elif kind < 5:
            value = w.emit(str(random.choice(["tanh", "sigmoid", "sin", "abs", "relu", "not", "neg"])), first)
        elif kind == 5:
            value = w.emit("select", w.emit("lt", first, second), first, second)
        else:
            value = w.emit(str(random.choice(["add", "sub", "max", "min", "ge"])), first, w.emit("tanh", second))
        values.append(value)
    whole = ("*", ("*", rows, t), 1)
    slots = (
        slot("f32", whole, width), slot("f32", rows, t), slot("bf16", 1, ("+", width, 1)), slot("f32", 1, 8),
        slot("f16", rows, width), slot("f32", whole, width), slot("f32", whole, width),
    )  # fmt: skip
    full, other = w.emit("add", values[-1], values[0]), w.emit("max", values[-2], values[4])
    region = Region((rows, t), width, loads, tuple(w.ops), (Store(full, 5), Store(other, 6)))
    given = {
        0: torch.randn(b * t * c), 1: torch.randn(b * t), 2: torch.randn(c + 1).bfloat16(), 3: torch.randn(8),
        4: torch.randn(b * c).half(),
    }  # fmt: skip
    return region, slots, {"s0": b, "s1": c}, given


def case_random_regions() -> list[Check]:
    """Forty random regions, each as it is printed for short and for long rows."""
    checks = []
    random = np.random.default_rng(7)
    for number in range(40):
        region, slots, symbols, given = random_region(random)
        found = compare(region, slots, symbols, given, allowed=64 * EPS, most=32)
        checks += [(f"region {number} {what}", wrong, allowed) for what, wrong, allowed in found]
    return checks


CASES = {name.removeprefix("case_"): function for name, function in list(globals().items()) if name[:5] == "case_"}


if __name__ == "__main__":
    oracle.report(CASES, sys.argv[1:])
