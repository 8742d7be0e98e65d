"""Every way of giving calibration data, what is held out, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from adaflex.errors import CalibrationError
from adaflex.passes.calibration import Calibration, bind, calibration, samples, with_state
from adaflex.passes.capture import Capture
from adaflex.passes.export_door import from_export
from adaflex.passes.repair import kept_rows, statistics


class Two(nn.Module):
    """ids and a mask, as encoders take them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.embed(input_ids) * attention_mask.unsqueeze(-1)).sum(1)


@pytest.fixture(scope="module")
def dynamic() -> Capture:
    free = {0: Dim("b", min=1, max=64), 1: Dim("t", max=32)}
    return from_export(Two(), call(2, 5), None, (free, free))[0]


@pytest.fixture(scope="module")
def static() -> Capture:
    return from_export(Two(), call(2, 5))[0]


def call(batch: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.arange(batch * length).reshape(batch, length) % 20, torch.ones(batch, length, dtype=torch.long)


def test_forms() -> None:
    ids, mask = call(2, 5)
    assert Calibration(ids).batches[0].args == (ids,)
    assert Calibration((ids, mask)).batches[0].args == (ids, mask)
    assert Calibration({"input_ids": ids}).batches[0].kwargs == {"input_ids": ids}
    assert len(Calibration([ids, ids, (ids, mask)])) == 3
    assert len(Calibration(iter([ids, ids]))) == 2
    assert len(Calibration(lambda: [ids])) == 1
    held = Calibration([ids])
    assert calibration(held) is held and len(held) == len(held) == 1


def test_holders_compare_by_identity() -> None:
    ids, _ = call(2, 5)
    assert Calibration([ids]) != Calibration([ids]) and {"calibration": Calibration([ids])} != {"calibration": 1}


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_files(tmp_path: Path, ending: str) -> None:
    from safetensors.torch import save_file

    ids, mask = call(2, 5)
    arrays = {"0.input_ids": ids, "0.attention_mask": mask, "1.input_ids": ids + 1, "1.attention_mask": mask.clone()}
    path = tmp_path / f"data{ending}"
    if ending == ".npz":
        np.savez(path, **{name: each.numpy() for name, each in arrays.items()})
    else:
        save_file(arrays, path)
    batches = Calibration(path).batches
    assert len(batches) == 2 and torch.equal(batches[1].kwargs["input_ids"], ids + 1)
    path.write_bytes(b"nonsense")
    with pytest.raises(CalibrationError, match="cannot be read"):
        _ = Calibration(str(path)).batches


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "holds no calls"),
        (list, "holds no calls"),
        (3, "is a int"),
        ([3], "call 0 of calibration is a int"),
        ("data.txt", "no known ending"),
        ("missing.npz", "cannot be read"),
    ],
)
def test_refused(source: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        _ = Calibration(source).batches


def test_binding(static: Capture) -> None:
    ids, mask = call(2, 5)
    by_place, by_name = Calibration([(ids, mask), {"attention_mask": mask, "input_ids": ids}]).batches
    assert all(torch.equal(a, b) for a, b in zip(bind(static, by_place), bind(static, by_name), strict=True))
    for bad, message in (
        ({"input_ids": ids}, "lacks 'attention_mask'"),
        ((ids[:, :4], mask), r"'input_ids' of call 0 of calibration has shape \[2, 4\], the model takes \[2, 5\]"),
        ((ids.float(), mask), "is torch.float32, the model takes torch.int64"),
        ((ids, "x"), "'attention_mask' of call 0 of calibration is a str"),
    ):
        with pytest.raises(CalibrationError, match=message):
            bind(static, Calibration([bad]).batches[0])


def test_last_quarter_is_held_out(dynamic: Capture, static: Capture) -> None:
    eight = Calibration([call(2, 5) for _ in range(8)])
    found = samples(static, eight)
    assert (len(found.fit), len(found.held), found.by_rows) == (6, 2, False)
    found = samples(dynamic, eight)
    assert [len(x[0]) for x in found.fit] == [12] and [len(x[0]) for x in found.held] == [4] and found.by_rows
    assert samples(static, Calibration([call(2, 5)] * 3)).held == ()
    one = samples(dynamic, Calibration(call(40, 5)))
    assert [len(x[0]) for x in one.fit] == [30] and [len(x[0]) for x in one.held] == [10]
    assert torch.equal(torch.cat([one.fit[0][0], one.held[0][0]]), call(40, 5)[0])


def test_only_equal_shapes_merge(dynamic: Capture) -> None:
    mixed = samples(dynamic, Calibration([call(1, 5), call(1, 7), call(1, 5), call(50, 9), call(1, 4)]))
    assert sorted(tuple(x[0].shape) for x in mixed.fit) == [(1, 7), (2, 5), (19, 9), (19, 9)]
    assert sorted(tuple(x[0].shape) for x in mixed.held) == [(1, 4), (12, 9)]
    whole = samples(dynamic, Calibration([call(1, 5)] * 4), whole=True)
    assert len(whole.fit) == 3 and len(whole.held) == 1 and len(whole.batches) == 4


def test_padding_does_not_count(dynamic: Capture) -> None:
    assert samples(dynamic, Calibration([call(2, 5)])).mask == 1
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    rows = torch.stack([x[0, 0], x[0, 1], x[1, 0]])
    assert torch.equal(kept_rows(x, mask), rows) and len(kept_rows(x, torch.ones(5, 5))) == 6
    found = statistics([(x, mask), (x, None)])
    assert found.rows == 9
    assert torch.allclose(found.gram, rows.T @ rows + x.reshape(-1, 4).T @ x.reshape(-1, 4), atol=1e-5)


class Skipping(torch.nn.Module):
    """Arguments that are no tensors stand between those that are, and any number more may follow."""

    def forward(self, x: Tensor, flag: bool, mask: Tensor | None = None, *rest: Tensor) -> Tensor:
        return (x if flag else -x) + rest[0] * rest[1]


def test_arguments_are_bound_by_their_place_in_the_call() -> None:
    args = (torch.ones(3), True, None, torch.full((3,), 2.0), torch.full((3,), 5.0))
    capture, weights = from_export(Skipping(), args)
    assert capture.positional == ("x", "flag", "mask", "*rest")
    bound = bind(capture, Calibration(args).batches[0])
    assert torch.equal(capture.run(weights, bound)[0], Skipping()(*args))
    wanted = {each.path: (each.value, each.needed) for each in capture.fixed}
    assert wanted == {("flag",): (True, True), ("mask",): (None, False)}


def test_calls_find_the_state_that_they_write_to(dynamic: Capture) -> None:
    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x * self.count

    capture, _ = from_export(Counts(), (torch.ones(3),))
    found = samples(capture, with_state(Calibration([torch.ones(3)]), {"count": torch.tensor(4.0)}))
    assert [each.is_state for each in capture.inputs] == [False, True] and float(found.fit[0][1]) == 4
    assert samples(dynamic, with_state(Calibration([call(1, 5)]), {})).fit
