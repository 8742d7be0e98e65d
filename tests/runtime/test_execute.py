"""The executor: calls side by side, memory that is shared and not handed out, inputs of every kind, forks, pickles."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaflex.building import kernels
from adaflex.codegen.evaluate import Evaluator
from adaflex.errors import OptionError
from adaflex.native import compiler
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.export_door import from_export
from adaflex.runtime.execute import Executor
from adaflex.runtime.kernels import Kernels, Prepared
from adaflex.runtime.layout import Layout
from adaflex.runtime.program import Program
from tests.codegen.batched import supported
from tests.codegen.lowered import program_of

WIDTH, PLANNED = 24, 6


class Model(nn.Module):
    """Own steps and library steps, locals that share memory, an int64, a float64 and a float32 input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Tensor, ids: Tensor, wide: Tensor) -> tuple[Tensor, ...]:
        y = x + self.table(ids)
        y = y + self.down(nn.functional.gelu(self.up(nn.functional.layer_norm(y, (WIDTH,)))))
        return y, y.cumsum(0).softmax(-1), (wide * 2 + 1).sum(-1), ids + 1


Parts = tuple[Capture, Weights, Program, Tensor]


@pytest.fixture(scope="module")
def parts() -> Parts:
    torch.manual_seed(0)
    rows = torch.export.Dim("rows", min=0, max=PLANNED)
    model = Model().eval().requires_grad_(False)
    capture, weights = from_export(model, inputs_of(4), dynamic_shapes=({0: rows},) * 3)
    return capture, weights, *program_of(capture, weights)


@pytest.fixture(params=["evaluator", "compiled"])
def executor(request: pytest.FixtureRequest, parts: Parts) -> Callable[..., Executor]:
    """executor(max_concurrency): the program, its arenas poisoned before every call."""
    if request.param == "compiled" and compiler() is None:
        pytest.skip("no C++ compiler")

    def make(max_concurrency: int = 1, watch: Callable[[Kernels], Kernels] = lambda found: found) -> Executor:
        _, _, program, weights = parts
        found = kernels(program, supported(), 2) if request.param == "compiled" else Evaluator(program)
        run = Executor(program, weights, watch(found), threads=2, max_concurrency=max_concurrency)
        run.poison = 0xFF
        return run

    return make


def inputs_of(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTH, generator=made)
    ids = torch.randint(0, 11, (rows,), generator=made)
    return x, ids, torch.randn(rows, WIDTH, generator=made, dtype=torch.float64)


def assert_eager(parts: Parts, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """What the captured graph computes, in its dtypes and shapes; float64 and int64 to the bit or nearly."""
    wanted = parts[0].run(parts[1], inputs)
    assert len(outputs) == len(wanted)
    for got, expected in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(got, expected)


class Watched:
    """Kernels that count how many calls are inside at once; each stays until ``company`` calls are, or a while."""

    def __init__(self, kernels: Kernels, company: int) -> None:
        self.kernels, self.company, self.inside, self.most = kernels, company, 0, 0
        self.whole = getattr(kernels, "whole", False)
        self.changed = threading.Condition()

    def scratch_bytes(self, symbols: Sequence[int]) -> int:
        return self.kernels.scratch_bytes(symbols)

    def prepare(self, layout: Layout) -> Prepared:
        return WatchedCalls(self, self.kernels.prepare(layout))


class WatchedCalls:
    def __init__(self, watched: Watched, calls: Prepared) -> None:
        self.watched, self.calls = watched, calls

    def run(self, segment: int, addresses: Sequence[int], thread_arena: int) -> None:
        watched = self.watched
        with watched.changed:
            watched.inside += 1
            watched.most = max(watched.most, watched.inside)
            watched.changed.notify_all()
            watched.changed.wait_for(lambda: watched.most >= watched.company, timeout=0.2)
        try:
            self.calls.run(segment, addresses, thread_arena)
        finally:
            with watched.changed:
                watched.inside -= 1


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_calls_at_once_than_allowed_and_each_gets_its_own_answer(
    executor: Callable[..., Executor], parts: Parts, most: int
) -> None:
    seen: list[Watched] = []

    def watch(found: Kernels) -> Kernels:
        seen.append(Watched(found, 2))
        return seen[0]

    run = executor(most, watch)
    calls = [inputs_of(rows, seed) for seed, rows in enumerate((4, 4, 1, 6, 4, 2, 6, 4))]
    with ThreadPoolExecutor(4) as pool:
        for inputs, outputs in zip(calls, pool.map(lambda inputs: run(*inputs), calls), strict=True):
            assert_eager(parts, inputs, outputs)
    assert seen[0].most == most
    assert len(run._arenas) == most, "one arena for each call that may run at once"


def test_sizes_share_an_arena(executor: Callable[..., Executor], parts: Parts) -> None:
    """Memory is that of the largest call, however many sizes were met."""
    run = executor()
    largest = 0
    for rows in (1, PLANNED, 2, 5, 40, 3, 40, 1):
        inputs = inputs_of(rows, rows)
        assert_eager(parts, inputs, run(*inputs))
        largest = max(largest, run.memory(inputs)["arena"])
        (arena,) = run._arenas
        assert largest <= arena.numel() <= largest + 64


def test_sizes_beyond_the_planned_maximum_get_a_layout_of_their_own(
    executor: Callable[..., Executor], parts: Parts
) -> None:
    run = executor()
    planned = run.memory(inputs_of(PLANNED))["total"]
    inputs = inputs_of(50 * PLANNED)
    assert_eager(parts, inputs, run(*inputs))
    assert run.memory(inputs)["total"] > planned == run.memory(inputs_of(PLANNED))["total"]


def strided(inputs: tuple[Tensor, ...], kind: str) -> tuple[Tensor, ...]:
    """The same values in another layout."""
    if kind == "transposed":
        return tuple(each.t().contiguous().t() if each.dim() == 2 else each for each in inputs)
    if kind == "signs to be turned":  # torch marks such tensors and turns their signs when they are read
        return tuple(torch._neg_view(-each) if each.is_floating_point() else each for each in inputs)
    if kind == "every other row":
        return tuple(torch.stack((each, each - 1), 1).flatten(0, 1)[::2] for each in inputs)
    return tuple(each[:1].expand_as(each) for each in inputs)


@pytest.mark.parametrize("kind", ["transposed", "signs to be turned", "every other row", "expanded"])
def test_inputs_in_any_layout(executor: Callable[..., Executor], parts: Parts, kind: str) -> None:
    inputs = strided(inputs_of(5), kind)
    assert inputs[0].is_neg() or not inputs[0].is_contiguous()
    kept = [each.clone() for each in inputs]
    outputs = executor()(*inputs)
    assert_eager(parts, kept, outputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True)), "an input was written to"


