"""Calibration data: any way of giving it becomes calls, and calls become the captured graph's inputs.

In: batches, a callable, a file, or a ``Calibration``. Out: ``Samples``: the calls losses are fitted and measured on,
and those held out for ranking plans.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from adaflex.errors import CalibrationError
from adaflex.passes.capture import Capture, Input, broken, symbols_in

log = logging.getLogger("adaflex")

HELD_OUT_FROM = 4  # samples: from here on the last quarter is held out
MERGED_ROWS = 32  # at most this many samples run as one call

Source: TypeAlias = "Calibration | Callable[[], Any] | str | Path | Iterable[Any] | Tensor | Mapping[str, Any]"
Inputs: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """One call: ``model(*args, **kwargs)``; ``given`` is what the user handed over."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    given: Any = None
    bound: bool = False  # ``args`` are the graph's own inputs, in its order


class Calibration:
    """Batches to calibrate on, read once. Compared by identity, so that it can stand in a dict of options.

    Accepts an iterable of calls, a zero-argument callable that returns one, or a file (.npz, .safetensors). A call is a
    tensor or tuple (positional arguments) or a dict (keyword arguments); a lone tensor, tuple or dict is one call. In a
    file, an array named "input_ids" is that argument of the only call, "3.input_ids" of call 3.
    """

    def __init__(self, batches: Any) -> None:
        self._source: Any = batches
        self._batches: tuple[Batch, ...] | None = None
        self.state: Mapping[str, Tensor] = {}  # what every call finds in the buffers that it writes to, by name

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The calls; CalibrationError where there are none or one is no call."""
        if self._batches is None:
            self._batches = _calls(self._source)
            self._source = None
        return self._batches

    def __len__(self) -> int:
        return len(self.batches)


def with_state(data: Calibration, state: Mapping[str, Tensor]) -> Calibration:
    """The same calls, each of which finds ``state`` in the buffers that it writes to."""
    if not state:
        return data
    made = Calibration(list(data.batches))
    made.state = state
    return made


def calibration(source: Any) -> Calibration:
    """The holder of ``source``; a holder is returned as it is."""
    return source if isinstance(source, Calibration) else Calibration(source)


def _calls(source: Any) -> tuple[Batch, ...]:
    if callable(source) and not isinstance(source, Tensor):
        source = source()
    if isinstance(source, str | Path):
        source = _read(Path(source))
    lone = isinstance(source, Tensor | tuple | Mapping)
    if not lone and not isinstance(source, Iterable):
        raise CalibrationError(
            f"calibration is a {type(source).__name__}; give a list of calls, a callable, a file or adaflex.Calibration"
        )
    calls = [source] if lone else list(source)
    if not calls:
        raise CalibrationError("calibration holds no calls; give at least one, better 32 or more")
    return tuple(_call(index, each) for index, each in enumerate(calls))


def _call(index: int, given: Any) -> Batch:
    if isinstance(given, Batch):
        return given
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(given, Tensor):
        args = (given,)
    elif isinstance(given, Mapping):
        kwargs = dict(given)
    elif isinstance(given, tuple | list):
        args = tuple(given)
    else:
        raise CalibrationError(
            f"call {index} of calibration is a {type(given).__name__}; give a tensor, a tuple or a dict of arguments"
        )
    return Batch(args, kwargs, given)


def _read(path: Path) -> list[dict[str, Tensor]]:
    """Calls from a file: names before a dot are call numbers."""
    if path.suffix not in (".npz", ".safetensors"):
        raise CalibrationError(f"calibration file '{path.name}' has no known ending; use .npz or .safetensors")
    try:
        arrays = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except (OSError, ValueError, KeyError) as error:
        raise CalibrationError(f"calibration file '{path}' cannot be read ({error}); write it anew") from error
    calls: dict[int, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        number, dot, argument = name.partition(".")
        numbered = bool(dot) and number.isdigit()
        calls.setdefault(int(number) if numbered else 0, {})[argument if numbered else name] = array
    return [calls[number] for number in sorted(calls)]


def _read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as data:
        return {name: torch.from_numpy(data[name]) for name in data.files}


_SAFE_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
_SAFE_TYPES |= {"I32": torch.int32, "U8": torch.uint8, "I8": torch.int8, "BOOL": torch.bool}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """An eight-byte length, a JSON header, the tensors' bytes."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            part = bytearray(data[8 + size + first : 8 + size + last])
            dtype = _SAFE_TYPES[entry["dtype"]]
            flat = torch.frombuffer(part, dtype=dtype) if part else torch.empty(0, dtype=dtype)
            found[name] = flat.reshape(entry["shape"])
    return found


