"""Calls ATen ops for library steps: arguments become tensors over slots, numbers, dtypes.

In: a ``LibraryStep``. Out: a callable that runs it; only functional ATen ops by name, nothing else can be reached.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adaflex.errors import AdaflexError, ArtifactError
from adaflex.runtime.program import Argument, LibraryStep, Program, Slot
from adaflex.runtime.region import evaluate

DTYPES: Mapping[str, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f64": torch.float64,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
    "c64": torch.complex64,
    "c128": torch.complex128,
}
NAMED = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
REFUSED = ("from_file",)  # functional by its schema, and yet it opens, even creates, the file it is told to


def resolve(op: str) -> Any:
    """The overload named "aten.<name>.<overload>"; ArtifactError for another namespace or an op that writes inputs."""
    parts = op.split(".")
    if len(parts) != 3 or parts[0] != "aten" or not all(part.isidentifier() for part in parts[1:]):
        raise ArtifactError(f"library step '{op}' is not an ATen op; only aten.<name>.<overload> can be run")
    packet = getattr(torch.ops.aten, parts[1], None)
    overload = getattr(packet, parts[2], None) if packet is not None else None
    if not isinstance(overload, torch._ops.OpOverload):
        raise ArtifactError(f"this torch has no op '{op}'; use the torch version the program was made with")
    if overload._schema.is_mutable:
        raise ArtifactError(f"library step '{op}' writes to its inputs; only functional ops can be run")
    if parts[1] in REFUSED or not _returns_tensors(overload):
        raise ArtifactError(f"library step '{op}' is no computation on tensors; only those can be run")
    return overload


def _returns_tensors(overload: Any) -> bool:
    kinds = [str(value.type) for value in overload._schema.returns]
    return bool(kinds) and all(kind in ("Tensor", "Tensor[]", "List[Tensor]") for kind in kinds)


def prepare(step: LibraryStep) -> LibraryCall:
    """The step, ready to call."""
    return LibraryCall(step)


def _other(step: LibraryStep, got: str, wanted: str) -> ArtifactError:
    return ArtifactError(
        f"library step '{step.op}' returned {got} where the program says {wanted}; "
        "use the torch version the program was made with"
    )


class LibraryCall:
    """One library step."""

    def __init__(self, step: LibraryStep) -> None:
        self.step = step
        self.op = resolve(step.op)
        self.may_alias = _may_alias(self.op)

    def __call__(
        self,
        program: Program,
        values: Mapping[str, int],
        arena: Tensor,
        weights: Tensor,
        addresses: Sequence[int],
        tensors: Mapping[int, Tensor],
    ) -> list[tuple[int, Tensor]]:
        """Run the op; the slots it fills with their tensors."""
        reader = Reader(program, values, arena, weights, addresses, tensors)
        args = [reader.value(argument) for argument in self.step.args]
        kwargs = {name: reader.value(argument) for name, argument in self.step.kwargs}
        try:
            with torch.no_grad():
                result = self.op(*args, **kwargs)
        except (RuntimeError, LookupError, TypeError, ValueError) as problem:
            reason = str(problem).partition("\n")[0]
            raise AdaflexError(f"torch refused library step '{self.step.op}': {reason}; check the inputs") from problem
        given = result if isinstance(result, tuple | list) else (result,)
        if len(given) < len(self.step.outputs):
            raise _other(self.step, f"{len(given)} tensors", f"{len(self.step.outputs)}")
        taken = _memory([*args, *kwargs.values()]) if self.may_alias else set()
        return [
            (slot, _own(self._made(program.slots[slot], value, values), taken))
            for slot, value in zip(self.step.outputs, given, strict=False)
            if slot >= 0
        ]

    def _made(self, slot: Slot, value: Tensor, values: Mapping[str, int]) -> Tensor:
        """A returned tensor, checked to be what the slot says, which later steps rely on."""
        shape, dtype = tuple(evaluate(size, values) for size in slot.shape), DTYPES[slot.form]
        if tuple(value.shape) != shape or value.dtype != dtype or value.layout != torch.strided:
            raise _other(self.step, f"{value.dtype} {tuple(value.shape)}", f"{dtype} {shape}")
        return value


def _may_alias(op: Any) -> bool:
    """Can the op give back its argument, or a view of it? Ops made of others do not say it in their schema."""
    declared = any(value.alias_info is not None for value in op._schema.returns)
    return declared or bool(op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _memory(arguments: Sequence[Any]) -> set[int]:
    """Where the tensors among the arguments have their memory."""
    found: set[int] = set()
    for given in arguments:
        if isinstance(given, Tensor):
            found.add(given.untyped_storage().data_ptr())
        elif isinstance(given, list):
            found |= _memory(given)
    return found


def plain(value: Tensor) -> Tensor:
    """The values row by row in memory, with nothing put off: a gap, a conjugate, a minus sign."""
    if value.is_contiguous() and not value.is_conj() and not value.is_neg():
        return value
    return value.resolve_conj().resolve_neg().contiguous()


def _own(value: Tensor, taken: Collection[int]) -> Tensor:
    """The result, contiguous and in memory of its own: that of an argument is soon another tensor's."""
    dense = plain(value)
    return dense.clone() if dense.untyped_storage().data_ptr() in taken else dense


class Reader:
    """Turns arguments into Python values for one call."""

    def __init__(
        self,
        program: Program,
        values: Mapping[str, int],
        arena: Tensor,
        weights: Tensor,
        addresses: Sequence[int],
        tensors: Mapping[int, Tensor],
    ) -> None:
        self.program, self.values = program, values
        self.arena, self.weights, self.addresses, self.tensors = arena, weights, addresses, tensors

    def value(self, argument: Argument) -> Any:
        """What the op gets."""
        kind = argument.kind
        if kind == "slot":
            return self._tensor(argument)
        if kind in ("int", "size"):
            return evaluate(argument.size, self.values)
        if kind == "float":
            return float(argument.text)
        if kind == "complex":
            return complex(argument.text)
        if kind == "bool":
            return bool(argument.number)
        if kind == "str":
            return argument.text
        if kind == "none":
            return None
        if kind == "list":
            return [self.value(item) for item in argument.items]
        if kind == "device":
            return torch.device(argument.text)
        if kind in NAMED:
            found = getattr(torch, argument.text, None)
            if isinstance(found, NAMED[kind]):
                return found
        raise ArtifactError(f"a library step has an argument of kind '{kind}' with '{argument.text}', which is unknown")

    def _tensor(self, argument: Argument) -> Tensor:
        whole = self._whole(argument.slot)
        if argument.view is None:
            return whole
        shape = tuple(evaluate(size, self.values) for size in argument.shape)
        strides = tuple(evaluate(stride, self.values) for stride in argument.view.strides)
        offset = evaluate(argument.view.offset, self.values)
        return torch.as_strided(whole, shape, strides, whole.storage_offset() + offset)

    def _whole(self, number: int) -> Tensor:
        if number in self.tensors:
            return self.tensors[number]
        slot = self.program.slots[number]
        shape = tuple(evaluate(size, self.values) for size in slot.shape)
        home = self.weights if slot.kind == "constant" else self.arena
        count = 1
        for size in shape:
            count *= size
        dtype = DTYPES[slot.form]
        start = self.addresses[number] - home.data_ptr()
        piece = home[start : start + count * dtype.itemsize]
        return piece.view(dtype).view(shape)
