"""Windows that slide over images, in numpy.

In: a ``WindowStep``, the elements of the slots it reads. Out: the rows of its output.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from adaflex.codegen.evaluate_region import Array, strided
from adaflex.runtime.program import WindowStep
from adaflex.runtime.region import evaluate


def evaluate_windows(step: WindowStep, arrays: Mapping[int, Array], symbols: Mapping[str, int]) -> Array:
    """The rows [N * OH * OW, columns], fp32."""
    shape = (*(evaluate(size, symbols) for size in (step.batch, step.height, step.width)), step.channels)
    strides = [evaluate(stride, symbols) for stride in step.x.strides]
    images = np.broadcast_to(strided(arrays[step.x.slot], shape, strides, evaluate(step.x.offset, symbols)), shape)
    with np.errstate(all="ignore"):
        made = _made(step, images, arrays)
    return np.asarray(made, np.float32).reshape(-1, step.columns)


def _taps(step: WindowStep, images: Array) -> Iterator[Array]:
    """What all windows see at each place of the kernel, [N, OH, OW, C]; outside of the image what stands there."""
    border = -np.inf if step.kind == "max" else 0.0
    for place in itertools.product(*map(range, step.kernel)):
        seen, inside = images, np.ones((1, 1, 1, 1), np.bool_)
        for axis in (0, 1):
            size = images.shape[1 + axis]
            at = np.arange(step.windows(axis, size)) * step.stride[axis]
            at = at + place[axis] * step.dilation[axis] - step.padding[axis]
            valid = (at >= 0) & (at < size)
            inside = inside & valid.reshape((1, -1, 1, 1) if axis == 0 else (1, 1, -1, 1))
            seen = seen.take(np.where(valid, at, 0), 1 + axis)
        yield np.where(inside, seen, np.float32(border))


def _made(step: WindowStep, images: Array, arrays: Mapping[int, Array]) -> Array:
    if step.kind == "patches":
        return np.stack(list(_taps(step, images)), axis=3)
    if step.kind == "max":
        return np.asarray(functools.reduce(np.maximum, _taps(step, images)))
    taps: Iterable[Array] = _taps(step, images)
    if step.kind == "depthwise":
        weights = arrays[step.weight][: step.taps * step.channels].reshape(step.taps, step.channels)
        taps = (tap * weight for tap, weight in zip(taps, weights, strict=True))
    whole = functools.reduce(np.add, taps)
    return np.asarray(whole / np.float32(step.taps) if step.kind == "mean" else whole)