# --- from calls to the graph's inputs -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Samples:
    """Calls as the captured graph takes them."""

    fit: tuple[Inputs, ...]  # repair and single-choice losses
    held: tuple[Inputs, ...]  # ranking of plans and the verdict; empty below four samples
    batches: tuple[Batch, ...]  # of ``fit`` and then ``held``, where calls are one to one; else ()
    by_rows: bool  # dimension 0 of inputs and outputs counts samples
    mask: int | None  # which input says what is padding (0 there)

    def rows(self, inputs: Inputs) -> int:
        """Samples in a call."""
        return next(len(each) for each in inputs if isinstance(each, Tensor)) if self.by_rows else 1


def samples(capture: Capture, data: Calibration, *, whole: bool = False, parameters: Sequence[str] = ()) -> Samples:
    """Bind every call to the graph's inputs, merge equal shapes, and hold out the last quarter from four samples on.

    ``whole`` keeps the calls as given (a user's loss function sees them); ``parameters`` names the model's positional
    arguments. CalibrationError names what does not fit.
    """
    batches = data.batches
    bound = [_beside(capture, bind(capture, batch, i, parameters), data.state) for i, batch in enumerate(batches)]
    batches, bound = _held_for(capture, batches, bound)
    by_rows = _counts_rows(capture)
    mask = _mask(capture, bound)
    if whole or not by_rows:
        held = len(bound) // 4 if len(bound) >= HELD_OUT_FROM else 0
        fit, kept = bound[: len(bound) - held], bound[len(bound) - held :]
        return Samples(tuple(fit), tuple(kept), batches, by_rows, mask)
    total = sum(len(_first(inputs)) for inputs in bound)
    held = total // 4 if total >= HELD_OUT_FROM else 0
    fit, kept = _split(bound, total - held)
    return Samples(tuple(_merged(fit)), tuple(_merged(kept)), (), True, mask)


def _held_for(
    capture: Capture, batches: tuple[Batch, ...], bound: list[Inputs]
) -> tuple[tuple[Batch, ...], list[Inputs]]:
    """The calls whose sizes the graph holds for; CalibrationError where there is none."""
    kept = [index for index, inputs in enumerate(bound) if broken(capture, inputs) is None]
    if not kept:
        word, left, right = broken(capture, bound[0]) or ("", 0, 0)
        raise CalibrationError(
            f"the model goes another way for the sizes of every calibration call (it asks for {left} {word} {right}); "
            "give an example and calibration of like sizes"
        )
    if len(kept) < len(bound):
        log.warning(
            "%d of %d calibration calls are left out: the model goes another way for their sizes than for the example",
            len(bound) - len(kept),
            len(bound),
        )
    return tuple(batches[index] for index in kept), [bound[index] for index in kept]


def bind(capture: Capture, batch: Batch, index: int = 0, parameters: Sequence[str] = ()) -> Inputs:
    """The graph's inputs for one call, checked against the captured types and sizes."""
    wanted = [each for each in capture.inputs if not each.is_state]
    heads = tuple(dict.fromkeys(str(each.path[0]) for each in wanted if each.path))
    values = _by_name(tuple(parameters) or capture.positional or heads, batch)
    found = []
    for position, each in enumerate(wanted):
        try:
            value = _at(values, each.path) if each.path and not batch.bound else batch.args[position]
        except (KeyError, IndexError, TypeError, AttributeError):
            known = ", ".join(map(str, values)) or "nothing"
            raise CalibrationError(
                f"call {index} of calibration lacks '{each.name}' (it has {known}); add it"
            ) from None
        found.append(_checked(value, each, index))
    return tuple(found)


def _beside(capture: Capture, given: Inputs, state: Mapping[str, Tensor]) -> Inputs:
    """The graph's inputs in its order: what a call gives, and the buffers it writes to."""
    if not state:
        return given
    calls = iter(given)
    return tuple(state[each.name] if each.is_state else next(calls) for each in capture.inputs)


def _by_name(names: Sequence[str], batch: Batch) -> dict[str, Any]:
    """The call's arguments by name; a last name with a star has all that are left."""
    plain = [name for name in names if not name.startswith("*")]
    rest = {name[1:]: batch.args[len(plain) :] for name in names if name.startswith("*")}
    return rest | dict(zip(plain, batch.args, strict=False)) | dict(batch.kwargs)


