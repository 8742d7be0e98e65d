"""Rows picked from a table: what an embedding is in region loads.

In: an embedding node and the lowering in progress. Out: the value of the picked row's columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from adaflex.codegen.kernels.call import Call
from adaflex.codegen.regions import RegionBuilder, broadcast
from adaflex.codegen.scalar_ops import Value
from adaflex.codegen.sizes import known
from adaflex.codegen.views import View
from adaflex.runtime.region import PANEL_ROWS, Load, Size

if TYPE_CHECKING:
    from adaflex.codegen.lower import Lowering

PLAIN_TABLES = {"gather_f32": ("f32", 4), "gather_bf16": ("bf16", 2)}  # form and bytes of an item
# What a linear's kernel reads, where the table is its weight too: form, bytes of an item, columns side by side, and to
# what a row's columns are padded.
PANEL_TABLES = {
    "gemm_f32": ("f32", 4, 1, 1),
    "gemm_bf16": ("bf16", 2, 2, 32),
    "gemm_w8": ("i8", 1, 4, 64),
    "gemm_w8a8": ("i8", 1, 4, 64),
}
TAIL_BYTES = 8  # scale and minimum, fp32, after the codes of a row of "gather_u8"


def gather(lowering: Lowering, builder: RegionBuilder, node: fx.Node) -> Value:
    """The value of an embedding in the region that ``builder`` builds."""
    table, index = node.args[0], node.args[1]
    assert isinstance(table, fx.Node) and isinstance(index, fx.Node)
    view = lowering.views.of(index)
    rows = Load(lowering.plain(view.node), _strides(builder, view), 0, view.offset)
    builder.load(rows)
    number = builder.loads.index(rows)
    zeros: tuple[Size, ...] = (0,) * len(builder.lead)
    choice = lowering.assignments.get(table.name)
    width, count = known(builder.columns), lowering.capture.sizes(table)[0]
    function = choice.call.function if choice is not None and choice.call is not None else ""
    if function in PLAIN_TABLES:
        slot = lowering.packed(table, False)
        form, item = PLAIN_TABLES[function]
        start = dict(choice.call.parts)["b"] // item if choice is not None and choice.call is not None else 0
        return builder.load(Load(slot, zeros, 1, start, gather=number, pitch=builder.columns, choices=count, form=form))
    if function == "gather_u8" and width is not None:
        return _codes(builder, lowering.packed(table, False), number, (width, count))
    if function in PANEL_TABLES and width is not None:
        assert choice is not None and choice.call is not None
        return _panels(builder, lowering.packed(table, False), choice.call, number, (width, count))
    return builder.load(Load(lowering.plain(table), zeros, 1, gather=number, pitch=builder.columns, choices=count))


def _codes(builder: RegionBuilder, slot: int, number: int, size: tuple[int, Size]) -> Value:
    """codes * scale + minimum of the picked row; both follow its codes (the width is a multiple of 4)."""
    width, count = size
    line = width + TAIL_BYTES
    zeros: tuple[Size, ...] = (0,) * len(builder.lead)
    codes = builder.load(Load(slot, zeros, 1, gather=number, pitch=line, choices=count, form="u8"))
    scale, minimum = (
        builder.load(
            Load(slot, zeros, 0, width // 4 + place, gather=number, pitch=line // 4, choices=count, form="f32")
        )
        for place in (0, 1)
    )
    w = builder.writer
    return Value(w.emit("add", w.emit("mul", codes, scale), minimum))


def _panels(builder: RegionBuilder, slot: int, call: Call, number: int, size: tuple[int, Size]) -> Value:
    """The picked row of a linear's weight, times its scale where it is stored in codes."""
    width, count = size
    form, item, lanes, unit = PANEL_TABLES[call.function]
    parts, zeros = dict(call.parts), ((0,) * len(builder.lead))
    pitch = PANEL_ROWS * (-(-width // unit) * unit)
    values = builder.load(
        Load(slot, zeros, 1, parts["b"] // item, 0, number, pitch, choices=count, form=form, panel=lanes)
    )
    if "sw" not in parts:
        return values
    scale = builder.load(Load(slot, zeros, 0, parts["sw"] // 4, 0, number, 1, choices=count, form="f32"))
    return Value(builder.writer.emit("mul", values, scale))


def _strides(builder: RegionBuilder, view: View) -> tuple[Size, ...]:
    """Strides of the row numbers over the region's leading axes."""
    return tuple(broadcast(view, builder.lead))
