"""Clean-up: each spelling of an operation ends as the one that codegen relies on, and computes the same."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaflex.passes.capture import Capture
from adaflex.passes.clean import PASSES
from adaflex.passes.export_door import from_export
from adaflex.passes.windows import WINDOWS
from tests.passes.models import transformer, zoo

aten = torch.ops.aten


class Body(nn.Module):
    """A function of x with a weight [4, 4], a vector [4] and a weight [4, 6] at hand."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w, self.b, self.wide = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 4), (4,), (4, 6)))
        self.body = body

    def forward(self, *args: Tensor) -> Tensor:
        return self.body(self, *args)


def captured(body: Callable[..., Tensor], *args: Any) -> tuple[Capture, list[Any]]:
    """The capture of a function, after checking that it computes what the function does; its operators."""
    model = Body(body).eval().requires_grad_(False)
    capture, weights = from_export(model, args)
    expected = model(*args)
    assert torch.allclose(capture.run(weights, args)[0], expected, atol=1e-5, rtol=1e-5)
    return capture, [node.target for node in capture.graph.graph.nodes if node.op == "call_function"]


X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
FLAT = X.reshape(6, 4)

LINEARS: dict[str, tuple[Callable[..., Tensor], Tensor, int]] = {
    "linear": (lambda m, x: F.linear(x, m.w, m.b), X, 3),
    "matmul of a transpose": (lambda m, x: x @ m.w.T, X, 2),
    "matmul of [in, out]": (lambda m, x: torch.matmul(x, m.wide), X, 2),
    "mm": (lambda m, x: torch.mm(x, m.w.t()), FLAT, 2),
    "addmm": (lambda m, x: torch.addmm(m.b, x, m.w), FLAT, 3),
    "addmm of a transpose": (lambda m, x: torch.addmm(m.b, x, m.w.t()), FLAT, 3),
    "Conv1D": (lambda m, x: torch.addmm(m.b, x.view(-1, 4), m.w).view(2, 3, 4), X, 3),
    "bias added before": (lambda m, x: m.b + x @ m.w.permute(1, 0), X, 3),
    "bias added after": (lambda m, x: x @ m.w.transpose(0, 1) + m.b, X, 3),
    "flattened": (lambda m, x: F.linear(x.reshape(-1, 4), m.w).view(2, 3, 4), X, 2),
}


@pytest.mark.parametrize("name", LINEARS)
def test_every_linear_is_linear(name: str) -> None:
    body, x, arguments = LINEARS[name]
    capture, targets = captured(body, x)
    assert [each for each in targets if each is not aten.t.default] == [aten.linear.default]
    linear = next(node for node in capture.graph.graph.nodes if node.target is aten.linear.default)
    weight = linear.args[1]
    source = weight.args[0] if weight.target is aten.t.default else weight
    assert len(linear.args) == arguments and source.op == "placeholder"
    assert {each.name for each in capture.constants} <= {"w", "b", "wide"}


def test_a_scaled_bias_is_not_taken_for_a_bias() -> None:
    _, targets = captured(lambda m, x: torch.addmm(m.b, x, m.w, beta=2.0), FLAT)
    assert aten.addmm.default in targets
    _, targets = captured(lambda m, x: torch.add(x @ m.w, m.b, alpha=2), X)
    assert targets.count(aten.add.Tensor) == 1


def new_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


POINTWISE: dict[str, tuple[Callable[..., Tensor], Any]] = {
    "tanh gelu": (lambda m, x: new_gelu(x), aten.gelu.default),
    "tanh gelu, cube as product": (
        lambda m, x: x * 0.5 * (1 + torch.tanh(0.7978845608 * (x + x * x * x * 0.044715))),
        aten.gelu.default,
    ),
    "erf gelu": (lambda m, x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), aten.gelu.default),
    "silu": (lambda m, x: torch.sigmoid(x) * x, aten.silu.default),
    "rms norm": (
        lambda m, x: m.b * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
        aten.rms_norm.default,
    ),
    "whole rms norm": (lambda m, x: F.rms_norm(x, (4,), m.b, 1e-5), aten.rms_norm.default),
    "layer norm": (lambda m, x: F.layer_norm(x, (4,), m.b, m.b), aten.layer_norm.default),
    "softmax": (lambda m, x: F.softmax(x, -1), aten.softmax.int),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_written_out_functions_become_one_op(name: str) -> None:
    body, target = POINTWISE[name]
    _, targets = captured(body, X)
    assert targets == [target]


def test_what_only_looks_like_gelu_or_a_norm_stays() -> None:
    _, targets = captured(lambda m, x: 0.5 * x * (1.0 + torch.tanh(0.9 * (x + 0.044715 * x.pow(3)))), X)
    assert aten.gelu.default not in targets
    _, targets = captured(lambda m, x: m.b * (x * torch.rsqrt(x.pow(2).mean(-2, keepdim=True) + 1e-6)), X)
    assert aten.rms_norm.default not in targets
    _, targets = captured(lambda m, x: torch.sigmoid(x) * (x + 1), X)
    assert aten.silu.default not in targets


