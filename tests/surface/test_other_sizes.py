"""Graphs of other sizes than the first: sizes written in other ways, and weights that another graph folds otherwise."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import adaflex
from adaflex.errors import AdaflexError, CaptureError
from adaflex.passes.export_door import any_sizes, from_export


class Patches(nn.Module):
    """Positions are a table of 16 rows, added to a value of height x width rows: both are 16, written differently."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(16, 32)
        self.register_buffer("places", torch.arange(16)[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2) + self.rows(self.places)


class Probe(nn.Module):
    """Attention whose queries are a parameter: at a fixed batch they fold, and the other weights are numbered anew."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, 32))
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(self.probe.repeat(x.shape[0], 1, 1), x, x)[0]
        return found


def equal_at(run: Callable[[Tensor], Tensor], model: nn.Module, shapes: tuple[tuple[int, ...], ...]) -> None:
    """One program gives what the model gives for inputs of every shape."""
    for shape in shapes:
        x = torch.randn(shape)
        torch.testing.assert_close(run(x), model(x))


def test_equal_sizes_that_are_written_differently_are_not_broadcast() -> None:
    torch.manual_seed(0)
    model = Patches().eval().requires_grad_(False)
    calls = [(torch.randn(2, 32, 4, 4),) for _ in range(4)]
    program = adaflex.compile(model, calls[0], calibration=calls, axes=())
    for shape in ((3, 32, 4, 4), (2, 32, 8, 2)):
        x = torch.randn(shape)
        assert torch.equal(program(x), model(x))
    with pytest.raises(AdaflexError):
        program(torch.randn(2, 32, 5, 5))


@pytest.mark.parametrize("axes", [(), ("precision",)])
def test_weights_that_fold_otherwise_at_another_batch_are_told_apart(axes: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = Probe().eval().requires_grad_(False)
    calls = [(torch.randn(2, 16, 32),) for _ in range(4)]
    options = {"calibration": calls, "axes": axes}
    planned = torch.compile(model, backend="adaflex", fullgraph=True, options=options)
    with torch.no_grad():
        for batch in (2, 3, 1, 5):
            x = torch.randn(batch, 16, 32)
            error = (planned(x) - model(x)).norm() / model(x).norm()
            assert error < (1e-5 if not axes else 0.03), batch


class Asks(nn.Module):
    """Goes another way for other sizes."""

    def __init__(self, way: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y if self.way(x) else -y


WAYS: dict[str, tuple[Callable[[Tensor], bool], tuple[int, int]]] = {
    "a longest length": (lambda x: x.shape[1] <= 8, (3, 9)),
    "a shortest length": (lambda x: x.shape[1] > 4, (3, 4)),
    "even lengths": (lambda x: x.shape[1] % 2 == 0, (3, 7)),
    "two sizes together": (lambda x: x.shape[0] + x.shape[1] < 12, (6, 6)),
    "two sizes that differ": (lambda x: x.shape[0] != x.shape[1], (6, 6)),
}


@pytest.mark.parametrize("way", WAYS)
def test_sizes_at_which_the_model_goes_another_way_are_refused(way: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    asks, other = WAYS[way]
    model = Asks(asks).eval().requires_grad_(False)
    calls = [(torch.randn(3, 6, 16),) for _ in range(4)] + [(torch.randn(*other, 16),)]
    program = adaflex.compile(model, calls[0], calibration=calls, axes=())
    program.save(tmp_path / "asks.adaflex")
    for run in (program, adaflex.load(tmp_path / "asks.adaflex")):
        equal_at(run, model, ((3, 6, 16), (2, 8, 16), (1, 6, 16)))
        with pytest.raises(AdaflexError, match=r"x\.shape\[1\].*goes another way: compile it with an example"):
            run(torch.randn(*other, 16))


SMALL: dict[str, tuple[Callable[[Tensor], bool], tuple[int, int], str]] = {
    "one row": (lambda x: x.shape[0] == 1, (1, 6), r"x\.shape\[0\] != 1"),
    "one column": (lambda x: x.shape[1] > 1, (3, 1), r"x\.shape\[1\] != 1"),
}


@pytest.mark.parametrize("way", SMALL)
def test_a_size_of_one_at_which_the_model_goes_another_way_is_refused(way: str) -> None:
    torch.manual_seed(0)
    asks, other, said = SMALL[way]
    model = Asks(asks).eval().requires_grad_(False)
    program = adaflex.compile(model, torch.randn(3, 6, 16), axes=())
    equal_at(program, model, ((3, 6, 16), (2, 8, 16)))
    with pytest.raises(AdaflexError, match=said):
        program(torch.randn(*other, 16))


class Guarded(nn.Module):
    """Has an answer of its own for nothing at all, and asks for one row where that makes no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 0:
            return x.new_zeros(5)
        y: Tensor = self.linear(x)
        return y.mean(0, keepdim=True) if x.shape[0] == 1 else y


def test_sizes_of_one_and_zero_are_served_where_the_graph_holds_for_them() -> None:
    torch.manual_seed(0)
    model = Guarded().eval().requires_grad_(False)
    program = adaflex.compile(model, torch.randn(3, 16), axes=())
    equal_at(program, model, ((3, 16), (1, 16)))
    with pytest.raises(AdaflexError, match=r"x\.shape\[0\] != 0"):
        program(torch.randn(0, 16))


class Permuted(nn.Module):
    """Images, normalised over their channels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.norm, self.linear = body, nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        z: Tensor = self.linear(self.norm(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.body[1](y + z)


class Masked(nn.Module):
    """Leaves out what a mask marks, row by row; a mask that marks nothing is not looked at outside of tracing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        if not torch.compiler.is_exporting() and bool(mask.all()):
            return y
        rows = torch.arange(x.shape[0])
        return y * mask[rows][:, : x.shape[1], None]


def test_batches_of_two_arguments_are_one_together() -> None:
    torch.manual_seed(0)
    model = Masked().eval().requires_grad_(False)
    mask = torch.ones(3, 6)
    mask[1, 4:] = 0
    program = adaflex.compile(model, (torch.randn(3, 6, 16), mask), axes=())
    for batch in (3, 1, 2):
        given = torch.randn(batch, 6, 16), mask[-batch:]
        torch.testing.assert_close(program(*given), model(*given))


class Biased(nn.Module):
    """A table of 16 columns, one row, cut to the length from its end and added to every query's scores."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("table", torch.randn(2, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x).view(*x.shape[:2], 2, 4).transpose(1, 2)
        scores = h @ h.transpose(-1, -2)
        table = self.table[:, max(0, self.table.shape[1] - x.shape[1]) :, max(0, self.table.shape[2] - x.shape[1]) :]
        return (scores + table).softmax(-1)


def test_a_size_that_is_always_one_is_spread() -> None:
    torch.manual_seed(0)
    model = Biased().eval().requires_grad_(False)
    program = adaflex.compile(model, torch.randn(2, 6, 8), axes=())
    equal_at(program, model, ((2, 6, 8), (3, 9, 8), (1, 2, 8)))


def test_no_images_at_all_are_served() -> None:
    """Whether patches lie as channels do is asked by comparing products that are all 0 for no images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU())
    model = Permuted(model).eval().requires_grad_(False)
    program = adaflex.compile(model, torch.randn(2, 3, 16, 16), axes=())
    equal_at(program, model, ((2, 3, 16, 16), (0, 3, 16, 16), (1, 3, 8, 12)))


