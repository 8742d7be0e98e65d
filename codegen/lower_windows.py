"""Lowers windows that slide over images: where the images lie, the weights, and the rows that come out.

In: an ``adaflex::windows`` node and the lowering in progress. Out: a ``WindowStep``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

from adaflex.codegen.classify import tensor
from adaflex.codegen.draft import Read, StepRows
from adaflex.codegen.regions import is_local
from adaflex.codegen.sizes import known
from adaflex.codegen.views import View, contiguous_strides, is_whole
from adaflex.errors import CaptureError
from adaflex.runtime.program import ITEM_BYTES, Operand, Slot, WindowStep
from adaflex.runtime.region import Size, product

if TYPE_CHECKING:
    from adaflex.codegen.lower import Lowering


def lower_windows(lowering: Lowering, node: fx.Node) -> None:
    """Append the step of one node. Raises ``CaptureError`` where its operands are not what the kernels read."""
    x_node, weight_node, kind, *places = node.args
    assert isinstance(x_node, fx.Node)
    view = lowering.views.of(x_node)
    depth, value = known(view.shape[3]), tensor(x_node)
    if depth is None or value is None or value.dtype != torch.float32:
        raise CaptureError(f"'{node.name}' slides over images that are not fp32 with a fixed number of channels")
    given = Given(str(kind), *(tuple(map(int, place)) for place in places))  # type: ignore[arg-type]
    weight = _weight(lowering, weight_node, node) if isinstance(weight_node, fx.Node) else -1
    slot = lowering.plain(view.node)
    if known(view.strides[3]) != 1 and _read_often(given, depth):
        view, slot = _turned(lowering, view, slot, depth)
    out = lowering._new(node, "plain")
    _add(lowering, given, view, (slot, weight, out), lowering.capture.sizes(node)[:-1], node.name)


@dataclass(frozen=True)
class Given:
    """What the operator was asked for."""

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]


def _add(
    lowering: Lowering,
    given: Given,
    view: View,
    slots: tuple[int, int, int],
    space: tuple[Size, ...],
    label: str,
) -> None:
    """Append a step over ``space`` [N, OH, OW]; ``slots``: of the images, the weights and the result."""
    batch, height, width, channels = view.shape
    depth = known(channels)
    assert depth is not None
    slot, weight, out = slots
    step = WindowStep(
        kind=given.kind,
        x=Operand(slot, view.strides, view.offset),
        weight=weight,
        out=out,
        batch=batch,
        height=height,
        width=width,
        channels=depth,
        kernel=given.kernel,
        stride=given.stride,
        padding=given.padding,
        dilation=given.dilation,
        label=label,
    )
    local = is_local(view.strides, view.shape, space[0], lowering.slots[slot])
    reads = [Read(slot, False, local)] + [Read(weight, False, False)] * (weight >= 0)
    lowering.add(step, StepRows(product(space), space[0]), tuple(reads))


def _read_often(given: Given, channels: int) -> bool:
    """Are images whose channels lie apart turned first? Patches that hardly overlap are gathered as quickly."""
    taps, steps = given.kernel[0] * given.kernel[1], given.stride[0] * given.stride[1]
    return channels > 1 and (given.kind != "patches" or taps > 4 * steps)


def _turned(lowering: Lowering, view: View, slot: int, channels: int) -> tuple[View, int]:
    """The same images with their channels side by side, in a slot that a step of its own fills: windows of one tap."""
    key = (view, "channels last")
    if key not in lowering.formed:
        space = view.shape[:3]
        turned = Slot("local", "f32", product(space), channels, channels * ITEM_BYTES["f32"], view.shape)
        lowering.formed[key] = lowering._slot(turned)
        one = Given("patches", (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
        _add(lowering, one, view, (slot, -1, lowering.formed[key]), space, view.node.name)
    return View(view.node, view.shape, contiguous_strides(view.shape)), lowering.formed[key]


def _weight(lowering: Lowering, weight: fx.Node, node: fx.Node) -> int:
    """The slot of the weights: a constant, row after row as it is stored."""
    view = lowering.views.of(weight)
    constant = view.node.name in lowering.constant_names
    value = tensor(weight)
    if not constant or not is_whole(view, lowering.capture.sizes(view.node)) or value is None:
        raise CaptureError(f"the weights of '{node.name}' are not a constant that lies in memory as it is read")
    if value.dtype != torch.float32:
        raise CaptureError(f"the weights of '{node.name}' are {value.dtype}; its kernel reads float32")
    return lowering.plain(view.node)
