"""The torch.compile door with a planner that runs the captured graph: who is planned, when, with which weights."""

import gc
import logging
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaflex.backend import Backend
from adaflex.calls import Part
from adaflex.errors import AdaflexError, BudgetError, OptionError
from adaflex.options import Options
from adaflex.passes.calibration import Batch, Calibration
from tests.passes.models import zoo


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


class Program:
    """Runs the captured graph with weights copied when it was planned: stale weights show."""

    def __init__(self, part: Part) -> None:
        self.capture = part.capture
        self.weights = tuple(each.clone() for each in part.weights)
        self.runs = 0

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        self.runs += 1
        return self.capture.run(self.weights, inputs)


class Fake:
    """A planner that remembers what it was asked."""

    def __init__(self, error: AdaflexError | None = None) -> None:
        self.planned: list[list[str]] = []  # names of the weights, plan by plan
        self.extended: list[int] = []  # how many earlier programs each late graph had
        self.parts: list[Part] = []
        self.options: list[Options] = []
        self.error = error

    def plan(self, parts: Sequence[Part], options: Options) -> Sequence[Program]:
        self.planned.append([each.name for part in parts for each in part.capture.sources])
        self.parts += parts
        self.options.append(options)
        if self.error is not None:
            raise self.error
        return [Program(part) for part in parts]

    def extend(self, part: Part, options: Options, earlier: Sequence[Any]) -> Program:
        self.extended.append(len(earlier))
        return Program(part)


def setup(error: AdaflexError | None = None) -> tuple[Backend, Fake]:
    planner = Fake(error)
    return Backend(planner), planner


def mlp(seed: int = 0) -> nn.Module:
    return zoo()["mlp"].model(seed)


X = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(3))


def test_one_graph_is_planned_in_the_first_call_and_then_runs() -> None:
    backend, planner = setup()
    model = mlp()
    compiled = torch.compile(model, backend=backend.compile_graph, options={"loss": 0.03})
    with torch.no_grad():
        outputs = [compiled(X) for _ in range(3)]
    assert all(torch.equal(each, model(X)) for each in outputs) and outputs[0].shape == (2, 8, 16 * 2)
    assert len(planner.planned) == 1 and planner.options[0].loss == 0.03
    (program,) = backend.programs(compiled)
    assert program.runs == 3
    call = planner.parts[0].call
    assert call.root is model and call.batch is not None and torch.equal(call.batch.args[0], X)
    assert call.inputs[0].data_ptr() != X.data_ptr()


@pytest.mark.parametrize(
    "options, said",
    [({"memroy": 1}, "memory"), ({"memory": "12 parsecs"}, "parsecs"), ({"axes": "depth"}, "depth"), ([1], "dict")],
)
def test_bad_options_are_said_before_anything_is_planned(options: Any, said: str) -> None:
    backend, planner = setup()
    compiled = torch.compile(mlp(), backend=backend.compile_graph, options=options)
    with torch.no_grad(), pytest.raises(OptionError, match=said):
        compiled(X)
    assert not planner.planned


def test_a_mode_is_refused_with_the_way_out() -> None:
    backend, _ = setup()
    with torch.no_grad(), pytest.raises(OptionError, match="options="):
        torch.compile(mlp(), backend=backend.compile_graph, mode="max-autotune")(X)


def test_an_impossible_budget_is_its_own_error_every_time_and_solved_once() -> None:
    backend, planner = setup(BudgetError("memory=1 cannot be met: the least is 2 MiB"))
    compiled = torch.compile(mlp(), backend=backend.compile_graph, options={"memory": 1})
    for _ in range(2):
        with torch.no_grad(), pytest.raises(BudgetError, match="the least is 2 MiB"):
            compiled(X)
    assert len(planner.planned) == 1


def test_under_gradients_the_original_runs_and_one_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    backend, planner = setup()
    model = mlp().requires_grad_(True)
    compiled = torch.compile(model, backend=backend.compile_graph)
    for _ in range(2):
        compiled(X).sum().backward()
    assert model.second.weight.grad is not None and not planner.planned
    assert sum("torch.no_grad()" in record.getMessage() for record in caplog.records) == 1
    with torch.no_grad():
        assert torch.equal(compiled(X), model(X))
    assert len(planner.planned) == 1


def test_strict_makes_it_an_error() -> None:
    backend, _ = setup()
    model = mlp().requires_grad_(True)
    with pytest.raises(AdaflexError, match="strict"):
        torch.compile(model, backend=backend.compile_graph, options={"strict": True})(X)


def test_frozen_weights_are_planned_although_gradients_are_on() -> None:
    backend, planner = setup()
    model = mlp()
    assert torch.equal(torch.compile(model, backend=backend.compile_graph)(X), model(X))
    assert len(planner.planned) == 1


