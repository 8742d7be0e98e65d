"""Builds the region of one unit: its nodes as scalar ops, what they read as loads, what others need as stores.

In: a ``Unit`` and where its operands lie. Out: a ``Region``, with for each load how the step reads that slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from adaflex.codegen.classify import FORMS, op_name, tensor
from adaflex.codegen.draft import Read
from adaflex.codegen.fuse import Unit
from adaflex.codegen.scalar_ops import POINTWISE, Value, Writer, convert, layer_norm, rms_norm, softmax, vector_norm
from adaflex.codegen.sizes import known, same
from adaflex.codegen.views import View
from adaflex.runtime.program import Slot
from adaflex.runtime.region import Load, Region, Size, Store, product, times

Locate = Callable[[fx.Node], int]  # the slot of a base node's plain tensor


class RegionBuilder:
    """Collects loads and ops over one space (leading axes, columns)."""

    def __init__(self, lead: Sequence[Size], columns: Size, inner: Size = 1) -> None:
        self.lead, self.columns, self.inner = tuple(lead), columns, inner
        self.writer = Writer()
        self.loads: list[Load] = []
        self.values: dict[fx.Node, Value] = {}

    def load(self, load: Load) -> Value:
        """The value of a load, shared by equal loads."""
        if load not in self.loads:
            self.loads.append(load)
        return Value(self.writer.emit("load", self.loads.index(load)))

    def view(self, view: View, slot: int, inner_axis: int = -1) -> Value:
        """The value of a view broadcast to the space (its ``inner_axis`` runs along the inner axis)."""
        space = [*self.lead, self.columns]
        if inner_axis >= 0:
            space.insert(inner_axis, self.inner)
        strides = broadcast(view, space)
        inner = strides.pop(inner_axis) if inner_axis >= 0 else 0
        return self.load(Load(slot, tuple(strides[:-1]), strides[-1], view.offset, inner))

    def finish(self, stores: Sequence[Store]) -> Region:
        """The region, its leading axes merged as far as all loads allow."""
        region = Region(self.lead, self.columns, tuple(self.loads), tuple(self.writer.ops), tuple(stores), self.inner)
        return collapse(region)


def broadcast(view: View, space: Sequence[Size]) -> list[Size]:
    """Strides of ``view`` over ``space``, right aligned; 0 along axes it does not have or has with size 1.

    Sizes of 1 are numbers: tracing takes them for fixed. Any other size is the space's own, however it is written.
    """
    missing = len(space) - len(view.shape)
    sizes = zip(view.shape, view.strides, strict=True)
    return [0] * missing + [0 if known(size) == 1 else stride for size, stride in sizes]


def collapse(region: Region) -> Region:
    """Merge neighbouring leading axes that every load walks as one; rows keep their order."""
    dims = list(region.dims) or [1]
    strides = [list(load.strides) or [0] for load in region.loads]
    axis = len(dims) - 2
    while axis >= 0:
        size = dims[axis + 1]
        if known(dims[axis]) == 1:
            merge, keep = True, axis + 1
        elif known(size) == 1:
            merge, keep = True, axis
        else:
            merge = all(same(row[axis], times(row[axis + 1], size)) for row in strides)
            keep = axis + 1
        if merge:
            dims[axis : axis + 2] = [times(dims[axis], size)]
            for row in strides:
                row[axis : axis + 2] = [row[keep]]
        axis -= 1
    loads = tuple(replace(load, strides=tuple(row)) for load, row in zip(region.loads, strides, strict=True))
    return replace(region, dims=tuple(dims), loads=loads)


def build_nodes(builder: RegionBuilder, unit: Unit, operand: Callable[[fx.Node], Value]) -> None:
    """Append every node of a row unit or epilogue; ``operand`` gives the value of a tensor from outside."""
    for node in unit.nodes:
        if node in builder.values:
            continue
        value = _node(builder, node, lambda n: builder.values[n] if n in builder.values else operand(n))
        out = tensor(node)
        assert out is not None
        if op_name(node) == "_to_copy":
            value = convert(builder.writer, value, FORMS[out.dtype])
        builder.values[node] = Value(value)


def _node(builder: RegionBuilder, node: fx.Node, operand: Callable[[fx.Node], Value]) -> int:
    name, w = op_name(node), builder.writer
    args: list[Any] = [operand(a) if isinstance(a, fx.Node) else a for a in node.args]
    if name in POINTWISE:
        kwargs = {k: operand(v) if isinstance(v, fx.Node) else v for k, v in node.kwargs.items()}
        return POINTWISE[name](w, args, kwargs)
    if name == "softmax":
        return softmax(w, args[0])
    if name == "layer_norm":
        weight, bias, eps = _padded(args[2:], (None, None, 1e-5))
        return layer_norm(w, args[0], weight, bias, eps)
    if name == "rms_norm":
        weight, eps = _padded(args[2:], (None, None))
        return rms_norm(w, args[0], weight, 1.1920928955078125e-07 if eps is None else eps)
    if name == "linalg_vector_norm":
        return vector_norm(w, args[0], float(args[1] if len(args) > 1 else 2))
    if name == "mean":
        return w.mean(args[0])
    return w.emit({"sum": "sum", "amax": "rmax", "amin": "rmin"}[name], args[0])


def _padded(given: Sequence[Any], defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*given, *defaults[len(given) :])[: len(defaults)]


def fold_value(builder: RegionBuilder, node: fx.Node, x: int) -> int:
    """sum, mean, amax or amin over the inner axis."""
    name, w = op_name(node), builder.writer
    if known(builder.inner) == 1:  # an axis of one entry: nothing to fold
        return x
    folded = w.emit({"sum": "fold_sum", "mean": "fold_sum", "amax": "fold_max", "amin": "fold_min"}[name], x)
    return w.emit("div", folded, w.emit("depth")) if name == "mean" else folded


def reads_of(
    region: Region, lead: Size, slots: Sequence[Slot], gathered: Mapping[int, bool] | None = None
) -> list[Read]:
    """How a step with this region reads each slot; ``lead`` is the first axis of its space before merging."""
    rows = product(region.dims)
    reads = []
    for load in region.loads:
        slot = slots[load.slot]
        per_row = len(load.strides) == 1 and same(load.strides[0], slot.columns) and same(slot.rows, rows)
        aligned = per_row and _within_row(load.offset, slot) and load.inner == 0 and load.gather < 0
        reads.append(Read(load.slot, aligned, aligned or is_local(load.strides, region.dims, lead, slot)))
    return reads


def _within_row(offset: Size, slot: Slot) -> bool:
    width = known(slot.columns)
    return offset == 0 or (isinstance(offset, int) and width is not None and 0 <= offset < width)


def is_local(strides: Sequence[Size], dims: Sequence[Size], lead: Size, slot: Slot) -> bool:
    """Does entry i of the first axis read only the i-th of ``lead`` equal pieces of the slot?"""
    if known(lead) == 1:
        return True
    if not dims or not same(dims[0], lead):
        return False
    return same(times(strides[0], lead), times(slot.rows, slot.columns))
