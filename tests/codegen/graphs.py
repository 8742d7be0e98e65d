"""Random graphs over the operators that lowering meets: captured form, weights, and inputs for several sizes.

A seed gives a graph of 3 to 30 nodes: shared inputs, several outputs, views, broadcasts, reductions, linears,
attention, library ops, sizes of 1, primes and what no vector width divides, a symbolic axis in a fifth, mixed dtypes.
Ops that jump (comparisons, rounding) are applied only to values that every run computes exactly.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from adaflex.passes.capture import Capture, Constant, Input, Output, Symbol
from adaflex.passes.windows import WINDOWS
from adaflex.runtime.program import WINDOW_KINDS

aten = torch.ops.aten
WIDTHS = (1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 32, 33, 48, 64, 70)
WIDE = (32, 64, 96, 128)  # that groups and rotations divide
LENGTHS = (1, 2, 3, 4, 5, 7, 11, 13)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BATCH = 4  # value of the symbolic axis while the graph is made


@dataclass(frozen=True)
class Case:
    """A graph ready to be lowered and run."""

    seed: int
    capture: Capture
    weights: tuple[Tensor, ...]
    make_inputs: Callable[[int], tuple[Tensor, ...]]  # of the symbolic axis
    symbolic: bool
    coarsest: float  # rounding unit of the least precise dtype inside


@dataclass
class Value:
    """A node with what is known of it."""

    node: fx.Node
    exact: bool  # every run computes the same bits

    @property
    def fake(self) -> Tensor:
        found: Tensor = self.node.meta["val"]
        return found


@dataclass
class Maker:
    """The graph in the making."""

    rng: random.Random
    symbolic: bool
    widths: Sequence[int] = WIDTHS
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: list[Value] = field(default_factory=list)
    constants: list[tuple[fx.Node, Tensor]] = field(default_factory=list)
    inputs: list[tuple[fx.Node, Callable[[int], Tensor]]] = field(default_factory=list)
    coarsest: float = 2.0**-24

    def __post_init__(self) -> None:
        self.env = ShapeEnv()
        self.mode: Any = FakeTensorMode(shape_env=self.env) if self.symbolic else contextlib.nullcontext()
        self.sizes: dict[str, fx.Node] = {}
        self.torch_rng = torch.Generator().manual_seed(self.rng.randrange(1 << 30))

    # ---- leaves ----
    def input(self, shape: Sequence[int], make: Callable[[Sequence[int]], Tensor]) -> Value:
        """A placeholder whose first axis is the symbol, where there is one."""
        full = (BATCH, *shape)
        node = self.graph.placeholder(f"in{len(self.inputs)}")
        if not self.symbolic:
            node.meta["val"] = make(full).to("meta")
        elif self.inputs:
            node.meta["val"] = self._with_first_symbol(make(full))
        else:
            kinds = [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * len(shape)]
            context = StatelessSymbolicContext(dynamic_sizes=kinds)
            node.meta["val"] = self.mode.from_tensor(make(full), symbolic_context=context, source=ConstantSource("in0"))
        self.inputs.append((node, lambda batch: make((batch, *shape))))
        value = Value(node, True)
        self.values.append(value)
        return value

    def _with_first_symbol(self, fake: Tensor) -> Tensor:
        with self.mode:
            return torch.empty(self.inputs[0][0].meta["val"].shape[0], *fake.shape[1:], dtype=fake.dtype)

    def constant(self, tensor: Tensor) -> fx.Node:
        """A weight; its placeholder stands before those of the inputs."""
        with self.graph.inserting_before(self.inputs[0][0]):
            node = self.graph.placeholder(f"c{len(self.constants)}")
        node.meta["val"] = self.mode.from_tensor(tensor, static_shapes=True) if self.symbolic else tensor.to("meta")
        self.constants.append((node, tensor))
        return node

    def noise(self, *shape: int) -> Tensor:
        """Normal numbers, some of them zero."""
        made = torch.randn(*shape, generator=self.torch_rng)
        return made * (torch.rand(shape, generator=self.torch_rng) > 0.05)

    # ---- ops ----
    def call(self, op: Any, *args: Any, exact: bool = False, keep: bool = True, **kwargs: Any) -> Value:
        """Append a node, with the fake result that torch gives it."""

        def fake(argument: Any) -> Any:
            if isinstance(argument, list | tuple):
                return [fake(item) for item in argument]
            return argument.meta["val"] if isinstance(argument, fx.Node) else argument

        with self.mode:
            result = op(*map(fake, args), **{k: fake(v) for k, v in kwargs.items()})
        node = self.graph.call_function(op, tuple(args), kwargs)
        node.meta["val"] = result
        value = Value(node, exact)
        if keep and isinstance(result, Tensor):
            self.values.append(value)
            self._note(result.dtype)
        return value

    def _note(self, dtype: torch.dtype) -> None:
        if dtype in (torch.bfloat16, torch.float16):
            self.coarsest = max(self.coarsest, 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11)

    def size(self, value: Value, axis: int) -> Any:
        """A size as an argument: an int, or the node that reads the symbol."""
        size = value.fake.shape[axis]
        if isinstance(size, int):
            return size
        key = str(size)
        if key not in self.sizes:
            node = self.graph.call_function(aten.sym_size.int, (value.node, axis))
            node.meta["val"] = size
            self.sizes[key] = node
        return self.sizes[key]

    def pick(self, test: Callable[[Value], bool] = lambda value: True) -> Value | None:
        """A random value that passes, later ones more often."""
        found = [value for value in self.values if test(value)]
        return found[-1 - int(len(found) * self.rng.random() ** 2)] if found else None

    def dim(self, value: Value) -> int:
        """A random axis."""
        return self.rng.randrange(value.fake.dim())


def is_float(value: Value) -> bool:
    return value.fake.dtype in FLOATS


def is_f32(value: Value) -> bool:
    return value.fake.dtype == torch.float32


def fixed(value: Value, axis: int = -1) -> bool:
    return value.fake.dim() > 0 and isinstance(value.fake.shape[axis], int)


UNARY = [aten.neg, aten.abs, aten.tanh, aten.sigmoid, aten.relu, aten.silu, aten.gelu, aten.erf, aten.sin, aten.cos]
SAFE = [aten.exp, aten.expm1, aten.square]  # of a tanh
POSITIVE = [aten.sqrt, aten.rsqrt, aten.log, aten.log2, aten.log1p, aten.reciprocal]  # of |x| + 0.5
JUMPS = [aten.floor, aten.ceil, aten.round, aten.trunc, aten.sign]
BINARY = [aten.add, aten.sub, aten.mul, aten.maximum, aten.minimum, aten.div]
COMPARE = [aten.lt, aten.le, aten.gt, aten.ge, aten.eq, aten.ne]
KEEPS_EXACT = (aten.neg, aten.abs, aten.relu)


def unary(m: Maker) -> None:
    x = m.pick(is_float)
    if x is None:
        return
    kind = m.rng.random()
    if kind < 0.6:
        op = m.rng.choice(UNARY)
        m.call(op.default, x.node, exact=x.exact and op in KEEPS_EXACT)
    elif kind < 0.75:
        m.call(m.rng.choice(SAFE).default, m.call(aten.tanh.default, x.node).node)
    else:
        shifted = m.call(aten.add.Tensor, m.call(aten.abs.default, x.node).node, 0.5)
        m.call(m.rng.choice(POSITIVE).default, shifted.node)


def jump(m: Maker) -> None:
    x = m.pick(lambda v: is_float(v) and v.exact)
    if x is not None:
        m.call(m.rng.choice(JUMPS).default, x.node, exact=True)


def _matches(a: Value, b: Value) -> bool:
    """Can b be broadcast to a without making it larger?"""
    if b.fake.dim() > a.fake.dim():
        return False
    pairs = zip(reversed(a.fake.shape), reversed(b.fake.shape), strict=False)
    return all((isinstance(y, int) and y == 1) or str(x) == str(y) for x, y in pairs)


def binary(m: Maker) -> None:
    x = m.pick(is_float)
    if x is None:
        return
    op = m.rng.choice(BINARY)
    second: Any = None
    kind = m.rng.random()
    if kind < 0.6:
        y = m.pick(lambda v: v.fake.dtype == x.fake.dtype and _matches(x, v))
        second = y.node if y is not None else None
    if second is None and kind < 0.8 and fixed(x) and x.fake.dtype == torch.float32:
        second = m.constant(m.noise(int(x.fake.shape[-1])))
    if second is None:
        if op in (aten.maximum, aten.minimum):
            return
        second = round(m.rng.uniform(-2, 2), 2) or 1.0
    if op is aten.div:
        if not isinstance(second, fx.Node):
            second = abs(second) + 0.5
        else:
            second = m.call(aten.add.Tensor, m.call(aten.abs.default, second).node, 0.5).node
    flip = isinstance(second, fx.Node) and m.rng.random() < 0.3 and op is not aten.div
    args = (second, x.node) if flip else (x.node, second)
    extra = {"alpha": 2} if op in (aten.add, aten.sub) and m.rng.random() < 0.1 else {}
    m.call(op.default if op in (aten.maximum, aten.minimum) else op.Tensor, *args, **extra)


def compare(m: Maker) -> None:
    x = m.pick(lambda v: v.exact and is_float(v))
    if x is None:
        return
    m.call(m.rng.choice(COMPARE).Scalar, x.node, round(m.rng.uniform(-1, 1), 1), exact=True)


def choose(m: Maker) -> None:
    x = m.pick(is_f32)
    if x is None:
        return
    mask = m.pick(lambda v: v.fake.dtype == torch.bool and _matches(x, v))
    if mask is None:
        return
    if m.rng.random() < 0.5:
        m.call(aten.masked_fill.Scalar, x.node, mask.node, -1.5)
        return
    y = m.pick(lambda v: is_f32(v) and _matches(x, v))
    assert y is not None
    m.call(aten.where.self, mask.node, x.node, y.node)


def logic(m: Maker) -> None:
    x = m.pick(lambda v: v.fake.dtype == torch.bool)
    if x is None:
        return
    y = m.pick(lambda v: v.fake.dtype == torch.bool and _matches(x, v))
    assert y is not None
    op = m.rng.choice([aten.logical_and.default, aten.logical_or.default, aten.bitwise_and.Tensor])
    m.call(op, x.node, y.node, exact=True)


def clamp(m: Maker) -> None:
    x = m.pick(is_float)
    if x is not None:
        m.call(aten.clamp.default, x.node, m.rng.choice([None, -0.5]), m.rng.choice([0.7, 1.5]), exact=x.exact)


def linear(m: Maker) -> None:
    x = m.pick(lambda v: is_f32(v) and fixed(v) and v.fake.dim() >= 2)
    if x is None:
        return
    k, n = int(x.fake.shape[-1]), m.rng.choice(m.widths)
    if m.rng.random() < 0.2:
        weight = m.call(aten.t.default, m.constant(m.noise(k, n) / k**0.5), keep=False).node
    else:
        weight = m.constant(m.noise(n, k) / k**0.5)
    bias = m.constant(m.noise(n)) if m.rng.random() < 0.7 else None
    m.call(aten.linear.default, x.node, weight, bias)


def norm(m: Maker) -> None:
    x = m.pick(lambda v: is_f32(v) and fixed(v) and int(v.fake.shape[-1]) > 1)
    if x is None:
        return
    n, kind = int(x.fake.shape[-1]), m.rng.randrange(4)
    if kind == 0:
        m.call(aten.softmax.int, x.node, m.rng.choice([-1, x.fake.dim() - 1]))
    elif kind == 1:
        affine = (m.constant(m.noise(n)), m.constant(m.noise(n))) if m.rng.random() < 0.7 else (None, None)
        m.call(aten.layer_norm.default, x.node, [n], *affine, 1e-2)
    elif kind == 2:
        m.call(aten.rms_norm.default, x.node, [n], m.constant(m.noise(n)), 1e-2)
    else:
        m.call(aten.linalg_vector_norm.default, x.node, m.rng.choice([1, 2]), [-1], True)


def reduce(m: Maker) -> None:
    x = m.pick(lambda v: is_f32(v) and v.fake.dim() >= 1)
    if x is None:
        return
    op = m.rng.choice([aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default])
    axis = m.dim(x)
    keepdim = m.rng.random() < 0.6
    m.call(op, x.node, [axis - x.fake.dim() if m.rng.random() < 0.5 else axis], keepdim)


def view(m: Maker) -> None:
    x = m.pick(lambda v: v.fake.dim() >= 1)
    if x is None:
        return
    rank, kind = x.fake.dim(), m.rng.randrange(9)
    if kind == 0 and rank >= 2:
        m.call(aten.transpose.int, x.node, m.dim(x), m.dim(x), exact=x.exact)
    elif kind == 1:
        order = list(range(rank))
        m.rng.shuffle(order)
        m.call(aten.permute.default, x.node, order, exact=x.exact)
    elif kind == 2 and rank < 4:
        m.call(aten.unsqueeze.default, x.node, m.rng.randrange(rank + 1), exact=x.exact)
    elif kind == 3:
        axis = m.dim(x)
        if fixed(x, axis):  # along the symbol torch itself assumes more than 1
            m.call(aten.squeeze.dim, x.node, axis, exact=x.exact)
    elif kind == 4 and rank >= 2:
        reshape(m, x)
    elif kind == 5:
        axis = m.dim(x)
        if fixed(x, axis) and int(x.fake.shape[axis]) > 1:
            size = int(x.fake.shape[axis])
            start, step = m.rng.randrange(size), m.rng.choice([1, 1, 2])
            end = m.rng.choice([size, 2**63 - 1, start + 1])
            m.call(aten.slice.Tensor, x.node, axis, start, end, step, exact=x.exact)
    elif kind == 6 and rank >= 2:
        axis = m.dim(x)
        if fixed(x, axis):
            size = int(x.fake.shape[axis])
            m.call(aten.select.int, x.node, axis, m.rng.randrange(-size, size), exact=x.exact)
    elif kind == 7 and rank < 4:
        fresh = m.call(aten.unsqueeze.default, x.node, 0, exact=x.exact, keep=False)
        m.call(aten.expand.default, fresh.node, [m.rng.choice([2, 3]), *[-1] * rank], exact=x.exact)
    elif kind == 8:
        split(m, x)


def reshape(m: Maker, x: Value) -> None:
    """Two neighbouring axes become one, or one becomes two."""
    sizes = [m.size(x, axis) for axis in range(x.fake.dim())]
    axis = m.rng.randrange(len(sizes) - 1)
    if m.rng.random() < 0.5:
        first, second = sizes[axis : axis + 2]
        if isinstance(first, int) and isinstance(second, int):
            m.call(aten.reshape.default, x.node, [*sizes[:axis], first * second, *sizes[axis + 2 :]], exact=x.exact)
        else:
            m.call(aten.reshape.default, x.node, [*sizes[:axis], -1, *sizes[axis + 2 :]], exact=x.exact)
        return
    axis += 1
    if isinstance(sizes[axis], int) and len(sizes) < 4:
        part = m.rng.choice([d for d in range(1, sizes[axis] + 1) if sizes[axis] % d == 0])
        op = aten.view.default if x.fake.is_contiguous() else aten.reshape.default
        wanted = [*sizes[:axis], part, sizes[axis] // part, *sizes[axis + 1 :]]
        m.call(op, x.node, wanted, exact=x.exact)


def split(m: Maker, x: Value) -> None:
    axis = m.dim(x)
    if not fixed(x, axis) or int(x.fake.shape[axis]) < 2:
        return
    pieces = m.call(aten.split.Tensor, x.node, m.rng.choice([1, 2, 3]), axis, keep=False)
    import operator

    for place in m.rng.sample(range(len(pieces.node.meta["val"])), 1):
        node = m.graph.call_function(operator.getitem, (pieces.node, place))
        node.meta["val"] = pieces.node.meta["val"][place]
        m.values.append(Value(node, x.exact))


def cast(m: Maker) -> None:
    x = m.pick(is_float)
    if x is None:
        return
    if x.fake.dtype == torch.float32:
        m.call(aten._to_copy.default, x.node, dtype=m.rng.choice([torch.bfloat16, torch.float16, torch.float32]))
    else:
        m.call(aten._to_copy.default, x.node, dtype=torch.float32)


def library(m: Maker) -> None:
    x = m.pick(lambda v: is_f32(v) and v.fake.dim() >= 2)
    if x is None:
        return
    kind = m.rng.randrange(4)
    if kind == 0:
        m.call(aten.cat.default, [x.node, x.node], m.dim(x), exact=x.exact)
    elif kind == 1:
        m.call(aten.cumsum.default, x.node, m.dim(x))
    elif kind == 2:
        m.call(aten.flip.default, x.node, [m.dim(x)], exact=x.exact)
    else:
        other = m.call(aten.transpose.int, x.node, -1, -2, exact=x.exact, keep=False)
        m.call(aten.matmul.default, x.node, other.node)


def copy(m: Maker) -> None:
    x = m.pick()
    assert x is not None
    m.call(aten.clone.default, x.node, memory_format=torch.contiguous_format, exact=x.exact)


def embedding(m: Maker) -> None:
    index = m.pick(lambda v: v.fake.dtype == torch.int64)
    if index is not None:
        width = m.rng.choice(m.widths)
        table = m.constant(m.noise(10, width) / (width**0.5 if m.rng.random() < 0.5 else 1))
        m.call(aten.embedding.default, table, index.node, exact=True)
        x = m.pick(lambda v: is_f32(v) and fixed(v) and v.fake.dim() >= 2 and int(v.fake.shape[-1]) == width)
        if x is not None and m.rng.random() < 0.5:  # the table as a head's weight
            m.call(aten.linear.default, x.node, table)


def attention(m: Maker) -> None:
    """Linears, heads, scaled dot product, heads side by side again."""
    x = m.pick(lambda v: is_f32(v) and v.fake.dim() == 3 and fixed(v) and fixed(v, 1))
    if x is None:
        return
    heads, kv_heads, width = m.rng.choice([(1, 1, 5), (2, 2, 8), (4, 2, 16), (3, 1, 32), (1, 1, 1), (2, 1, 33)])
    sizes, k = [m.size(x, 0), m.size(x, 1)], int(x.fake.shape[-1])
    parts = []
    for count in (heads, kv_heads, kv_heads):
        weight = m.constant(m.noise(count * width, k) / k**0.5)
        y = m.call(aten.linear.default, x.node, weight)
        y = m.call(aten.view.default, y.node, [*sizes, count, width], keep=False)
        parts.append(m.call(aten.transpose.int, y.node, 1, 2, keep=m.rng.random() < 0.3).node)
    extra: dict[str, Any] = {"enable_gqa": True} if heads != kv_heads else {}
    mask = None
    kind = m.rng.randrange(4)
    if kind == 1:
        extra["is_causal"] = True
    elif kind == 2:
        length = int(x.fake.shape[1])
        mask = m.constant(m.noise(1, 1, length, length))
    elif kind == 3:
        mask = m.constant(torch.rand(1, 1, 1, int(x.fake.shape[1]), generator=m.torch_rng) > 0.3)
    y = m.call(aten.scaled_dot_product_attention.default, *parts, mask, **extra)
    y = m.call(aten.transpose.int, y.node, 1, 2, keep=False)
    m.call(aten.reshape.default, y.node, [*sizes, heads * width])


def slide(m: Maker) -> None:
    """Windows over images that lie in any order of axes; every window sees the image."""
    x = m.pick(lambda v: is_f32(v) and v.fake.dim() >= 3)
    if x is None:
        return
    if x.fake.dim() == 3:
        x = m.call(aten.unsqueeze.default, x.node, m.rng.randrange(4), exact=x.exact, keep=False)
    if m.rng.random() < 0.5:
        order = list(range(4))
        m.rng.shuffle(order)
        x = m.call(aten.permute.default, x.node, order, exact=x.exact, keep=False)
    if not fixed(x):
        return
    kind, kernel = m.rng.choice(WINDOW_KINDS), [m.rng.choice((1, 2, 3)) for _ in range(2)]
    channels, taps = int(x.fake.shape[-1]), kernel[0] * kernel[1]
    if kind == "patches" and channels * taps > 300:
        kind = "max"
    dilation = [1 if kind == "max" else m.rng.choice((1, 1, 2)) for _ in range(2)]
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    before = [m.rng.randint(0, reach[axis]) for axis in range(2)]
    padding = [*before, *(m.rng.randint(reach[axis] - before[axis], reach[axis]) for axis in range(2))]
    weight = m.constant(m.noise(taps, channels)) if kind == "depthwise" else None
    geometry = (kernel, [m.rng.choice((1, 1, 2)) for _ in range(2)], padding, dilation)
    m.call(WINDOWS, x.node, weight, kind, *geometry, exact=x.exact and kind in ("patches", "max"))


def residual(m: Maker) -> None:
    """A branch of two or three linears that joins what goes around it: something a plan may skip, or make narrower."""
    x = m.pick(lambda v: is_f32(v) and fixed(v) and v.fake.dim() >= 2)
    if x is None:
        return
    k, n = int(x.fake.shape[-1]), m.rng.choice(m.widths)
    bias = m.constant(m.noise(n)) if m.rng.random() < 0.5 else None
    up = m.call(aten.linear.default, x.node, m.constant(m.noise(n, k) / k**0.5), bias, keep=False)
    bent = m.call(aten.silu.default, up.node, keep=False)
    if m.rng.random() < 0.4:
        gate = m.call(aten.linear.default, x.node, m.constant(m.noise(n, k) / k**0.5), keep=False)
        bent = m.call(aten.mul.Tensor, bent.node, gate.node, keep=False)
    down = m.call(aten.linear.default, bent.node, m.constant(m.noise(k, n) / n**0.5), keep=False)
    m.call(aten.add.Tensor, x.node, down.node)


OPERATIONS = (
    [unary] * 4 + [binary] * 6 + [jump, compare, choose, choose, logic, clamp] + [linear] * 4 + [norm] * 3
    + [reduce] * 3 + [view] * 6 + [cast, library, copy, embedding, attention]
)  # fmt: skip


def graph(seed: int, most: int = 30, widths: Sequence[int] = WIDTHS, images: bool = False) -> Case:
    """The graph of a seed; ``images``: with windows that slide over what has three axes or four."""
    rng = random.Random(seed)
    m = Maker(rng, symbolic=rng.random() < 0.2, widths=widths)
    length, width = rng.choice(LENGTHS), rng.choice(widths)
    m.input((length, width), lambda shape: m.noise(*shape))
    if rng.random() < 0.5:
        m.input(rng.choice([(length, width), (width,), (1, width), (length, 1)]), lambda shape: m.noise(*shape))
    if rng.random() < 0.4:
        m.input((length,), lambda shape: torch.randint(0, 10, tuple(shape), generator=m.torch_rng))
    if rng.random() < 0.3:
        m.input((length, 1), lambda shape: torch.rand(tuple(shape), generator=m.torch_rng) > 0.4)
    wanted = rng.randint(3, most)
    operations = [*OPERATIONS, *[residual] * 4 * (widths is WIDE), *[slide] * 6 * images]
    start = len(m.graph.nodes)
    for _ in range(4 * most):
        if len(m.graph.nodes) - start >= wanted:
            break
        m.rng.choice(operations)(m)
    made = [value for value in m.values if value.node.op == "call_function"] or m.values
    outputs = [rng.choice(made[-8:]).node for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.05:
        outputs.append(m.inputs[0][0])
    m.graph.output(tuple(outputs))
    m.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return _case(seed, m, outputs)


@functools.lru_cache(maxsize=64)
def _as_they_are(count: int) -> fx.GraphModule:
    """The prologue of so many constants that are the model's own tensors."""
    graph = fx.Graph()
    graph.output(tuple(graph.placeholder(f"c{k}") for k in range(count)))
    return fx.GraphModule({}, graph)


