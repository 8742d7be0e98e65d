"""What a call's inputs say of a program's sizes, and whether they are inputs that it takes.

In: a ``Program`` and the inputs of one call. Out: the value of every symbol, or ``OptionError`` naming the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adaflex.errors import OptionError
from adaflex.runtime.library import DTYPES
from adaflex.runtime.program import Program
from adaflex.runtime.region import RELATIONS, Size, evaluate


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


def check_inputs(program: Program, values: Mapping[str, int], inputs: Sequence[Any], device: torch.device) -> None:
    """``OptionError`` for an input of another shape, dtype or layout, or on another device."""
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
        if given.device.type != device.type:
            raise OptionError(f"input '{name}' is on '{given.device}'; move it to '{device}', where this runs")
        if given.layout is not torch.strided:
            raise OptionError(f"input '{name}' is {given.layout}; this program takes dense tensors: call .to_dense()")


def check_guards(program: Program, values: Mapping[str, int]) -> None:
    """``OptionError`` for sizes at which the model goes another way than the one that was captured."""
    for word, left, right in program.guards:
        try:
            here = evaluate(left, values), evaluate(right, values)
        except ZeroDivisionError:
            here = 0, 0
        if not RELATIONS[word](*here):
            raise OptionError(
                f"this program holds for {_named(program, left):.120} {word} {_named(program, right):.120}; this call "
                f"has {here[0]} and {here[1]}, where the model goes another way: compile it with an example of such "
                "sizes"
            )


def _named(program: Program, size: Size) -> str:
    """A size in the words of the call: "x.shape[1]"."""
    if isinstance(size, int):
        return str(size)
    if isinstance(size, str):
        index, axis = program.sources[program.symbols.index(size)]
        return program.input_names[index] + (f".shape[{axis}]" if axis >= 0 else "")
    operator = f" {size[0]} " if not size[0].isalpha() else f" {size[0]} of "
    return f"({operator.join(_named(program, part) for part in size[1:])})"
