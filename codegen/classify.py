"""What each node of a captured graph is for lowering: a view, region work, a template, or a library op.

In: nodes with fake tensors. Out: a word per node; the conditions under which our own kernels serve an op.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from adaflex.codegen.scalar_ops import BOOL_ONLY, POINTWISE
from adaflex.passes.windows import WINDOWS

FORMS: Mapping[torch.dtype, str] = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float64: "f64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
DTYPES: Mapping[str, torch.dtype] = {form: dtype for dtype, form in FORMS.items()}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LOADABLE = (*FLOATS, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)
VIEWS = (
    "view reshape _unsafe_view transpose t permute unsqueeze squeeze expand select slice alias detach unflatten "
    "flatten lift_fresh_copy"
).split()
SPLITS = ("split", "split_with_sizes", "chunk", "unbind")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
ROW_NORMS = ("softmax", "layer_norm", "rms_norm", "linalg_vector_norm")
SUMS = ("sum", "mean", "amax", "amin")


@dataclass(frozen=True)
class Linear:
    """A dense linear whose weight is a constant: ``weight`` is its placeholder, transposed where it is [in, out]."""

    x: fx.Node
    weight: fx.Node
    transposed: bool
    bias: fx.Node | None


def op_name(node: fx.Node) -> str:
    """ "linear" for aten.linear.default; "" for what is no ATen op."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target.overloadpacket.__name__)
    return ""


def tensor(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor of a node that is one."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def is_size(node: fx.Node) -> bool:
    """Is the node a (symbolic) number rather than a tensor?"""
    return isinstance(node.meta.get("val"), int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool)


def linear_of(node: fx.Node) -> Linear | None:
    """The parts of a linear that a kernel can serve: fp32 activations, a two-dimensional constant weight."""
    if op_name(node) != "linear":
        return None
    x, weight = node.args[0], node.args[1]
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    transposed = op_name(weight) == "t"
    source = weight.args[0] if transposed else weight
    value, out = tensor(x), tensor(node)
    if not (isinstance(source, fx.Node) and source.op == "placeholder" and "constant" in source.meta):
        return None
    if not source.meta.get("decided", True):  # no kernel serves all its uses: torch multiplies by it as it is
        return None
    if value is None or out is None or value.dtype != torch.float32 or value.dim() < 1:
        return None
    weight_value = tensor(source)
    if weight_value is None or weight_value.dim() != 2 or weight_value.dtype not in FLOATS:
        return None
    if bias is not None and not (isinstance(bias, fx.Node) and tensor(bias) is not None):
        return None
    return Linear(x, source, transposed, bias)


def kind_of(node: fx.Node) -> str:
    """input, constant, size, view, split, point, reduce, fold, embedding, linear, attention, window, library, output"""
    if node.op == "placeholder":
        return "constant" if "constant" in node.meta else "input"
    if node.op != "call_function":
        return "output" if node.op == "output" else "library"
    if is_size(node):
        return "size"
    if node.target is WINDOWS:
        return "window"
    name = op_name(node)
    if not name:
        return "split" if _is_split_item(node) else "library"
    if name in VIEWS:
        return "view" if tensor(node) is not None else "library"
    if name in SPLITS:
        return "split"
    out = tensor(node)
    if out is None or out.dim() == 0 or any(known_zero(size) for size in out.shape):
        return "library"
    return _compute_kind(node, name, out)


def known_zero(size: Any) -> bool:
    """Is a size the number 0? (Kernels never see empty tensors known to be empty.)"""
    return isinstance(size, int) and size == 0


def _is_split_item(node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    return (
        getattr(node.target, "__name__", "") == "getitem" and isinstance(source, fx.Node) and op_name(source) in SPLITS
    )


def _compute_kind(node: fx.Node, name: str, out: torch.Tensor) -> str:
    if name == "linear":
        return "linear" if linear_of(node) is not None else "library"
    if name == "embedding":
        return "embedding" if _serves_embedding(node) else "library"
    if name == "scaled_dot_product_attention":
        return "attention" if _serves_attention(node) else "library"
    if name in ROW_NORMS:
        return "reduce" if _serves_norm(node, name) else "library"
    if name in SUMS:
        return _sum_kind(node)
    if name in POINTWISE and _serves_pointwise(node, name, out):
        return "point"
    return "library"


def _argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _serves_embedding(node: fx.Node) -> bool:
    weight, index = node.args[0], node.args[1]
    assert isinstance(weight, fx.Node) and isinstance(index, fx.Node)
    table, rows = tensor(weight), tensor(index)
    return (
        weight.op == "placeholder"
        and "constant" in weight.meta
        and table is not None
        and table.dtype in FLOATS
        and rows is not None
        and rows.dtype in (torch.int64, torch.int32)
        and rows.dim() >= 1
    )


def _serves_attention(node: fx.Node) -> bool:
    tensors = [tensor(a) if isinstance(a, fx.Node) else None for a in node.args[:3]]
    if any(t is None or t.dim() != 4 or t.dtype != torch.float32 for t in tensors):
        return False
    mask = _argument(node, 3, "attn_mask")
    if mask is not None:
        value = tensor(mask)
        if value is None or value.dim() > 4 or value.dtype not in (torch.float32, torch.bool):
            return False
    width_q, width_v = (t.shape[-1] for t in (tensors[0], tensors[2]) if t is not None)
    return isinstance(width_q, int) and width_q == width_v and not _argument(node, 4, "dropout_p", 0.0)


def _serves_norm(node: fx.Node, name: str) -> bool:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    value = tensor(x)
    out = tensor(node)
    if value is None or out is None or value.dtype not in FLOATS or out.dtype != value.dtype or value.dim() < 1:
        return False
    if name == "softmax":
        return node.args[1] in (-1, value.dim() - 1)
    if name == "linalg_vector_norm":
        order, axes = _argument(node, 1, "ord", 2), _argument(node, 2, "dim")
        return order in (1, 2) and list(axes or []) in ([-1], [value.dim() - 1]) and bool(_argument(node, 3, "keepdim"))
    shape = node.args[1]
    return isinstance(shape, list | tuple) and len(shape) == 1


def _sum_kind(node: fx.Node) -> str:
    x, axes = node.args[0], _argument(node, 1, "dim")
    value = tensor(x) if isinstance(x, fx.Node) else None
    if (
        value is None
        or value.dtype not in FLOATS
        or axes is None
        or node.kwargs.get("dtype") not in (None, value.dtype)
    ):
        return "library"
    axes = [axes] if isinstance(axes, int) else list(axes)
    if len(axes) != 1 or value.dim() < 2:
        return "library"
    return "reduce" if axes[0] % value.dim() == value.dim() - 1 else "fold"


def _serves_pointwise(node: fx.Node, name: str, out: torch.Tensor) -> bool:
    if out.dtype not in (*FLOATS, torch.bool) or set(node.kwargs) & {"rounding_mode", "decimals", "out"}:
        return False
    inputs = [tensor(a) for a in node.all_input_nodes]
    if any(t is None or t.dtype not in LOADABLE for t in inputs):
        return False
    if any(isinstance(a, list | tuple | str | complex) for a in node.args):
        return False
    dtypes = {t.dtype for t in inputs if t is not None}
    if name in BOOL_ONLY:
        return dtypes == {torch.bool}
    if name in COMPARISONS:
        return bool(dtypes & set(FLOATS)) or dtypes == {torch.bool}
    if name in ("logical_not", "logical_and", "logical_or"):
        return True
    return out.dtype != torch.bool or name in ("_to_copy", "clone", "where", "masked_fill")
