"""What a call's inputs say of a program's sizes, and whether they are inputs that it takes.

In: a ``Program`` and the inputs of one call. Out: the value of every symbol, or ``OptionError`` naming the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from adaflex.errors import OptionError
from adaflex.runtime.library import DTYPES
from adaflex.runtime.program import Program
from adaflex.runtime.region import evaluate


def sizes_of(program: Program, inputs: Sequence[Any]) -> dict[str, int]:
    """The value of every symbol in this call; 0 where no input gives it. ``OptionError`` where one cannot."""
    for place, (slot, given) in enumerate(zip(program.inputs, inputs, strict=True)):
        name = program.input_names[place]
        if slot < 0:
            if isinstance(given, bool) or not isinstance(given, int):
                raise OptionError(f"input '{name}' is a {type(given).__name__}; this program takes a whole number")
        elif not isinstance(given, Tensor):
            raise OptionError(f"input '{name}' is a {type(given).__name__}; this program takes a tensor")
        elif given.dim() != (axes := len(program.slots[slot].shape)):
            raise OptionError(f"input '{name}' has shape {tuple(given.shape)}; this program takes {axes} axes")
    values = dict.fromkeys(program.symbols, 0)
    for symbol, (index, axis) in zip(program.symbols, program.sources, strict=True):
        if index >= 0:
            values[symbol] = int(inputs[index]) if axis < 0 else inputs[index].shape[axis]
    return values


def check_inputs(program: Program, values: Mapping[str, int], inputs: Sequence[Any]) -> None:
    """``OptionError`` for an input of another shape or dtype."""
    for place, (slot, given) in enumerate(zip(program.inputs, inputs, strict=True)):
        if slot < 0:
            continue
        name = program.input_names[place]
        wanted = tuple(evaluate(size, values) for size in program.slots[slot].shape)
        if tuple(given.shape) != wanted:
            raise OptionError(f"input '{name}' has shape {tuple(given.shape)}; this program takes {wanted}")
        dtype = DTYPES[program.slots[slot].form]
        if given.dtype != dtype:
            raise OptionError(f"input '{name}' is {given.dtype}; this program takes {dtype}")