def _case(seed: int, m: Maker, outputs: list[fx.Node]) -> Case:
    module = fx.GraphModule(torch.nn.Module(), m.graph)
    constants = tuple(
        Constant(n.name, f"weight{k}", (f"weight{k}",), k, t.numel() * t.element_size(), t.dtype, tuple(t.shape), True)
        for k, (n, t) in enumerate(m.constants)
    )
    torch_name = str(m.inputs[0][0].meta["val"].shape[0]) if m.symbolic else ""
    names = {torch_name: "s0"} if m.symbolic else {}
    inputs = tuple(
        Input(n.name, n.name, n.meta["val"].dtype, ("s0" if m.symbolic else BATCH, *map(int, n.meta["val"].shape[1:])))
        for n, _ in m.inputs
    )
    capture = Capture(
        graph=module,
        constants=constants,
        inputs=inputs,
        outputs=tuple(Output(node.name, "fresh") for node in outputs),
        symbols=(Symbol("s0", 1, 64, BATCH, (0, 0)),) if m.symbolic else (),
        mutations=(),
        sources=constants,
        prologue=_as_they_are(len(constants)),
        symbol_names=names,
    )
    makers = [make for _, make in m.inputs]
    return Case(
        seed,
        capture,
        tuple(tensor for _, tensor in m.constants),
        lambda batch: tuple(make(batch if m.symbolic else BATCH) for make in makers),
        m.symbolic,
        m.coarsest,
    )


# ---- the oracle ----
class Doubled(fx.Interpreter):
    """Runs a graph in float64; casts to a narrower type round, then widen again."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        value = n.meta.get("val")
        if isinstance(result, Tensor) and isinstance(value, Tensor) and value.dtype in FLOATS:
            return result.to(value.dtype).double() if value.dtype != torch.float32 else result.double()
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is aten._to_copy.default and kwargs.get("dtype") in FLOATS:
            return args[0].double()
        return super().call_function(target, args, kwargs)


def doubled(case: Case, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs in float64."""
    given = [t.double() if t.dtype in FLOATS else t for t in (*case.weights, *inputs)]
    with torch.no_grad():
        return list(Doubled(case.capture.graph).run(*given))


def bound(exact: Tensor, eager: Tensor, unit: float, longest: int) -> float:
    """How far from float64 an output may lie: twice eager's own distance, or a few roundings of a long sum."""
    own = float((eager.double() - exact).abs().nan_to_num().max()) if exact.numel() else 0.0
    most = float(exact.abs().nan_to_num(posinf=0).max()) if exact.numel() else 0.0
    return max(2 * own, 16 * unit * max(most, 1e-3) * longest**0.5)
