"""What goes wrong in a capture unless somebody thought of it: one test for each."""

import copy
import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from adaflex.errors import CaptureError
from adaflex.passes import torch_compat
from adaflex.passes.capture import evaluate
from adaflex.passes.dynamo_door import DynamoCapture, capture_dynamo
from adaflex.passes.export_door import any_sizes, from_export
from tests.passes.models import zoo

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


class Recorder:
    """A backend that captures, runs the captured graph with the tensors of each call, and keeps what it made."""

    def __init__(self, root: nn.Module | None = None) -> None:
        self.root = root
        self.made: list[DynamoCapture] = []

    def __call__(self, module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        captured = capture_dynamo(module, example_inputs, self.root)
        self.made.append(captured)
        capture = captured.capture
        return captured.make_callable(lambda tensors, inputs: capture.run(capture.bind(tensors), inputs))


def targets(capture: Any) -> list[Any]:
    return [node.target for node in capture.graph.graph.nodes if node.op == "call_function"]


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.layer(x) + self.count


def test_a_changed_buffer_is_an_input_and_moves_once_per_call() -> None:
    model, x = Counter().eval(), torch.randn(2, 4)
    backend = Recorder(model)
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        outputs = [compiled(x) for _ in range(3)]
    assert model.count.item() == 3
    assert torch.equal(outputs[2], model.layer(x) + 3)
    capture = backend.made[0].capture
    state = [each for each in capture.inputs if each.is_state]
    assert [each.name for each in state] == ["count"]
    assert capture.mutations[0].input == capture.inputs.index(state[0])
    assert "count" not in {each.name for each in capture.sources}


def test_export_reports_the_changed_buffer_and_moves_nothing() -> None:
    model, x = Counter().eval(), torch.randn(2, 4)
    capture, weights = from_export(model, (x,))
    assert model.count.item() == 0
    assert [(each.name, each.is_state) for each in capture.inputs] == [("x", False), ("count", True)]
    changed, y = capture.run(weights, (x, torch.tensor([5.0])))
    assert changed.item() == 6 and torch.equal(y, model.layer(x) + 6)
    assert [each.kind for each in capture.outputs] == ["mutation", "fresh"]
    assert capture.mutations[0].input == 1


def test_a_second_instance_brings_its_own_weights() -> None:
    backend = Recorder()
    first, second = (zoo()["mlp"].model(seed) for seed in (1, 2))
    x = zoo()["mlp"].inputs()[0]
    with torch.no_grad():
        for model in (first, second):
            assert torch.equal(torch.compile(model, backend=backend)(x), model(x))
    assert len(backend.made) == 1  # Dynamo shared the graph


def test_an_edited_weight_is_seen_by_the_graph() -> None:
    model = zoo()["mlp"].model()
    x = zoo()["mlp"].inputs()[0]
    compiled = torch.compile(model, backend=Recorder(model))
    with torch.no_grad():
        compiled(x)
        model.second.weight.mul_(2)
        assert torch.equal(compiled(x), model(x))
        model.second.weight = nn.Parameter(torch.randn(16, 32), requires_grad=False)
        assert torch.equal(compiled(x), model(x))


class Outputs(nn.Module):
    """Nested outputs: a fresh tensor, an argument itself, a view of it, a number, nothing, a buffer, a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(4.0))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {
            "y": self.layer(x),
            "same": x,
            "flat": x.view(-1),
            "more": (3, None, self.table),
            "w": self.layer.weight,
        }


def test_aliases_and_containers_come_back_through_dynamo() -> None:
    model, x = Outputs().eval(), torch.randn(2, 4)
    with torch.no_grad():
        found = torch.compile(model, backend=Recorder(model))(x)
    assert torch.equal(found["y"], model.layer(x))
    assert found["same"] is x and found["flat"].data_ptr() == x.data_ptr()
    assert found["more"][:2] == (3, None) and found["more"][2].data_ptr() == model.table.data_ptr()
    assert found["w"].data_ptr() == model.layer.weight.data_ptr()


def test_export_says_how_each_output_arises() -> None:
    model, x = Outputs().eval(), torch.randn(2, 4)
    capture, weights = from_export(model, (x,))
    assert [each.kind for each in capture.outputs] == [
        "fresh",
        "input",
        "alias",
        "value",
        "value",
        "constant",
        "constant",
    ]
    assert [each.value for each in capture.outputs if each.kind == "value"] == [3, None]
    outputs = capture.run(weights, (x,))
    assert torch.equal(outputs[0], model.layer(x)) and torch.equal(outputs[5], model.table)


class TwoViews(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x + 1
        return y, y.clone(), x.clone()


def test_returned_copies_stay_copies() -> None:
    x = torch.randn(3)
    capture, weights = from_export(TwoViews(), (x,))
    outputs = capture.run(weights, (x,))
    assert len({each.data_ptr() for each in (*outputs, x)}) == 4


def test_floats_that_dynamo_made_inputs_are_constants_again() -> None:
    model = nn.Sequential(nn.LayerNorm(8, eps=0.01), nn.Linear(8, 8)).eval()
    backend = Recorder(model)
    compiled = torch.compile(model, backend=backend, dynamic=True)
    with torch.no_grad():
        for batch in (3, 5):
            x = torch.randn(batch, 8)
            assert torch.allclose(compiled(x), model(x), atol=1e-6)
    captures = [each.capture for each in backend.made]
    assert len(captures) == 1 and [each.dtype for each in captures[0].inputs if not each.is_symbol] == [torch.float32]
    norm = next(node for node in captures[0].graph.graph.nodes if node.target is aten.layer_norm.default)
    assert norm.args[4] == 0.01


def test_a_batch_of_one_is_a_graph_of_its_own_but_runs() -> None:
    entry = zoo()["mlp"]
    model = entry.model()
    capture, weights = from_export(model, entry.inputs(2), dynamic_shapes=entry.dynamic_shapes())
    one = entry.inputs(1)
    assert capture.symbols[0].low == 1
    assert torch.allclose(capture.run(weights, one)[0], model(*one), atol=1e-6)


def test_dropout_leaves_nothing_behind() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU()).eval()
    capture, _ = from_export(model, (torch.randn(2, 4),))
    assert targets(capture) == [aten.linear.default, aten.relu.default]


class Hidden(nn.Module):
    """A buffer that is not persistent, a plain tensor attribute, and a tensor made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((4,), 3.0), persistent=False)
        self.plain = torch.randn(4)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale + self.plain + torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_tensors_in_every_hiding_place_are_constants() -> None:
    model, x = Hidden().eval(), torch.randn(2, 4)
    capture, weights = from_export(model, (x,))
    assert torch.allclose(capture.run(weights, (x,))[0], model(x))
    assert "scale" in {each.name for each in capture.sources}
    backend = Recorder(model)
    with torch.no_grad():
        assert torch.allclose(torch.compile(model, backend=backend)(x), model(x))
    assert {"scale", "layer.weight", "layer.bias"} <= {each.name for each in backend.made[0].capture.sources}


