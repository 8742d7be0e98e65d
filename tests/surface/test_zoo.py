"""Well-known models through both doors: lossless plans at eager's own accuracy, default plans within what they promise.

``make test-zoo`` (ZOO=full) plans every one of them under the default budget too.
"""

import collections
import copy
import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import adaflex
from adaflex import measuring
from adaflex.errors import AdaflexError
from adaflex.handle import Program
from adaflex.runtime.verdict import Verdict
from tests.passes.models import Entry, ids_only, rows, transformer, zoo


class Returns(nn.Module):
    """Dictionaries, lists and a named tuple, with a value that is no tensor."""

    Pair = collections.namedtuple("Pair", "low high")

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, double: bool = False) -> dict[str, Any]:
        h = torch.tanh(self.up(x)) * (2 if double else 1)
        return {"z": h, "all": [self.down(h), (h.sum(-1), None)], "count": 3, "pair": Returns.Pair(h.amin(-1), x + 1)}


class TiedHead(nn.Module):
    """A language model whose head is its embedding's table, that returns a library's own output type."""

    def __init__(self) -> None:
        super().__init__()
        import transformers

        self.body = transformer("GPT2")
        self.head = nn.Linear(self.body.config.n_embd, self.body.config.vocab_size, bias=False)
        self.head.weight = self.body.wte.weight
        self.kind = transformers.modeling_outputs.CausalLMOutput

    def forward(self, ids: Tensor) -> Any:
        hidden = self.body(input_ids=ids, use_cache=False)[0]
        return self.kind(logits=self.head(hidden), hidden_states=(hidden,))


class Bags(nn.Module):
    """Bags of embeddings and their products: a recommender."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(20, 8, mode="sum") for _ in range(3))
        self.top = nn.Linear(9, 1)

    def forward(self, ids: Tensor) -> Tensor:
        found = torch.stack([bag(ids[:, k]) for k, bag in enumerate(self.bags)], 1)
        return torch.sigmoid(self.top(torch.bmm(found, found.transpose(1, 2)).flatten(1)))


OTHERS = (
    Entry("returns", Returns, rows(16)),
    Entry("tied_head", TiedHead, ids_only),
    Entry("bags", Bags, lambda batch, length: (torch.randint(0, 20, (batch, 3, length)),)),
)
NAMED = "bert distilbert gpt2 llama qwen2 vit resnet t5 mobilenet mixtral transformer unet lstm".split()
ZOO = {name: zoo()[name] for name in NAMED} | {entry.name: entry for entry in OTHERS}
FIXED = ("lstm",)  # torch.export takes an LSTM's sizes for fixed
FULL = os.environ.get("ZOO") == "full"
PLANNED = tuple(ZOO) if FULL else ("mixtral", "lstm")


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.fixture(autouse=True, scope="module")
def short_bursts() -> Iterator[None]:
    """No latency is asked for here: timing what is made takes most of a small model's planning."""
    before, measuring.SHORTEST_S = measuring.SHORTEST_S, 0.002
    yield
    measuring.SHORTEST_S = before


def tensors(value: Any) -> list[Tensor]:
    """Every tensor of an output, in order."""
    if isinstance(value, dict):
        return [each for item in value.values() for each in tensors(item)]
    if isinstance(value, tuple | list):
        return [each for item in value for each in tensors(item)]
    return [value] if isinstance(value, Tensor) else []


def wide(value: Any) -> Any:
    return pytree.tree_map(lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, value)


def lossless(model: nn.Module, inputs: tuple[Any, ...], found: Any) -> None:
    """Each output is as far from a float64 run as eager's own twice, or as rounding of the longest sum explains."""
    longest = max(math.prod(each.shape[1:]) for each in model.parameters())
    exact = tensors(copy.deepcopy(model).double()(*wide(inputs)))
    eager, made = tensors(model(*inputs)), tensors(found)
    assert [each.shape for each in made] == [each.shape for each in eager]
    for value, own, right in zip(made, eager, exact, strict=True):
        rounding = 8 * torch.finfo(torch.float32).eps * float(right.abs().max()) * math.sqrt(longest)
        bound = max(2 * float((own.double() - right).abs().max()), rounding)
        assert value.dtype == own.dtype and float((value.double() - right).abs().max()) <= bound


