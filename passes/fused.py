"""torch's own fused modules, written out: what they are traced as, so that their linears can be decided one by one.

In: the arguments of a fused operator. Out: the same result from whole ATen ops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def written_out() -> dict[Any, Callable[..., Any]]:
    """Fused operators of torch's own attention modules, and the plain ops that they are traced as instead."""
    return {aten._transformer_encoder_layer_fwd.default: encoder_layer}


def encoder_layer(
    x: Tensor,
    width: int,
    heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    *rest: Any,
) -> Any:
    """One ``nn.TransformerEncoderLayer`` in eval, [batch, tokens, width], as whole ops; ``rest``: norms, MLP, mask."""
    norms, (w1, b1, w2, b2), mask, kind = rest[:4], rest[4:8], *(*rest[8:], None, None)[:2]

    def norm(y: Tensor, index: int) -> Any:
        return aten.layer_norm.default(y, [width], norms[2 * index], norms[2 * index + 1], eps)

    def attend(y: Tensor) -> Any:
        packed = aten.linear.default(y, qkv_weight, qkv_bias)
        split = (each.unflatten(-1, (heads, width // heads)).transpose(1, 2) for each in packed.split(width, -1))
        allowed = None if mask is None else _allowed(mask, kind)
        attended = aten.scaled_dot_product_attention.default(*split, allowed)
        return aten.linear.default(attended.transpose(1, 2).reshape(y.shape), out_weight, out_bias)

    def mlp(y: Tensor) -> Any:
        hidden = aten.linear.default(y, w1, b1)
        return aten.linear.default(aten.gelu.default(hidden) if use_gelu else aten.relu.default(hidden), w2, b2)

    if norm_first:
        x = x + attend(norm(x, 0))
        return x + mlp(norm(x, 1))
    x = norm(x + attend(x), 0)
    return norm(x + mlp(x), 1)


def _allowed(mask: Tensor, kind: int | None) -> Tensor:
    """Which keys may be seen: torch's masks are true where they may not; kind 1 is per key [batch, tokens]."""
    allowed = mask.logical_not() if mask.dtype == torch.bool else mask
    return allowed[:, None, None, :] if kind == 1 else allowed
