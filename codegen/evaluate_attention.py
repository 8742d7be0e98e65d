"""Attention in numpy: softmax(q kᵀ scale + mask) v over strided operands.

In: an ``AttentionStep``, the elements of the slots it reads. Out: the values of its output, in the output's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaflex.codegen.evaluate_region import Array, round_bf16, strided, widen
from adaflex.runtime.program import AttentionStep, Operand
from adaflex.runtime.region import evaluate


def evaluate_attention(
    step: AttentionStep, arrays: Mapping[int, Array], symbols: Mapping[str, int], dtype: Any = np.float32
) -> Array:
    """The result [B, H, Q, D]; a row whose keys are all masked by -inf is 0, as in torch."""
    batch, heads, kv_heads, queries, keys = (
        evaluate(size, symbols) for size in (step.batch, step.heads, step.kv_heads, step.queries, step.keys)
    )

    def operand(given: Operand, shape: tuple[int, ...]) -> Array:
        return widen(_view(given, arrays, symbols, shape), dtype)

    q = operand(step.q, (batch, heads, queries, step.width))
    k = operand(step.k, (batch, kv_heads, keys, step.width)).repeat(heads // kv_heads, axis=1)
    v = operand(step.v, (batch, kv_heads, keys, step.width)).repeat(heads // kv_heads, axis=1)
    if step.bf16:
        q, k, v = round_bf16(q), round_bf16(k), round_bf16(v)
    with np.errstate(all="ignore"):
        scores = q @ k.swapaxes(-1, -2) * dtype(step.scale)
        if step.mask is not None:
            scores = scores + _mask(_view(step.mask, arrays, symbols, (batch, heads, queries, keys)), dtype)
        if step.causal:
            scores = np.where(np.arange(keys) > np.arange(queries)[:, None], -np.inf, scores)
        most = scores.max(-1, keepdims=True, initial=-np.inf)
        weights = np.exp(scores - np.where(most == -np.inf, 0, most)).astype(dtype)
        total = weights.sum(-1, keepdims=True)
        products = (round_bf16(weights) if step.bf16 else weights) @ v
        return np.asarray(np.where(total == 0, 0, products / np.where(total == 0, 1, total)), dtype)


def _view(given: Operand, arrays: Mapping[int, Array], symbols: Mapping[str, int], shape: tuple[int, ...]) -> Array:
    strides = [evaluate(stride, symbols) for stride in given.strides]
    found = strided(arrays[given.slot], shape, strides, evaluate(given.offset, symbols))
    return np.broadcast_to(found, shape)


def _mask(stored: Array, dtype: Any) -> Array:
    if stored.dtype == np.bool_:
        return np.asarray(np.where(stored, dtype(0), dtype(-np.inf)))
    return widen(stored, dtype)