@functools.cache
def made(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    return ZOO[name].model(), ZOO[name].inputs()


@functools.cache
def exported(name: str) -> Program:
    model, inputs = made(name)
    return adaflex.compile(model, inputs, axes=(), threads=1, calibration=[inputs])


def compiled(name: str, **options: Any) -> Callable[..., Any]:
    return torch.compile(made(name)[0], backend="adaflex", fullgraph=True, options={"threads": 1, **options})


@pytest.mark.parametrize("name", ZOO)
def test_lossless_by_export(name: str) -> None:
    (model, inputs), program = made(name), exported(name)
    lossless(model, inputs, program(*inputs))
    if name not in FIXED:
        other = ZOO[name].inputs(3, 11 if ZOO[name].length == 8 else 0)
        lossless(model, other, program(*other))


@pytest.mark.parametrize("name", ZOO)
def test_lossless_by_torch_compile(name: str) -> None:
    (model, inputs), found = made(name), compiled(name, axes=(), calibration=[made(name)[1]])
    with torch.no_grad():
        lossless(model, inputs, found(*inputs))
        other = ZOO[name].inputs(3, 11)
        lossless(model, other, found(*other))
    assert len(adaflex.programs(found)) == 2


LOADS = """
import sys, torch, adaflex
torch.set_num_threads(1)
def flat(v):
    if isinstance(v, torch.Tensor):
        return [v]
    return sum(map(flat, v.values() if isinstance(v, dict) else v), []) if isinstance(v, (dict, tuple, list)) else []
for path in sys.argv[1:]:
    inputs, wanted = torch.load(path + ".pt")
    found = adaflex.load(path, threads=1)(*inputs)
    assert all(map(torch.equal, flat(found), wanted)) and len(flat(found)) == len(wanted), path
assert not {"transformers", "tests", "adaflex.solver", "adaflex.passes"} & set(sys.modules)
"""


def test_saved_programs_run_without_the_models_code(tmp_path: Path) -> None:
    paths = []
    for name in ZOO:
        inputs = made(name)[1]
        paths.append(str(tmp_path / name))
        exported(name).save(paths[-1])
        torch.save((inputs, tensors(exported(name)(*inputs))), paths[-1] + ".pt")
    result = subprocess.run([sys.executable, "-c", LOADS, *paths], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_outputs_are_nested_as_the_model_nests_them() -> None:
    found = exported("returns")(*made("returns")[1])
    assert list(found) == ["z", "all", "count", "pair"] and found["count"] == 3 and found["all"][1][1] is None
    assert found["pair"].high is found["pair"][1]
    head = exported("tied_head")(*made("tied_head")[1])
    assert head.logits is head["logits"] is head[0] and head.hidden_states[0].dim() == 3
    with pytest.raises(AdaflexError, match="'double' is True; this program was made for False"):
        exported("returns")(*made("returns")[1], double=True)


def kept(verdict: Verdict, name: str, found: Any) -> None:
    """Every promise held, and on other data the error is of the size that was allowed (the default: that of bf16)."""
    (loss,) = (promise for promise in verdict.promises if promise.name == "loss")
    assert verdict.held and loss.asked
    model, inputs = made(name)
    pairs = list(zip(tensors(found), tensors(model(*inputs)), strict=True))
    off = sum(float((one - other).double().square().sum()) for one, other in pairs)
    assert off <= 9 * loss.asked * sum(float(other.double().square().sum()) for _, other in pairs)


def calls(name: str) -> list[tuple[Any, ...]]:
    return [ZOO[name].inputs(seed=seed) for seed in (2, 3, 4, 5)]


@pytest.mark.parametrize("name", PLANNED)
def test_default_budget_by_export(name: str) -> None:
    model, inputs = made(name)
    program = adaflex.compile(model, inputs, threads=1, calibration=calls(name))
    assert program.verdict is not None
    kept(program.verdict, name, program(*inputs))


@pytest.mark.parametrize("name", PLANNED if FULL else ("llama",))
def test_default_budget_by_torch_compile(name: str) -> None:
    found = compiled(name, calibration=calls(name))
    with torch.no_grad():
        output = found(*made(name)[1])
    kept(adaflex.programs(found)[0].verdict, name, output)


class Branch(nn.Module):
    """What runs depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.high, self.low = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.high(h) if h.sum() > 100 else self.low(h)


def test_each_branch_is_planned_when_it_is_first_met() -> None:
    torch.manual_seed(0)
    model = Branch().eval().requires_grad_(False)
    found = torch.compile(model, backend="adaflex", options={"axes": (), "threads": 1})
    small, large = torch.randn(2, 16), 50 * torch.randn(2, 16).abs()
    counts = []
    with torch.no_grad():
        for x in (small, small, small, large, large, large):
            lossless(model, (x,), found(x))
            counts.append(len(adaflex.programs(found)))
    assert counts[1] == counts[2] == 2 and counts[-1] == counts[-2] == 3


def test_recurrent_modules_are_traced_for_this_backend_alone() -> None:
    model, inputs = made("lstm")
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.Unsupported, match="LSTM"):
        torch.compile(model, backend="eager", fullgraph=True)(*inputs)
    assert torch._dynamo.config.allow_rnn is False