def test_three_grad_modes_share_one_plan() -> None:
    backend, planner = setup()
    model = mlp()
    compiled = torch.compile(model, backend=backend.compile_graph)
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            assert torch.equal(compiled(X), model(X))
    assert len(planner.planned) == 1 and not planner.extended
    assert len(backend.programs(compiled)) == 1


def test_two_instances_never_mix() -> None:
    backend, planner = setup()
    models = [mlp(seed) for seed in (1, 2)]
    compiled = [torch.compile(model, backend=backend.compile_graph) for model in models]
    with torch.no_grad():
        for _ in range(2):
            for model, each in zip(models, compiled, strict=True):
                assert torch.equal(each(X), model(X))
    assert len(planner.planned) == 2


def test_edited_and_replaced_weights_are_planned_again() -> None:
    backend, planner = setup()
    model = mlp()
    compiled = torch.compile(model, backend=backend.compile_graph)
    with torch.no_grad():
        compiled(X)
        model.second.weight.mul_(2)
        assert torch.equal(compiled(X), model(X))
        model.second.bias = nn.Parameter(torch.randn(16), requires_grad=False)
        assert torch.equal(compiled(X), model(X))
        model.load_state_dict(mlp(7).state_dict())
        assert torch.equal(compiled(X), model(X))
    assert len(planner.planned) + len(planner.extended) == 4


def test_weights_made_in_inference_mode_have_identity_only() -> None:
    backend, planner = setup()
    with torch.inference_mode():
        model = mlp()
        compiled = torch.compile(model, backend=backend.compile_graph)
        assert torch.equal(compiled(X), model(X))
        assert torch.equal(compiled(X), model(X))
    assert len(planner.planned) == 1


def test_another_shape_is_a_late_graph_with_the_same_choices() -> None:
    backend, planner = setup()
    entry = zoo()["sentence"]
    model = entry.model()
    compiled = torch.compile(model, backend=backend.compile_graph)
    with torch.no_grad():
        for batch, length in ((2, 8), (3, 11), (4, 13)):
            inputs = entry.inputs(batch, length)
            assert torch.allclose(compiled(*inputs), model(*inputs), atol=1e-6)
    assert len(planner.planned) == 1 and planner.extended == [1]


class Breaks(nn.Module):
    """Two graphs: torch must leave the graph between the linears."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        torch._dynamo.graph_break()
        return self.two(y)


def test_graph_breaks_are_recorded_and_planned_together(caplog: pytest.LogCaptureFixture) -> None:
    backend, planner = setup()
    model = Breaks().eval().requires_grad_(False)
    compiled = torch.compile(model, backend=backend.compile_graph)
    with torch.no_grad():
        assert torch.equal(compiled(X), model(X))
        assert not planner.planned
        for _ in range(2):
            assert torch.equal(compiled(X), model(X))
    assert planner.planned == [["one.weight", "one.bias", "two.weight", "two.bias"]]
    assert sum(program.runs for program in backend.programs(compiled)) == 4
    assert any("in 2 pieces" in record.getMessage() for record in caplog.records)
    call = planner.parts[1].call
    assert call.root is model and call.batch is not None and call.inputs[0].shape == X.shape


class Loop(nn.Module):
    """Layers that break inside: one graph, four sets of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Breaks() for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_one_graph_serves_four_sets_of_weights_with_whole_names() -> None:
    backend, planner = setup()
    model = Loop().eval().requires_grad_(False)
    compiled = torch.compile(model, backend=backend.compile_graph)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(compiled(X), model(X))
    assert len(planner.planned) == 1 and len(planner.parts) == 8
    assert len({id(part.capture) for part in planner.parts}) < 8
    sets = {tuple(each.data_ptr() for each in part.weights) for part in planner.parts}
    assert len(sets) == 8


def test_what_torch_never_handed_over_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.outside = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = self.helper(x)
            return self.outside(x)

        def helper(self, x: Tensor) -> Tensor:
            y = self.inside(x)
            torch._dynamo.graph_break()
            return y + 1

    backend, planner = setup()
    model = Skips().eval().requires_grad_(False)
    compiled = torch.compile(model, backend=backend.compile_graph)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(compiled(X), model(X))
    assert planner.planned == [["inside.weight", "inside.bias"]]
    assert any("outside.weight, outside.bias (1088 bytes" in record.getMessage() for record in caplog.records)


