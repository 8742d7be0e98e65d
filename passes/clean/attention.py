"""Attention written out becomes ``aten.scaled_dot_product_attention``; repeated key and value heads become grouped.

In: an ``fx.Graph`` of ATen ops. Out: the same graph with one op per attention: (q, k, v, mask, 0.0, causal, scale=).
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from adaflex.passes.clean.tools import (
    Op,
    Slot,
    add,
    arg,
    aten,
    is_op,
    match,
    mul,
    number_of,
    replace,
    same_shape,
    same_size,
    shape_of,
    tensor_of,
)

SDPA = aten.scaled_dot_product_attention.default
PRODUCTS = (aten.matmul.default, aten.bmm.default)


def _turned(node: Any) -> bool:
    """Whether the node is a transposition of its last two axes."""
    if is_op(node, aten.transpose.int):
        rank = len(shape_of(node))
        return {node.args[1] % rank, node.args[2] % rank} == {rank - 1, rank - 2}
    return False


_NUMBER = Slot("factor", lambda each: number_of(each) is not None)
_DIVISOR = Slot("divisor", lambda each: number_of(each) is not None)
_DOT = Op(PRODUCTS, (Slot("q"), Slot("k", _turned)))
_SCALED = (mul(_DOT, _NUMBER), Op((aten.div.Tensor,), (_DOT, _DIVISOR)), _DOT)


def _is_float(node: Any) -> bool:
    value = tensor_of(node)
    return value is not None and value.dtype.is_floating_point


_MASK = Slot("mask", _is_float)
_SCORES = (*_SCALED, *(add(each, _MASK) for each in _SCALED))
_ATTENTION = Op(PRODUCTS, (Op((aten.softmax.int,), (_SCORES, Slot("axis"))), Slot("v")))


def attentions(graph: fx.Graph) -> int:
    """softmax(q kᵀ · scale + mask) v becomes one op (Vaswani et al. 2017); the probabilities must not be used twice."""
    count = 0
    for node in list(graph.nodes):
        found = match(_ATTENTION, node)
        if found is None or len(node.args[0].users) != 1 or not _fits(node, found):
            continue
        scale = number_of(found.get("factor", 1.0 / (number_of(found.get("divisor", 1.0)) or math.nan)))
        args = (found["q"], found["k"].args[0], found["v"], found.get("mask"))
        replace(node, SDPA, args, {"scale": scale})
        count += 1
    return count


def _fits(node: fx.Node, found: dict[str, Any]) -> bool:
    """Four-dimensional heads of one dtype, softmax over the keys, and a mask that broadcasts to the scores."""
    q, k, v = shape_of(found["q"]), shape_of(found["k"].args[0]), shape_of(found["v"])
    if not (len(q) == len(k) == len(v) == 4) or found["axis"] not in (-1, 3):
        return False
    if len({tensor_of(found[each]).dtype for each in ("q", "v")}) != 1:  # type: ignore[union-attr]
        return False
    mask = shape_of(found.get("mask"))
    scores = (*q[:-1], k[-2])
    fits = all(same_size(a, b) or a == 1 for a, b in zip(reversed(mask), reversed(scores), strict=False))
    return len(mask) <= 4 and fits and same_shape(q[:2], k[:2]) and same_shape(k[:3], v[:3])


def grouped_heads(graph: fx.Graph) -> int:
    """Keys and values repeated head by head before attention are not: ``enable_gqa=True`` (Ainslie et al. 2023)."""
    count = 0
    for node in list(graph.nodes):
        if not is_op(node, SDPA) or node.kwargs.get("enable_gqa"):
            continue
        k, v = repeated(node.args[1]), repeated(node.args[2])
        if k is None or v is None or not same_shape(shape_of(k)[:3], shape_of(v)[:3]):
            continue
        replace(node, SDPA, (node.args[0], k, v, *node.args[3:]), {**node.kwargs, "enable_gqa": True})
        count += 1
    return count


def repeated(node: Any) -> fx.Node | None:
    """What ``view(clone?(expand(unsqueeze(x, 2), [b, h, n, t, d])), [b, h·n, t, d])`` repeats; None for other nodes."""
    if not is_op(node, aten.view.default):
        return None
    inner: Any = node.args[0]
    if is_op(inner, aten.clone.default):
        inner = inner.args[0]
    base: Any = arg(inner, 0) if is_op(inner, aten.expand.default) else None
    if not is_op(base, aten.unsqueeze.default) or base.args[1] not in (2, -3):
        return None
    source = base.args[0]
    before, wide, after = shape_of(source), shape_of(inner), shape_of(node)
    if len(before) != 4 or len(after) != 4 or len(wide) != 5:
        return None
    kept = same_shape(before, (*wide[:2], *wide[3:])) and same_shape(before[2:], after[2:])
    return source if kept and same_size(wide[1] * wide[2], after[1]) else None


def causal_flags(graph: fx.Graph) -> int:
    """``is_causal`` and the dropout probability of 0 are left out where they are the default."""
    count = 0
    for node in graph.nodes:
        if is_op(node, SDPA) and len(node.args) > 3 and tuple(node.args[3:]) in ((None,), (None, 0.0, False)):
            node.args = node.args[:3]
            count += 1
        elif is_op(node, SDPA) and len(node.args) > 4 and tuple(node.args[4:]) in ((0.0,), (0.0, False)):
            node.args = node.args[:4]
            count += 1
    return count