def heads(count: int = 4, rows: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(2, count, rows, 8, generator=torch.Generator().manual_seed(seed))


ATTENTIONS: dict[str, Callable[..., Tensor]] = {
    "scale by division": lambda m, q, k, v: torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(8), -1) @ v,
    "scale by product": lambda m, q, k, v: torch.softmax(torch.matmul(q, k.mT) * 0.3, dim=3) @ v,
    "no scale": lambda m, q, k, v: torch.softmax(q @ k.transpose(2, 3), -1) @ v,
    "mask": lambda m, q, k, v: torch.softmax(q @ k.transpose(2, 3) * 0.3 + v[:, :1, :, 0].unsqueeze(2), -1) @ v,
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_written_out_attention_becomes_one_op(name: str) -> None:
    _, targets = captured(ATTENTIONS[name], heads(seed=1), heads(seed=2), heads(seed=3))
    assert targets.count(aten.scaled_dot_product_attention.default) == 1
    assert aten.softmax.int not in targets and aten.matmul.default not in targets


def test_attention_whose_probabilities_are_returned_stays_written_out() -> None:
    def body(m: Body, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = torch.softmax(q @ k.mT, -1)
        return torch.cat([p @ v, p], -1)

    _, targets = captured(body, heads(seed=1), heads(seed=2), heads(seed=3))
    assert aten.scaled_dot_product_attention.default not in targets


def repeat(x: Tensor, times: int) -> Tensor:
    batch, count, rows, width = x.shape
    return x[:, :, None].expand(batch, count, times, rows, width).reshape(batch, count * times, rows, width)


def test_repeated_heads_become_grouped() -> None:
    def body(m: Body, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, repeat(k, 2), repeat(v, 2))

    capture, targets = captured(body, heads(4, seed=1), heads(2, seed=2), heads(2, seed=3))
    assert targets == [aten.scaled_dot_product_attention.default]
    node = next(each for each in capture.graph.graph.nodes if each.op == "call_function")
    assert node.kwargs["enable_gqa"] is True and [each.op for each in node.args[:3]] == ["placeholder"] * 3


def test_a_batch_norm_goes_into_the_convolution_or_becomes_scale_and_shift() -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.after, self.alone = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
            for norm in (self.after, self.alone):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.alone(F.relu(self.after(self.conv(x))))

    model, x = Norms().eval(), torch.randn(2, 3, 6, 6)
    capture, weights = from_export(model, (x,))
    targets = [node.target for node in capture.graph.graph.nodes if node.op == "call_function"]
    convolved = [aten.permute.default, WINDOWS, aten.linear.default]
    assert targets == [*convolved, aten.relu.default, aten.mul.Tensor, aten.add.Tensor, aten.permute.default]
    assert torch.allclose(capture.run(weights, (x,))[0], model(x), atol=1e-5)
    folded = {each.name: each for each in capture.constants}
    assert set(folded["conv.weight"].derived) == {"conv.weight", "after.weight", "after.running_var"}
    assert folded["conv.weight"].is_parameter and folded["conv.weight"].shape == (4, 3 * 3 * 3)


def test_splits_become_slices_and_padding_joins_the_convolution() -> None:
    def body(m: Body, x: Tensor) -> Tensor:
        a, b = x.split(2, -1)
        c, d = x.chunk(2, -1)
        return a * b + c * d + x.unbind(1)[1].unsqueeze(1)[..., :2]

    _, targets = captured(body, X)
    assert targets.count(aten.slice.Tensor) == 3 and targets.count(aten.select.int) == 1  # a is c, b is d
    assert not {aten.split.Tensor, aten.unbind.int} & set(targets)

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.pad(x, (2, 2, 1, 1)))

    model, x = Padded(), torch.randn(1, 1, 5, 5)
    with torch.no_grad():
        capture, weights = from_export(model, (x,))
        assert torch.allclose(capture.run(weights, (x,))[0], model(x), atol=1e-6)
    nodes = [node for node in capture.graph.graph.nodes if node.op == "call_function"]
    assert not any(node.target is aten.constant_pad_nd.default for node in nodes)
    assert [node.args[5] for node in nodes if node.target is WINDOWS] == [[2, 3, 2, 3]]


def test_what_changes_nothing_goes() -> None:
    def body(m: Body, x: Tensor) -> Tensor:
        y = x.to(torch.float32).clone().contiguous().view(2, 3, 4).expand(2, 3, 4)[:, :, 0:4] * 1
        y = F.dropout(y.transpose(0, 1).transpose(0, 1), 0.5, False).detach()
        return y.view(6, 4).view(2, 12).view(4, 6) + 1

    _, targets = captured(body, X)
    assert targets == [aten.view.default, aten.add.Tensor]


def test_equal_calls_are_made_once() -> None:
    _, targets = captured(lambda m, x: torch.exp(x + 1) * torch.exp(x + 1) + torch.exp(x + 1.0), X)
    assert targets.count(aten.exp.default) <= 2 and targets.count(aten.add.Tensor) <= 3
    _, targets = captured(lambda m, x: torch.rand(x.shape).mul(0) + torch.rand(x.shape).mul(0) + x, X)
    assert sum("rand" in str(each) for each in targets) == 2  # two draws are not one


def test_everything_that_is_fixed_is_computed_once() -> None:
    def body(m: Body, x: Tensor) -> Tensor:
        steps = torch.arange(3, dtype=torch.float32)[:, None] * torch.exp(m.b)[None]
        return x * torch.cos(steps) + torch.where(x > 0, x, torch.tensor(0.5))

    capture, targets = captured(body, X)
    assert aten.cos.default not in targets and aten.exp.default not in targets
    folded = [each for each in capture.constants if each.derived]
    assert (3, 4) in {each.shape for each in folded}
    assert [node.op for node in capture.prologue.graph.nodes].count("call_function") >= 4


def test_large_values_are_not_folded() -> None:
    capture, targets = captured(lambda m, x: x[0, 0, 0] + torch.arange(1_000_000).float().sin(), X)
    assert all(each.size_bytes < 1 << 20 for each in capture.constants)
    assert aten.sin.default in targets


def test_masks_of_transformers_end_as_broadcasts() -> None:
    entry = zoo()["sentence"]
    capture, _ = from_export(entry.model(), entry.inputs(), dynamic_shapes=entry.dynamic_shapes())
    attention = next(
        node for node in capture.graph.graph.nodes if node.target is aten.scaled_dot_product_attention.default
    )
    mask = attention.args[3]
    assert [str(size) for size in capture.sizes(mask)] == ["s0", "1", "1", "s1"]
    assert not any(node.target is aten.index.Tensor for node in capture.graph.graph.nodes)


@pytest.mark.parametrize("kind, attention", [("Qwen2", "eager"), ("GPT2", "eager")])
def test_decoders_keep_no_written_out_parts(kind: str, attention: str) -> None:
    from tests.passes.models import Encoder, tokens

    torch.manual_seed(0)
    model = Encoder(transformer(kind, attention), use_cache=False).eval().requires_grad_(False)
    inputs = tokens(2, 8)
    capture, weights = from_export(model, inputs)
    assert torch.allclose(capture.run(weights, inputs)[0], model(*inputs), atol=1e-5)
    targets = {node.target for node in capture.graph.graph.nodes if node.op == "call_function"}
    assert not targets & {
        aten.rsqrt.default,
        aten.tanh.default,
        aten.softmax.int,
        aten.matmul.default,
        aten.addmm.default,
    }
    assert aten.scaled_dot_product_attention.default in targets


def test_passes_are_logged_and_dumped(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAFLEX_DEBUG", str(tmp_path / "dump"))
    with caplog.at_level(logging.DEBUG, "adaflex.passes"):
        captured(lambda m, x: x @ m.w, X)
    lines = [record.getMessage() for record in caplog.records if record.name == "adaflex.passes"]
    assert sum(" nodes, " in line and " ms" in line for line in lines) == len(PASSES)
    names = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert names[0] == "Body-00-captured.txt" and any("linears.products" in name for name in names)


def test_a_norm_in_half_precision_is_one_op() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(64).bfloat16())

        def forward(self, x: Tensor) -> Tensor:
            wide = x.float()
            wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.weight * wide.to(x.dtype)

    model, x = Norm(), torch.randn(3, 64).bfloat16()
    capture, weights = from_export(model, (x,))
    nodes = [node for node in capture.graph.graph.nodes if node.op == "call_function"]
    assert [node.target for node in nodes] == [aten.rms_norm.default]
    assert torch.allclose(capture.run(weights, (x,))[0].float(), model(x).float(), rtol=2**-7)


def test_writes_in_place_become_values() -> None:
    def body(m: Body, x: Tensor) -> Tensor:
        y = x + 1
        y[:, 0] = m.b
        y.mul_(2).clamp_(-1, 1)
        y[..., 1:].add_(x[..., 1:])
        return F.relu(y, inplace=True)

    capture, _ = captured(body, X)
    for node in capture.graph.graph.nodes:
        if node.op == "call_function":
            assert not node.target._schema.is_mutable, node.target


def test_type_as_is_a_cast() -> None:
    _, targets = captured(lambda m, x: F.relu(x).type_as(m.b) + 1, X)
    assert targets == [aten.relu.default, aten.add.Tensor]
    _, targets = captured(lambda m, x: (x > 0).type_as(m.b) + 1, X)
    assert aten._to_copy.default in targets and aten.type_as.default not in targets
