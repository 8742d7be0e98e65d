"""Lowers attention: where queries, keys and values lie, the mask, and in which arithmetic the products run.

In: an ``aten.scaled_dot_product_attention`` node and the lowering in progress. Out: an ``AttentionStep``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import fx

from adaflex.codegen import library
from adaflex.codegen.classify import kind_of, linear_of
from adaflex.codegen.draft import Read, StepRows
from adaflex.codegen.regions import broadcast, is_local
from adaflex.codegen.sizes import known, same
from adaflex.codegen.views import View, contiguous_strides
from adaflex.runtime.program import AttentionStep, Operand
from adaflex.runtime.region import times

if TYPE_CHECKING:
    from adaflex.codegen.lower import Lowering

LOSSLESS = ("fp32",)
FARTHEST = 24  # nodes walked back from an operand in search of the linears that made it


def attention_views(node: fx.Node) -> list[fx.Node]:
    """The nodes of q, k and v."""
    return [a for a in node.args[:3] if isinstance(a, fx.Node)]


def products_are_bf16(node: fx.Node, families: Mapping[str, str]) -> bool:
    """Attention multiplies in bf16 when every linear that made its operands is itself stored in less than fp32."""
    found: list[str] = []
    for operand in attention_views(node):
        found += _makers(operand, families)
    return bool(found) and not any(family in LOSSLESS for family in found)


def _makers(operand: fx.Node, families: Mapping[str, str]) -> list[str]:
    stack, found = [operand], []
    seen: set[fx.Node] = set()
    while stack and len(seen) < FARTHEST:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        kind = kind_of(node)
        if kind == "linear":
            parts = linear_of(node)
            assert parts is not None
            found.append(families.get(parts.weight.name, "fp32"))
        elif kind in ("view", "split", "point", "library", "reduce"):
            stack.extend(node.all_input_nodes)
    return found


def lower_attention(lowering: Lowering, node: fx.Node, bf16: bool) -> None:
    """Append the step of one attention."""
    kind = "bf16" if bf16 else "plain"
    q, k, v = (lowering.views.of(operand) for operand in attention_views(node))
    batch, heads, queries, width = q.shape
    mask_node = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    mask = lowering.views.of(mask_node) if isinstance(mask_node, fx.Node) else None
    scale = node.kwargs.get("scale")
    causal = bool(node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False))
    wanted = lowering.demands.get(node, [])
    out_kind = "bf16" if wanted == ["bf16"] else "plain"
    out_slot = lowering._new(node, out_kind)
    out = lowering.views.of(node)
    depth = known(width)
    assert depth is not None
    step = AttentionStep(
        q=_operand(lowering, q, kind),
        k=_operand(lowering, k, kind),
        v=_operand(lowering, v, kind),
        mask=_mask(lowering, mask, q, k) if mask is not None else None,
        out=Operand(out_slot, out.strides, 0),
        batch=batch,
        heads=heads,
        kv_heads=k.shape[1],
        queries=queries,
        keys=k.shape[2],
        width=depth,
        scale=float(scale) if isinstance(scale, float | int) else 1.0 / math.sqrt(depth),
        causal=causal,
        bf16=bf16,
        label=node.name,
    )
    rows = times(batch, queries)
    lowering.add(step, StepRows(rows, batch), _reads(lowering, step, q, k, v, mask))


def _operand(lowering: Lowering, view: View, kind: str) -> Operand:
    if not same(view.strides[3], 1):  # the kernels read a head's columns side by side
        step, slot = library.clone(lowering, view)
        lowering.add(step, None, (Read(lowering.plain(view.node), False, False),))
        return Operand(slot, contiguous_strides(view.shape))
    stored = lowering.stored.get((view.node, kind if lowering.unpadded(view.node) else "plain"))
    return Operand(lowering.plain(view.node) if stored is None else stored, view.strides, view.offset)


def _mask(lowering: Lowering, mask: View, q: View, k: View) -> Operand:
    space = [q.shape[0], q.shape[1], q.shape[2], k.shape[2]]
    return Operand(lowering.plain(mask.node), tuple(broadcast(mask, space)), mask.offset)


def _reads(lowering: Lowering, step: AttentionStep, q: View, k: View, v: View, mask: View | None) -> tuple[Read, ...]:
    slots = lowering.slots
    reads = []
    for operand, view in ((step.q, q), (step.k, k), (step.v, v)):
        entry = slots[operand.slot]
        local = is_local(operand.strides, view.shape, step.batch, entry)
        whole_row = same(operand.strides[2], entry.columns)
        own = operand is step.q and whole_row and local and same(entry.rows, times(step.batch, step.queries))
        reads.append(Read(operand.slot, own, local))
    if mask is not None and step.mask is not None:
        entry = slots[step.mask.slot]
        local = is_local(step.mask.strides, (step.batch,), step.batch, entry)
        reads.append(Read(step.mask.slot, False, local))
    return tuple(reads)