def test_a_deleted_model_frees_its_programs() -> None:
    backend, planner = setup()
    model = mlp()
    compiled = torch.compile(model, backend=backend.compile_graph)
    with torch.no_grad():
        compiled(X)
    gone = [weakref.ref(backend.programs(compiled)[0]), weakref.ref(model.second.weight)]
    planner.parts.clear()
    del model, compiled
    gc.collect()
    assert [each() for each in gone] == [None, None]


def test_threads_that_race_at_the_first_call_plan_once() -> None:
    backend, planner = setup()
    model = mlp()
    compiled = torch.compile(model, backend=backend.compile_graph)
    barrier, found, faults = threading.Barrier(4), [], []

    def work() -> None:
        try:
            barrier.wait()
            with torch.no_grad():
                found.append(compiled(X))
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and all(torch.equal(each, model(X)) for each in found) and len(found) == 4
    assert len(planner.planned) == 1 and not planner.extended


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) + self.calls


class Calibrating(Fake):
    """Runs the original model on every batch before it plans."""

    def plan(self, parts: Sequence[Part], options: Options) -> Sequence[Program]:
        data = options.calibration or Calibration([parts[0].call.batch])
        self.results = [parts[0].call.original(batch) for batch in data.batches]
        return super().plan(parts, options)


@pytest.mark.parametrize("how", ["list", "holder", "callable", "none"])
def test_calibration_runs_the_original_and_moves_nothing(how: str) -> None:
    planner = Calibrating()
    backend = Backend(planner)
    model = Counts().eval().requires_grad_(False)
    batches = [(torch.randn(3, 16),), {"x": torch.randn(5, 16)}]
    given = {"list": batches, "holder": Calibration(batches), "callable": lambda: batches, "none": None}[how]
    options = {"calibration": given} if given is not None else {}
    compiled = torch.compile(model, backend=backend.compile_graph, options=options)
    state = torch.get_rng_state()
    with torch.no_grad():
        output = compiled(X)
        assert model.calls.item() == 1 and torch.equal(output, model.layer(X) + 1)
        assert compiled(X) is not None and model.calls.item() == 2
    assert torch.equal(torch.get_rng_state(), state)
    expected = [batches[0][0], batches[1]["x"]] if given is not None else [X]
    assert all(torch.equal(result, model.layer(x) + 1) for result, x in zip(planner.results, expected, strict=True))


def test_lists_of_tensors_in_options_do_not_trip_torchs_comparison() -> None:
    backend, planner = setup()
    models = [mlp(seed) for seed in (1, 2)]
    with torch.no_grad():
        for model in models:
            options = {"calibration": [torch.randn(2, 8, 16)]}
            compiled = torch.compile(model, backend=backend.compile_graph, options=options)
            assert torch.equal(compiled(X), model(X))
            assert isinstance(options["calibration"], Calibration)
    assert len(planner.planned) == 2


def test_the_limit_of_recompilations_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    backend, planner = setup()

    class Eleven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.mode = nn.Linear(16, 16), 0

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.mode

    model = Eleven().eval().requires_grad_(False)
    compiled = torch.compile(model, backend=backend.compile_graph, dynamic=False)
    with torch.no_grad():
        for mode in range(10):
            model.mode = mode
            assert torch.equal(compiled(X), model(X))
    said = [record.getMessage() for record in caplog.records if "isolate_recompiles" in record.getMessage()]
    assert len(said) == 1 and "8 graphs" in said[0] and "Eleven" in said[0]
    assert len(planner.planned) == 1


def test_nine_models_of_one_class_each_with_graphs_of_its_own() -> None:
    backend, planner = setup()
    with torch.no_grad():
        for width in range(9):
            model = nn.Sequential(nn.Linear(16, 4 + width), nn.ReLU()).eval().requires_grad_(False)
            compiled = torch.compile(model, backend=backend.compile_graph, isolate_recompiles=True)
            assert torch.equal(compiled(X), model(X))
    assert len(planner.planned) == 9


def test_functions_methods_and_module_compile() -> None:
    backend, planner = setup()
    model = mlp()

    def twice(x: Tensor) -> Tensor:
        return model(x) * 2

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    own = Own().eval().requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(torch.compile(twice, backend=backend.compile_graph)(X), model(X) * 2)
        assert torch.equal(torch.compile(model.forward, backend=backend.compile_graph)(X), model(X))
        expected = own(X)
        own.compile(backend=backend.compile_graph)
        assert torch.equal(own(X), expected)
    assert planner.planned[0] == ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert planner.planned[2][0] == "inner.first.weight"
    assert [part.call.root for part in planner.parts] == [model, model, own]
    assert len(backend.programs(own)) == 1