def test_a_batch_of_nothing(executor: Callable[..., Executor], parts: Parts) -> None:
    run = executor()
    for rows in (0, 3, 0):
        inputs = inputs_of(rows)
        outputs = run(*inputs)
        assert_eager(parts, inputs, outputs)
        assert [len(each) for each in outputs] == [rows] * 4


def test_outputs_are_fresh_and_outlive_the_calls_after_them(executor: Callable[..., Executor], parts: Parts) -> None:
    run = executor()
    inputs = inputs_of(4)
    first = run(*inputs)
    kept = [each.clone() for each in first]
    for seed in range(3):
        run(*inputs_of(4, seed + 1))
    homes = [*run._arenas, run.weights, *inputs]
    for place, output in enumerate(first):
        start, end = output.data_ptr(), output.data_ptr() + output.numel() * output.element_size()
        for home in homes:
            low = home.data_ptr()
            assert end <= low or low + home.numel() * home.element_size() <= start, f"output {place} is in other memory"
        assert torch.equal(output, kept[place]), f"output {place} was written to by a later call"


def test_a_call_that_fails_leaves_room_for_the_next(executor: Callable[..., Executor], parts: Parts) -> None:
    run = executor()
    x, ids, wide = inputs_of(4)
    for _ in range(3):
        with pytest.raises(OptionError, match="table"):
            run(x, ids + 100, wide)
        assert_eager(parts, (x, ids, wide), run(x, ids, wide))
    assert len(run._arenas) == 1


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda x: x[:, :5], "'x' has shape"),
        (0, lambda x: x.double(), "'x' is torch.float64"),
        (1, lambda ids: ids.float(), "'ids' is torch.float32"),
        (2, lambda wide: wide[:2], "'wide' has shape"),
        (0, lambda x: x.to("meta"), "'x' is on 'meta'"),
        (0, lambda x: x.to_sparse(), "'x' is torch.sparse_coo"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(
    executor: Callable[..., Executor], place: int, change: Callable[[Tensor], Tensor], message: str
) -> None:
    given, run = list(inputs_of(4)), executor()
    run(*given)
    given[place] = change(given[place])
    with pytest.raises(OptionError, match=message):
        run(*given)


def test_a_program_is_not_pickled(executor: Callable[..., Executor]) -> None:
    with pytest.raises(TypeError, match=r"cannot be pickled; save it with \.save\(path\)"):
        pickle.dumps(executor())


def test_a_fork_before_the_first_call_gives_two_programs_that_work(
    executor: Callable[..., Executor], parts: Parts
) -> None:
    run, inputs = executor(), inputs_of(4)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert_eager(parts, inputs, run(*inputs))
            code = 0
        finally:
            os._exit(code)
    assert_eager(parts, inputs, run(*inputs))
    assert status_of(child) == 0


def status_of(child: int, limit_s: float = 60) -> Any:
    """A child's exit code; one that hangs is killed."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hung"