class Windows(nn.Module):
    """Rows are padded to whole windows of four, of which there are then half as many again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.pad(self.linear(x), (0, 0, 0, (4 - x.shape[1] % 4) % 4), value=2.0)
        return torch.nn.functional.interpolate(y.view(x.shape[0], -1, 4, 8).amax(2).transpose(1, 2), scale_factor=1.5)


class Nested(nn.Module):
    """Windows of windows: each padding depends on the length that the one before left."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.linear, self.levels = nn.Linear(16, 8), levels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        for window in range(3, 3 + self.levels):
            y = nn.functional.pad(y, (0, 0, 0, (window - y.shape[1] % window) % window), value=1.0)
            y = y.view(y.shape[0], -1, window, 8).amax(2).repeat_interleave(2, 1)
        return y


def test_sizes_that_depend_on_many_others_are_fixed_and_batches_left_free() -> None:
    torch.manual_seed(0)
    model, x = Nested(6).eval().requires_grad_(False), torch.randn(3, 40, 16)
    with pytest.raises(CaptureError, match="more than 64 operations"):
        from_export(model, (x,), None, any_sizes((x,), None, model))
    program = adaflex.compile(model, x, axes=())
    equal_at(program, model, ((3, 40, 16), (1, 40, 16), (7, 40, 16)))
    with pytest.raises(AdaflexError, match=r"this program takes \(3, 40, 16\)"):
        program(torch.randn(3, 41, 16))