def test_prefill_and_decode_pack_once() -> None:
    from tests.passes.models import transformer

    backend, planner = setup()
    torch.manual_seed(0)
    model = transformer("Llama").eval().requires_grad_(False)
    compiled = torch.compile(model, backend=backend.compile_graph)
    ids = torch.randint(0, 99, (1, 12))
    with torch.no_grad():
        state, cache, given = None, None, ids[:, :6]
        for step in range(6, 10):
            output = compiled(input_ids=given, past_key_values=cache, use_cache=True)
            state, cache, given = output.last_hidden_state, output.past_key_values, ids[:, step : step + 1]
        whole = model(input_ids=ids[:, :9], use_cache=False).last_hidden_state
    assert state is not None and torch.allclose(state[:, -1], whole[:, -1], atol=1e-5)
    assert len(planner.planned) == 1 and all(count >= 1 for count in planner.extended)


def test_by_name_through_the_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    import adaflex.backend as module

    backend, planner = setup()
    monkeypatch.setattr(module, "default_backend", lambda: backend)
    model = mlp()
    compiled = torch.compile(model, backend="adaflex", options={"loss": 0.01})
    with torch.no_grad():
        assert torch.equal(compiled(X), model(X))
    assert len(planner.planned) == 1 and module.programs(compiled)


def test_what_cannot_be_captured_runs_as_it_is_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: self.layer(x), lambda x: x - 1, (x,))

    backend, planner = setup()
    model = Chooses().eval().requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend=backend.compile_graph)(X), model(X))
    assert not planner.planned
    assert any("torch.where" in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


def test_a_batch_given_by_keyword_is_known_to_the_planner() -> None:
    backend, planner = setup()
    model = mlp()
    compiled = torch.compile(model, backend=backend.compile_graph)
    with torch.no_grad():
        compiled(x=X)
    batch = planner.parts[0].call.batch
    assert isinstance(batch, Batch) and list(batch.kwargs) == ["x"]
    assert planner.parts[0].capture.inputs[0].path == ("x",)


def test_the_planner_can_have_the_whole_model_with_varying_sizes() -> None:
    class Recapturing(Fake):
        def plan(self, parts: Sequence[Part], options: Options) -> Sequence[Program]:
            self.whole = parts[0].call.recaptured()
            return super().plan(parts, options)

    planner = Recapturing()
    entry = zoo()["sentence"]
    model, other = entry.model(), entry.inputs(3, 11)
    compiled = torch.compile(model, backend=Backend(planner).compile_graph)
    with torch.no_grad():
        assert torch.allclose(compiled(*entry.inputs()), model(*entry.inputs()), atol=1e-6)
    capture, weights = planner.whole
    assert torch.allclose(capture.run(weights, other)[0], model(*other), atol=1e-6)
    assert {each.name for each in capture.sources} == set(planner.planned[0])


def test_the_original_runs_under_the_autocast_of_the_call() -> None:
    planner = Calibrating()
    model = mlp()
    compiled = torch.compile(model, backend=Backend(planner).compile_graph)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(X)
        assert torch.equal(compiled(X), expected)
    assert planner.results[0].dtype == torch.bfloat16 and torch.equal(planner.results[0], expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_planner_may_use_gradients_and_sees_no_watching_modes(mode: Any) -> None:
    class Sloped(Fake):
        def plan(self, parts: Sequence[Part], options: Options) -> Sequence[Program]:
            x = parts[0].call.inputs[0].requires_grad_(True)
            (self.slope,) = torch.autograd.grad((x * 2).sum(), x)
            return super().plan(parts, options)

    planner = Sloped()
    with mode():
        torch.compile(mlp(), backend=Backend(planner).compile_graph)(torch.randn(2, 8, 16))
    assert bool((planner.slope == 2).all())


def test_weights_that_change_between_calls_are_not_planned_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    backend, planner = setup()
    model = mlp()
    compiled = torch.compile(model, backend=backend.compile_graph)
    with torch.no_grad():
        for _ in range(7):
            model.second.weight.mul_(0.9)
            assert torch.equal(compiled(X), model(X))
    assert len(planner.planned) == 3
    assert sum("unplanned from now on" in record.getMessage() for record in caplog.records) == 1


def test_a_buffer_that_one_piece_writes_and_another_reads() -> None:
    class Pieces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(1))
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            self.steps.add_(1)
            y = x * 2
            torch._dynamo.graph_break()
            return self.layer(y) + self.steps

    backend, planner = setup()
    model = Pieces().eval().requires_grad_(False)
    compiled = torch.compile(model, backend=backend.compile_graph)
    with torch.no_grad():
        for step in range(1, 8):
            assert torch.equal(compiled(X), model.layer(X * 2) + step)
    assert model.steps.item() == 7 and 1 <= len(planner.planned) + len(planner.extended) <= 4
