"""torch's fused encoder layer, written out, against the layer itself: both norm orders, both activations, masks."""

import pytest
import torch
from torch import nn

from adaflex.passes.fused import encoder_layer
from tests.passes.test_capture_traps import Recorder


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
def test_an_encoder_layer(norm_first: bool, activation: str, mask: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.1, activation, batch_first=True, norm_first=norm_first).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    x = torch.randn(2, 5, 16)
    given, kind, arguments = None, None, {}
    if mask == "causal":
        given, kind = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1), 0
        arguments = {"src_mask": given}
    elif mask == "padding":
        given, kind = torch.tensor([[False] * 5, [False, False, False, True, True]]), 1
        arguments = {"src_key_padding_mask": given}
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = layer(x, **arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    own = layer.self_attn
    found = encoder_layer(
        x, 16, 4, own.in_proj_weight, own.in_proj_bias, own.out_proj.weight, own.out_proj.bias, activation == "gelu",
        norm_first, 1e-5, layer.norm1.weight, layer.norm1.bias, layer.norm2.weight, layer.norm2.bias,
        layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias, given, kind,
    )  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-5)


def test_dynamos_fused_call_is_traced_written_out() -> None:
    torch._dynamo.reset()
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(2, 5, 16)
    backend = Recorder(model)
    with torch.no_grad():
        output = torch.compile(model, backend=backend)(x)
        assert torch.allclose(output, model(x), atol=1e-5)
    targets = [node.target for node in backend.made[0].capture.graph.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.aten.linear.default) == 4
    assert targets.count(torch.ops.aten.scaled_dot_product_attention.default) == 1