def _at(values: Mapping[str, Any], path: Sequence[str | int]) -> Any:
    value: Any = values
    for key in path:
        keyed = isinstance(value, Mapping) or isinstance(key, int)
        value = value[key] if keyed else getattr(value, str(key))
    return value


def _checked(value: Any, wanted: Input, index: int) -> Any:
    if wanted.dtype is None:
        return value
    label = f"'{wanted.name}' of call {index} of calibration"
    if not isinstance(value, Tensor):
        raise CalibrationError(f"{label} is a {type(value).__name__}; give a tensor {wanted.dtype}")
    shape = list(value.shape)
    fits = len(shape) == len(wanted.shape) and all(
        not isinstance(size, int) or size == own for size, own in zip(wanted.shape, shape, strict=True)
    )
    if not fits:
        raise CalibrationError(f"{label} has shape {shape}, the model takes {list(wanted.shape)}; reshape it")
    if value.dtype is not wanted.dtype:
        raise CalibrationError(f"{label} is {value.dtype}, the model takes {wanted.dtype}; convert it")
    if value.numel() == 0:
        raise CalibrationError(f"{label} is empty (shape {shape}); leave the call out")
    if value.is_floating_point() and bool((value.isnan() | (value == math.inf)).any()):
        raise CalibrationError(f"{label} holds NaN or Inf; clean the data")  # -inf is what masks hold
    return value.detach()


def _counts_rows(capture: Capture) -> bool:
    """Whether one symbol is dimension 0 of every tensor input and every computed output, and of no consequence else."""
    first = {each.shape[0] if each.shape else None for each in capture.inputs if each.dtype is not None}
    first |= {each.shape[0] if each.shape else None for each in capture.outputs if each.kind == "fresh"}
    asked = {name for _, *sides in capture.guards for side in sides for name in symbols_in(side)}
    return len(first) == 1 and isinstance(next(iter(first)), str) and not capture.mutations and not first & asked


def _mask(capture: Capture, calls: Sequence[Inputs]) -> int | None:
    """The input that marks padding with 0: an attention mask over tokens, of zeros and mostly ones.

    Masks of other names mark what to leave out as often as what to keep: with them every position counts.
    """
    for index, each in enumerate(capture.inputs):
        if each.name.lower().endswith("attention_mask") and len(each.shape) == 2 and each.dtype is not None:
            given = [call[index] for call in calls]
            kept = sum(int((mask == 1).sum()) for mask in given)
            if all(bool(((mask == 0) | (mask == 1)).all()) for mask in given):
                return index if 2 * kept >= sum(mask.numel() for mask in given) else None
    return None


def _first(inputs: Inputs) -> Tensor:
    return next(each for each in inputs if isinstance(each, Tensor))


def _rows(inputs: Inputs, first: int, last: int) -> Inputs:
    return tuple(each[first:last] if isinstance(each, Tensor) else each for each in inputs)


def _split(bound: Sequence[Inputs], count: int) -> tuple[list[Inputs], list[Inputs]]:
    """The first ``count`` rows, and the rest."""
    before: list[Inputs] = []
    after: list[Inputs] = []
    for inputs in bound:
        size, room = len(_first(inputs)), max(0, count)
        if room:
            before.append(_rows(inputs, 0, room))
        if size > room:
            after.append(_rows(inputs, room, size))
        count -= size
    return before, after


def _merged(calls: Sequence[Inputs]) -> list[Inputs]:
    """Calls of equal shapes put together, and long ones cut, to at most ``MERGED_ROWS`` rows."""
    groups: dict[Any, list[Inputs]] = {}
    for inputs in calls:
        key = tuple(tuple(each.shape[1:]) if isinstance(each, Tensor) else each for each in inputs)
        groups.setdefault(key, []).append(inputs)
    made = []
    for group in groups.values():
        columns = zip(*group, strict=True)
        joined = tuple(torch.cat(each) if isinstance(each[0], Tensor) else each[0] for each in columns)
        size = len(_first(joined))
        pieces = math.ceil(size / MERGED_ROWS)
        edges = [size * piece // pieces for piece in range(pieces + 1)]
        made += [_rows(joined, edges[piece], edges[piece + 1]) for piece in range(pieces)]
    return made
