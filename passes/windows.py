"""Windows that slide over images stored channels last: the operator that convolutions and pools become.

In: images [N, H, W, C]. Out: what each window makes of its taps, [N, OH, OW, ...]. Written as one operator so that a
convolution is the gathering of its taps followed by an ordinary linear, whose weight is then decided like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# patches: the taps side by side, [KH * KW * C]; depthwise: their sum weighted by [KH * KW, C]; max; mean
KINDS = ("patches", "depthwise", "max", "mean")


@torch.library.custom_op("adaflex::windows", mutates_args=())
def windows(
    x: Tensor,
    weight: Tensor | None,
    kind: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``kind`` of the windows of ``x`` [N, H, W, C]; kernel, stride and dilation each say (height, width),
    padding (top, left, bottom, right).

    Outside of the image taps are 0 (for "max": minus infinity). "mean" divides by all taps. Result, contiguous:
    [N, OH, OW, KH * KW * C] for "patches", else [N, OH, OW, C].
    """
    return _windows(x, weight, kind, kernel, stride, padding, dilation)


def out_sizes(x: Tensor, *places: Sequence[int]) -> tuple[Any, Any]:
    """How many windows there are along height and width; ``places`` as in ``windows``."""
    kernel, stride, padding, dilation = places
    whole = (x.shape[1 + k] + padding[k] + padding[k + 2] - dilation[k] * (kernel[k] - 1) - 1 for k in (0, 1))
    rows, columns = (size // step + 1 for size, step in zip(whole, stride, strict=True))
    return rows, columns


def _windows(
    x: Tensor,
    weight: Tensor | None,
    kind: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    border = float("-inf") if kind == "max" else 0.0
    wide = F.pad(x, (0, 0, padding[1], padding[3], padding[0], padding[2]), value=border)
    rows, columns = out_sizes(x, kernel, stride, padding, dilation)
    n, h, w, c = wide.stride()
    shape = (x.shape[0], rows, columns, *kernel, x.shape[3])
    strides = (n, h * stride[0], w * stride[1], h * dilation[0], w * dilation[1], c)
    seen = wide.as_strided(shape, strides).flatten(3, 4)  # [N, OH, OW, KH * KW, C]
    if kind == "patches":
        return seen.flatten(3)
    if kind == "max":
        return seen.amax(3)
    if kind == "depthwise":
        assert weight is not None
        seen = seen * weight
    whole = seen.sum(3)
    return whole / seen.shape[3] if kind == "mean" else whole


@windows.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    kind: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    rows, columns = out_sizes(x, kernel, stride, padding, dilation)
    width = x.shape[3] * (kernel[0] * kernel[1] if kind == "patches" else 1)
    return x.new_empty((x.shape[0], rows, columns, width))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *ctx.how = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    """The gradient with respect to images and weights, through the plain ops that the operator stands for."""
    x, weight = ctx.saved_tensors
    with torch.enable_grad():
        given = [each.detach().requires_grad_() for each in (x, weight) if each is not None]
        made = _windows(given[0], given[1] if weight is not None else None, *ctx.how)
        found = list(torch.autograd.grad(made, given, gradient))
    return (*found, *([None] * (7 - len(found))))


windows.register_autograd(_backward, setup_context=_keep)
WINDOWS = torch.ops.adaflex.windows.default