def test_tied_weights_are_one_constant_with_all_names() -> None:
    model, inputs = zoo()["mlp"].model(), zoo()["mlp"].inputs()
    backend = Recorder(model)
    with torch.no_grad():
        torch.compile(model, backend=backend)(*inputs)
    for capture in (from_export(model, inputs)[0], backend.made[0].capture):
        tied = [each for each in capture.constants if "tied.weight" in each.aliases]
        assert [each.aliases for each in tied] == [("first.weight", "tied.weight")]
        assert len(capture.constants) == 4


class Packed(nn.Module):
    """Two linears on halves of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.both[:4]) * F.linear(x, self.both[4:])


def test_views_of_one_parameter_share_its_storage() -> None:
    model, x = Packed(), torch.randn(2, 4)
    capture, weights = from_export(model, (x,))
    halves = [each for each in capture.constants if each.derived]
    assert len(halves) == 2 and len({each.storage for each in halves}) == 1
    assert all(each.derived == ("both",) for each in halves)
    assert {each.untyped_storage().data_ptr() for each in weights} == {model.both.untyped_storage().data_ptr()}
    assert torch.allclose(capture.run(weights, (x,))[0], model(x))


def test_one_graph_serves_another_set_of_weights() -> None:
    entry = zoo()["resnet"]  # batch norms folded: the fold is computed anew
    one, other = entry.model(1), entry.model(2)
    capture, weights = from_export(one, entry.inputs())
    named = dict(other.named_parameters()) | dict(other.named_buffers())
    again = capture.bind([named[each.name] for each in capture.sources])
    x = entry.inputs()
    assert torch.allclose(capture.run(again, x)[0], other(*x), atol=1e-5)
    assert torch.allclose(capture.run(weights, x)[0], one(*x), atol=1e-5)


def test_autocast_is_in_the_graph() -> None:
    model, inputs = zoo()["mlp"].model(), zoo()["mlp"].inputs()
    backend = Recorder(model)
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output, expected = compiled(*inputs), model(*inputs)
    assert output.dtype == torch.bfloat16 and torch.equal(output, expected)
    cast = [each for each in backend.made[0].capture.constants if each.name == "second.weight"]
    assert [(each.dtype, each.derived) for each in cast] == [(torch.bfloat16, ("second.weight",))]


def test_a_copied_model_keeps_its_names() -> None:
    model, inputs = zoo()["bert"].model(), zoo()["bert"].inputs()
    twin = copy.deepcopy(model)
    backend = Recorder(twin)
    with torch.no_grad():
        torch.compile(twin, backend=backend)(*inputs)
    names = {each.name for each in backend.made[0].capture.sources}
    assert "model.encoder.layer.1.output.dense.weight" in names


def test_without_a_root_dynamos_own_names_serve() -> None:
    model, inputs = zoo()["mlp"].model(), zoo()["mlp"].inputs()
    backend = Recorder()
    with torch.no_grad():
        torch.compile(model, backend=backend)(*inputs)
    assert {each.name for each in backend.made[0].capture.sources} >= {"first.weight", "second.bias"}
    assert backend.made[0].input_sources[0].steps == (("local", "x"),)


def test_a_capture_keeps_no_weights_alive() -> None:
    model = zoo()["mlp"].model()
    capture, weights = from_export(model, zoo()["mlp"].inputs())
    gone = weakref.ref(model.second.weight)
    del model, weights
    gc.collect()
    assert gone() is None and len(capture.constants) == 4


def test_arguments_may_have_any_strides() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1) * 2

    capture, weights = from_export(Flat(), (torch.randn(3, 4),))
    x = torch.randn(4, 3).T
    assert torch.equal(capture.run(weights, (x,))[0], x.reshape(-1) * 2)


def test_inputs_know_where_they_stand_in_the_call() -> None:
    class Call(nn.Module):
        def forward(
            self, x: Tensor, pair: tuple[Tensor, Tensor], *, extra: dict[str, Tensor], flag: bool = True
        ) -> Tensor:
            return x + pair[0] + pair[1] + extra["one"] if flag else x

    t = torch.randn(2)
    capture, _ = from_export(Call(), (t, (t + 1, t + 2)), {"extra": {"one": t + 3}, "flag": True})
    assert [each.path for each in capture.inputs] == [("x",), ("pair", 0), ("pair", 1), ("extra", "one")]
    assert [each.name for each in capture.inputs] == ["x", "pair.0", "pair.1", "extra.one"]


def test_what_cannot_be_captured_is_named() -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(CaptureError, match="Decides"):
        from_export(Decides(), (torch.randn(3),))


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(CaptureError, match="meta device"):
        from_export(nn.Linear(3, 3, device="meta"), (torch.randn(2, 3, device="meta"),))


def test_the_self_test_finds_a_route() -> None:
    assert torch_compat.capture_route() == "whole"


def test_without_the_private_hook_patterns_are_put_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_compat, "capture_route", lambda: "broken")
    model, inputs = zoo()["sentence"].model(), zoo()["sentence"].inputs()
    backend = Recorder(model)
    with torch.no_grad():
        output = torch.compile(model, backend=backend)(*inputs)
    assert torch.allclose(output, model(*inputs), atol=1e-5)
    found = targets(backend.made[0].capture)
    assert found.count(aten.linear.default) == 12
    assert found.count(aten.layer_norm.default) == 5
    assert found.count(aten.scaled_dot_product_attention.default) == 2


def test_weight_normalisation_is_folded_into_the_weight() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU()).eval()
    x = torch.randn(3, 4)
    capture, weights = from_export(model, (x,))
    assert targets(capture) == [aten.linear.default, aten.relu.default]
    assert torch.allclose(capture.run(weights, (x,))[0], model(x), atol=1e-6)
    folded = next(each for each in capture.constants if each.derived)
    assert folded.shape == (6, 4) and folded.is_parameter and len(folded.derived) == 2


INPUTS = {
    "no rows": torch.randn(0, 8, 16),
    "expanded": torch.randn(1, 8, 16).expand(3, 8, 16),
    "transposed": torch.randn(8, 2, 16).transpose(0, 1),
    "sliced": torch.randn(2, 8, 32)[..., ::2],
}


@pytest.mark.parametrize("kind", INPUTS)
def test_unusual_inputs_equal_eager(kind: str) -> None:
    model = zoo()["mlp"].model()
    compiled = torch.compile(model, backend=Recorder(model))
    with torch.no_grad():
        assert torch.equal(compiled(INPUTS[kind]), model(INPUTS[kind]))


def test_double_precision_stays_double() -> None:
    model, inputs = zoo()["mlp"].model().double(), (zoo()["mlp"].inputs()[0].double(),)
    capture, weights = from_export(model, inputs)
    output = capture.run(weights, inputs)[0]
    assert output.dtype == torch.float64 and torch.equal(output, model(*inputs))


@pytest.mark.parametrize("as_keywords", [False, True])
def test_every_size_may_vary(as_keywords: bool) -> None:
    entry = zoo()["sentence"]
    model, inputs = entry.model(), entry.inputs(2, 8)
    args, kwargs = (
        ((), dict(zip(("input_ids", "attention_mask"), inputs, strict=True))) if as_keywords else (inputs, {})
    )
    capture, weights = from_export(model, args, kwargs, any_sizes(args, kwargs, model))
    other = entry.inputs(5, 13)
    assert torch.allclose(capture.run(weights, other)[0], model(*other), atol=1e-6)
    assert [each.path for each in capture.inputs] == [("input_ids",), ("attention_mask",)]


def test_sizes_among_the_outputs_are_expressions() -> None:
    class Sizes(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
            return x + 1, x.shape[0], 2 * x.shape[1] + 3

    x = torch.randn(2, 5)
    capture, weights = from_export(Sizes(), (x,), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},))
    assert [each.kind for each in capture.outputs] == ["fresh", "size", "size"]
    other = torch.randn(4, 7)
    values = capture.bind_symbols((other,))
    assert [evaluate(each.value, values) for each in capture.outputs[1:]] == [4, 17]
    assert capture.run(weights, (other,))[1:] == [4, 17]


class Rescaled(nn.Module):
    """Halves its own weight at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.linear.weight.div_(2)
        return self.linear(x)


def test_a_model_that_writes_to_its_weights_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"writes to its weight 'linear\.weight'"):
        from_export(Rescaled().requires_grad_(False), (torch.ones(2, 4),))
