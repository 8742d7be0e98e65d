"""Views of a tensor as sizes, strides and an offset, and what each ATen view op makes of them.

In: a ``View`` and a view op's arguments. Out: another ``View``, or None where the op needs a copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from adaflex.codegen.sizes import divides, known, polynomial, same
from adaflex.runtime.region import Size, plus, product, times


@dataclass(frozen=True)
class View:
    """``node``'s tensor read as ``shape`` with ``strides`` (elements; 0 where an axis is expanded) from ``offset``."""

    node: fx.Node
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]
    offset: Size = 0


def contiguous_strides(shape: Sequence[Size]) -> tuple[Size, ...]:
    """Strides of a tensor without gaps, last axis fastest."""
    strides: list[Size] = []
    step: Size = 1
    for size in reversed(shape):
        strides.append(step)
        step = times(step, size)
    return tuple(reversed(strides))


def is_contiguous(view: View) -> bool:
    """Does the view walk its elements one after the other? Axes of size 1 do not count."""
    wanted = contiguous_strides(view.shape)
    return all(known(d) == 1 or same(a, b) for d, a, b in zip(view.shape, view.strides, wanted, strict=True))


def apply(op: str, view: View, args: Sequence[Any], shape: tuple[Size, ...]) -> View | None:
    """``op`` ("permute", "view", ...) on ``view``; ``args`` are those after the tensor, ``shape`` is the result's."""
    rank = len(view.shape)
    if op in ("alias", "detach", "lift_fresh_copy"):
        return view
    if op in ("view", "reshape", "_unsafe_view", "unflatten", "flatten"):
        return reshape(view, shape)
    if op == "t" and rank < 2:
        return view
    if op in ("transpose", "t"):
        first, second = (0, 1) if op == "t" else (int(args[0]) % rank, int(args[1]) % rank)
        order = list(range(rank))
        order[first], order[second] = second, first
        return _permute(view, order)
    if op == "permute":
        return _permute(view, [int(axis) % rank for axis in args[0]])
    if op == "unsqueeze":
        axis = int(args[0]) % (rank + 1)
        strides = (*view.strides[:axis], 0, *view.strides[axis:])
        return replace(view, shape=shape, strides=strides)
    if op == "squeeze":
        return _squeeze(view, args)
    if op == "expand":
        return _expand(view, shape)
    if op == "select":
        axis = int(args[0]) % rank
        start = _from_start(args[1], view.shape[axis])
        offset = plus(view.offset, times(start, view.strides[axis]))
        drop = [k for k in range(rank) if k != axis]
        return View(view.node, tuple(view.shape[k] for k in drop), tuple(view.strides[k] for k in drop), offset)
    if op == "slice":
        return _slice(view, args, shape)
    return None


def _permute(view: View, order: Sequence[int]) -> View:
    return replace(view, shape=tuple(view.shape[k] for k in order), strides=tuple(view.strides[k] for k in order))


def _squeeze(view: View, args: Sequence[Any]) -> View:
    rank = len(view.shape)
    axes = range(rank) if not args else [int(a) % rank for a in (args[0] if isinstance(args[0], list) else [args[0]])]
    keep = [k for k in range(rank) if not (k in axes and known(view.shape[k]) == 1)]
    return _permute(view, keep)


def _expand(view: View, shape: tuple[Size, ...]) -> View:
    extra = len(shape) - len(view.shape)
    strides: list[Size] = [0] * extra
    for old, stride in zip(view.shape, view.strides, strict=True):  # any other size than 1 stays what it was
        strides.append(0 if known(old) == 1 else stride)
    return replace(view, shape=shape, strides=tuple(strides))


def _from_start(index: Size, size: Size) -> Size:
    """An index that counts from the end where it is negative, counted from the start."""
    counts, atoms = polynomial(index).values(), "".join(itertools.chain(*polynomial(index)))
    if all(count >= 0 for count in counts) and "-" not in atoms:
        return index
    if all(count <= 0 for count in counts) and "(" not in atoms:  # symbols are at least 1
        return plus(size, index)
    negative = ("min", 1, ("max", 0, times(-1, index)))  # 1 or 0: the sizes of a call say which
    return plus(index, times(size, negative))


def _slice(view: View, args: Sequence[Any], shape: tuple[Size, ...]) -> View:
    axis = (int(args[0]) if args else 0) % len(view.shape)
    start = args[1] if len(args) > 1 and args[1] is not None else 0
    step = args[3] if len(args) > 3 else 1
    start = _from_start(start, view.shape[axis])
    stride = times(view.strides[axis], step)
    strides = (*view.strides[:axis], stride, *view.strides[axis + 1 :])
    return View(view.node, shape, strides, plus(view.offset, times(start, view.strides[axis])))


def reshape(view: View, shape: tuple[Size, ...]) -> View | None:
    """The view with another shape, without copying; None where its strides do not allow it."""
    chunks = _chunks(view)
    strides: list[Size] = []
    remaining = list(reversed(shape))
    for size, stride in reversed(chunks):
        step = stride
        while known(size) != 1:
            if not remaining:
                return None
            axis = remaining.pop(0)
            rest = divides(size, axis)
            if rest is None:
                return None
            strides.append(step)
            step, size = times(step, axis), rest
    for axis in remaining:
        if known(axis) != 1:
            return None
        strides.append(0)
    return View(view.node, shape, tuple(reversed(strides)), view.offset)


def _chunks(view: View) -> list[tuple[Size, Size]]:
    """Runs of axes that walk memory as one: (size, stride), axes of size 1 left out."""
    chunks: list[tuple[Size, Size]] = []
    for size, stride in zip(view.shape, view.strides, strict=True):
        if known(size) == 1:
            continue
        if chunks and same(chunks[-1][1], times(stride, size)):
            chunks[-1] = (times(chunks[-1][0], size), stride)
        else:
            chunks.append((size, stride))
    return chunks


def is_whole(view: View, shape: tuple[Size, ...]) -> bool:
    """Is the view all elements of its node, in order (``shape``: the node's own)?"""
    return view.offset == 0 and is_contiguous(view) and same(product(view.shape), product(shape))
