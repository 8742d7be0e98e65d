"""Lowers what no kernel of ours covers to library steps: one ATen op each, through torch.

In: a node of the graph and the lowering in progress. Out: a ``LibraryStep``; what it returns becomes a value slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from adaflex.codegen.classify import FORMS, op_name, tensor
from adaflex.codegen.draft import Read
from adaflex.codegen.views import View, is_contiguous
from adaflex.errors import CaptureError
from adaflex.passes.capture import size_of
from adaflex.runtime.program import ITEM_BYTES, Argument, LibraryStep, Operand, Slot
from adaflex.runtime.region import product, times

if TYPE_CHECKING:
    from adaflex.codegen.lower import Lowering


def lower(lowering: Lowering, node: fx.Node) -> None:
    """Append the library step of ``node``."""
    name = op_name(node)
    if not name:
        if getattr(node.target, "__name__", "") == "getitem":
            return  # an output of the step before it: see _outputs
        raise CaptureError(f"operator '{node.target}' is neither ATen nor known here; rewrite the model without it")
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    args = tuple(argument(lowering, a) for a in node.args)
    kwargs = tuple((key, argument(lowering, value)) for key, value in node.kwargs.items())
    outputs = _outputs(lowering, node)
    reads = tuple(Read(slot, False, False) for slot in _slots(args) + _slots(tuple(a for _, a in kwargs)))
    text = f"aten.{name}.{target._overloadname}"
    lowering.add(LibraryStep(text, args, kwargs, outputs, node.name), None, reads)


def _outputs(lowering: Lowering, node: fx.Node) -> tuple[int, ...]:
    value = node.meta["val"]
    if isinstance(value, torch.Tensor):
        return (value_slot(lowering, node),)
    places = {user.args[1]: user for user in node.users if getattr(user.target, "__name__", "") == "getitem"}
    return tuple(value_slot(lowering, places[k]) if k in places else -1 for k in range(len(value)))


def value_slot(lowering: Lowering, node: fx.Node) -> int:
    """A slot for a tensor that torch owns."""
    value = tensor(node)
    assert value is not None
    shape = lowering.capture.sizes(node)
    form = FORMS.get(value.dtype)
    if form is None:
        raise CaptureError(f"dtype {value.dtype} of '{node.name}' is not supported; cast it in the model")
    rows, columns = (product(shape[:-1]), shape[-1]) if shape else (1, 1)
    slot = lowering._slot(
        Slot("value", form, rows, columns, times(columns, ITEM_BYTES[form]), shape, scalar=value.dim() == 0)
    )
    lowering.stored[(node, "plain")] = slot
    return slot


def argument(lowering: Lowering, given: Any) -> Argument:
    """An op's argument as data."""
    if isinstance(given, fx.Node):
        if tensor(given) is None:
            return Argument("size", size=size_of(given.meta["val"], lowering.capture.symbol_names))
        return view_argument(lowering, lowering.views.of(given))
    if given is None:
        return Argument("none")
    if isinstance(given, bool):
        return Argument("bool", number=float(given))
    if isinstance(given, int):
        return Argument("int", size=given)
    if isinstance(given, torch.SymInt):
        return Argument("size", size=size_of(given, lowering.capture.symbol_names))
    if isinstance(given, float):
        return Argument("float", text=repr(given))
    if isinstance(given, complex):
        return Argument("complex", text=repr(given))
    if isinstance(given, str):
        return Argument("str", text=given)
    if isinstance(given, list | tuple):
        return Argument("list", items=tuple(argument(lowering, item) for item in given))
    for kind, known in (("dtype", torch.dtype), ("layout", torch.layout), ("memory_format", torch.memory_format)):
        if isinstance(given, known):
            return Argument(kind, text=str(given).removeprefix("torch."))
    if isinstance(given, torch.device):
        return Argument("device", text=str(given))
    raise CaptureError(f"an operator argument of type {type(given).__name__} is not supported; rewrite the model")


def view_argument(lowering: Lowering, view: View) -> Argument:
    """A view of a slot as an argument; without strides where it is the whole slot."""
    slot = lowering.plain(view.node)
    entry = lowering.slots[slot]
    plain = view.offset == 0 and is_contiguous(view) and len(entry.shape) == len(view.shape)
    if plain and entry.shape == view.shape and lowering.unit_kind(view.node) != "attention":
        return Argument("slot", slot=slot)
    return Argument("slot", slot=slot, view=Operand(slot, view.strides, view.offset), shape=view.shape)


def _slots(args: tuple[Argument, ...]) -> list[int]:
    found: list[int] = []
    for entry in args:
        found += [entry.slot] if entry.kind == "slot" else _slots(entry.items)
    return found


def clone(lowering: Lowering, view: View) -> tuple[LibraryStep, int]:
    """A step that copies a view into a fresh contiguous tensor, and its slot."""
    value = tensor(view.node)
    assert value is not None
    form = FORMS[value.dtype]
    rows, columns = (product(view.shape[:-1]), view.shape[-1]) if view.shape else (1, 1)
    scalar = not view.shape
    slot = lowering._slot(
        Slot("value", form, rows, columns, times(columns, ITEM_BYTES[form]), view.shape, scalar=scalar)
    )
    source = view_argument(lowering, view)
    form_argument = Argument("memory_format", text="contiguous_format")
    return LibraryStep("aten.clone.default", (source,), (("memory_format", form_argument),), (slot,)), slot


def lower_copy(lowering: Lowering, node: fx.Node, view: View) -> None:
    """A view op on a dtype that regions do not store: cloned by torch."""
    step, slot = clone(lowering, view)
    lowering.stored[(node, "plain")] = slot
    lowering.add(step, None, (Read(lowering.plain(view.node), False, False),))
