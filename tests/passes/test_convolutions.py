"""Convolutions as linears over patches, pools as windows, images channels last: equal to eager, and written so."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaflex.passes.capture import Capture
from adaflex.passes.export_door import any_sizes, from_export
from adaflex.passes.suffix import Cursor
from adaflex.passes.windows import WINDOWS, windows

aten = torch.ops.aten


def targets(capture: Capture) -> list[Any]:
    return [node.target for node in capture.graph.graph.nodes if node.op == "call_function"]


def kinds(capture: Capture) -> list[str]:
    return [str(node.args[2]) for node in capture.graph.graph.nodes if node.target is WINDOWS]


def captured(model: nn.Module, *inputs: Tensor) -> Capture:
    """The captured model, which was seen to give what eager gives."""
    model = model.eval().requires_grad_(False)
    capture, weights = from_export(model, inputs)
    torch.testing.assert_close(capture.run(weights, inputs)[0], model(*inputs), rtol=1e-4, atol=1e-4)
    return capture


DENSE = [
    (nn.Conv2d(3, 5, 3), ["patches"]),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(0, 1), bias=False), ["patches"]),
    (nn.Conv2d(4, 6, 3, padding=2, dilation=2), ["patches"]),
    (nn.Conv2d(4, 6, 4, stride=4), ["patches"]),
    (nn.Conv2d(4, 6, 1), []),
    (nn.Conv2d(4, 6, 1, stride=2), []),
    (nn.Conv2d(4, 6, 1, padding=1), ["patches"]),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4), ["depthwise"]),
    (nn.Conv2d(4, 4, (1, 3), padding=(0, 1), stride=2, groups=4, bias=False), ["depthwise"]),
    (nn.Conv1d(4, 6, 3, padding=1), ["patches"]),
    (nn.Conv1d(4, 6, 1, stride=2), []),
    (nn.Conv1d(4, 4, 5, padding=4, dilation=2, groups=4), ["depthwise"]),
    (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2), ["patches"]),
    (nn.Conv2d(4, 6, 2, padding="same"), ["patches"]),
    (nn.Conv1d(4, 6, 4, padding="valid"), ["patches"]),
    (nn.Conv1d(4, 6, 4, padding="same"), ["patches"]),
]


@pytest.mark.parametrize(("layer", "expected"), DENSE, ids=str)
def test_a_convolution_becomes_a_linear_or_weighted_windows(layer: nn.Module, expected: list[str]) -> None:
    channels = layer.in_channels
    x = torch.randn(2, channels, 12, 11) if isinstance(layer, nn.Conv2d) else torch.randn(2, channels, 12)
    capture = captured(layer, x)
    assert kinds(capture) == expected
    assert not {aten.conv1d.default, aten.conv2d.default} & set(targets(capture))
    assert (aten.linear.default in targets(capture)) is (expected != ["depthwise"])
    assert "weight" in {constant.name for constant in capture.constants}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
        (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 8, 8)),
        (nn.ConvTranspose2d(4, 6, 3), (2, 4, 8, 8)),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 8, 8)),
        (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), (2, 4, 8, 8)),
        (nn.AvgPool2d(3, 2, ceil_mode=True), (2, 4, 8, 8)),
        (nn.AvgPool2d(2, divisor_override=3), (2, 4, 8, 8)),
        (nn.PReLU(4), (2, 4, 8, 8)),
    ],
    ids=str,
)
def test_what_has_no_window_form_is_right_all_the_same(layer: nn.Module, shape: tuple[int, ...]) -> None:
    captured(nn.Sequential(layer), torch.randn(shape))
    front = nn.Conv2d(shape[1], shape[1], 1) if len(shape) == 4 else nn.Identity()
    captured(nn.Sequential(front, layer), torch.randn(shape))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (nn.MaxPool2d(3, 2, padding=1), ["max"]),
        (nn.MaxPool2d(2, dilation=2), ["max"]),
        (nn.MaxPool2d(3, 2, ceil_mode=True), ["max"]),
        (nn.MaxPool2d((2, 5), (2, 3), padding=(1, 2), ceil_mode=True), ["max"]),
        (nn.AvgPool2d(3, 2, padding=1), ["mean"]),
        (nn.AvgPool2d((2, 3)), ["mean"]),
    ],
    ids=str,
)
def test_pools_become_windows(pool: nn.Module, expected: list[str]) -> None:
    assert kinds(captured(pool, torch.randn(2, 3, 9, 10))) == expected
    assert kinds(captured(nn.Sequential(nn.Conv2d(3, 3, 1), pool), torch.randn(2, 3, 9, 10))) == expected


class Block(nn.Module):
    """What image models are made of: a residual, squeeze and excite, concatenation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.up, self.own, self.down = (
            nn.Conv2d(8, 16, 1),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.Conv2d(16, 8, 1),
        )
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.scale, self.head = nn.Parameter(torch.rand(8, 1, 1)), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        y = F.hardswish(self.own(F.silu(self.up(x))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.scale * self.down(y).clamp(-1, 1)
        whole = torch.cat([x, y], 1)
        return self.head(torch.flatten(whole.mean([2, 3]), 1))


def test_images_stay_channels_last_from_end_to_end() -> None:
    capture = captured(Block(), torch.randn(2, 3, 14, 15))
    moved = [node for node in capture.graph.graph.nodes if node.target is aten.permute.default]
    assert [node.args[0].op for node in moved] == ["placeholder"]  # the images as they come in, and nothing else
    assert kinds(capture) == ["patches", "depthwise"]


def test_channels_that_the_model_fixes_are_no_free_size() -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] != 3:
                raise ValueError("three channels are wanted")
            return F.max_pool2d(self.conv(x), 2)

    model, x = Checked().eval().requires_grad_(False), torch.randn(2, 3, 9, 9)
    capture, _ = from_export(model, (x,), dynamic_shapes=any_sizes((x,), None, model))
    assert kinds(capture) == ["patches", "max"] and len(capture.symbols) >= 2


def test_sizes_may_vary_without_guards() -> None:
    sizes = {
        0: torch.export.Dim("n", max=8),
        2: torch.export.Dim("h", min=4, max=64),
        3: torch.export.Dim("w", min=4, max=64),
    }
    model = Block().eval().requires_grad_(False)
    capture, weights = from_export(model, (torch.randn(2, 3, 14, 15),), dynamic_shapes=(sizes,))
    assert kinds(capture) == ["patches", "depthwise"]
    for shape in ((2, 3, 14, 15), (1, 3, 9, 20), (3, 3, 32, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(capture.run(weights, (x,))[0], model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["patches", "depthwise", "max", "mean"])
def test_gradients_of_windows_are_those_of_the_ops_they_stand_for(kind: str) -> None:
    x = torch.randn(1, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, dtype=torch.float64, requires_grad=True) if kind == "depthwise" else None
    given = (x,) if weight is None else (x, weight)
    assert torch.autograd.gradcheck(
        lambda *each: windows(each[0], each[1] if len(each) > 1 else None, kind, [3, 2], [2, 1], [1, 0, 2, 1], [1, 1]),
        given,
    )


def test_a_cursor_before_a_product_holds_no_patches() -> None:
    model, x = nn.Conv2d(4, 2, 5, padding=2).eval().requires_grad_(False), torch.randn(3, 4, 20, 20)
    capture, weights = from_export(model, (x,))
    cursor = Cursor(capture, weights, [(x,), (2 * x,)])
    nodes = {node.target: node for node in capture.graph.graph.nodes}
    product, patches = nodes[aten.linear.default], nodes[WINDOWS]
    cursor.advance(product.name)
    for values, scale in zip(cursor.values, (1, 2), strict=True):
        held = [value for value in dict(values.items()).values() if isinstance(value, Tensor)]
        assert max(value.numel() for value in held) <= x.numel()
        assert values[patches].shape == (3, 20, 20, 100)
        assert torch.equal(values[patches][:, 2, 2, 48:52], scale * x[:, :, 2, 2])  # the tap in the middle
    assert torch.allclose(cursor.run(1, {})[0], model(2 * x), atol=1e-4)