def test_scales_of_sizes_that_vary() -> None:
    """Of the second call torch makes a float out of a size, which no program takes: its graph runs unplanned."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Upsample(scale_factor=1.3, mode="bilinear"))
    model.eval().requires_grad_(False)
    found = torch.compile(model, backend="adaflex", fullgraph=True, options={"axes": ()})
    with torch.no_grad():
        for width in (8, 11, 12):
            x = torch.randn(2, 3, 6, width)
            torch.testing.assert_close(found(x), model(x))


def test_paddings_that_depend_on_sizes() -> None:
    torch.manual_seed(0)
    model = Windows().eval().requires_grad_(False)
    program = adaflex.compile(model, torch.randn(3, 6, 16), axes=())
    equal_at(program, model, ((3, 6, 16), (2, 9, 16), (2, 8, 16)))


class Late(nn.Module):
    """Leaves out the first five rows. torch says that length - 5 are left, and compares no length with 5."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y[:, 5:]


def test_sizes_that_torch_lets_pass_and_the_program_cannot_hold_run_unplanned() -> None:
    torch.manual_seed(0)
    model = Late().eval().requires_grad_(False)
    found = torch.compile(model, backend="adaflex", fullgraph=True, dynamic=True, options={"axes": ()})
    with torch.no_grad():
        equal_at(found, model, ((2, 8, 16), (3, 3, 16), (3, 9, 16)))


class Score(nn.Module):
    """One number for each row, and a number alone for a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).squeeze()


def test_a_single_row_whose_axis_would_be_dropped_is_refused() -> None:
    torch.manual_seed(0)
    model = Score().eval().requires_grad_(False)
    program = adaflex.compile(model, torch.randn(3, 16), axes=())
    x = torch.randn(5, 16)
    torch.testing.assert_close(program(x), model(x))
    with pytest.raises(AdaflexError, match=r"x\.shape\[0\] != 1"):
        program(torch.randn(1, 16))
    torch.testing.assert_close(adaflex.compile(model, x[:1], axes=())(x[:1]), model(x[:1]))


SEEN: list[tuple[int, int]] = []


class Bags(nn.Module):
    """Reads where its arguments say, which torch does not check."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.linear = nn.EmbeddingBag(50, 16, mode="max"), nn.Linear(16, 8)
        self.register_forward_pre_hook(remembered)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.linear(self.bag(ids, offsets))


def remembered(_: nn.Module, given: tuple[Tensor, Tensor]) -> None:
    ids, offsets = given
    if type(offsets) is Tensor:  # no tracing
        SEEN.append((int(offsets.max()), ids.numel()))


def test_smaller_sizes_are_tried_with_arguments_that_fit_them() -> None:
    torch.manual_seed(0)
    model = Bags().eval().requires_grad_(False)
    program = adaflex.compile(model, (torch.randint(0, 50, (12,)), torch.tensor([0, 5, 8])), axes=(), threads=1)
    assert SEEN and all(last < count for last, count in SEEN)
    for count in (1, 3, 7):
        given = torch.randint(0, 50, (count,)), torch.zeros(2, dtype=torch.int64)
        torch.testing.assert_close(program(*given), model(*given))
