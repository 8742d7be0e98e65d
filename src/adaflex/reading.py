"""Calls and tensors from files, and outputs to files: .npz, .safetensors and .json.

In: a path. Out: calls (dicts of tensors by argument name), or a file of named tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaflex.errors import CalibrationError, OptionError
from adaflex.passes.calibration import Calibration
from adaflex.runtime.library import DTYPES
from adaflex.runtime.program import Program
from adaflex.runtime.signature import Signature

FORMATS = (".npz", ".safetensors", ".json")


def read_calls(path: str | Path, dtypes: Mapping[str, torch.dtype] | None = None) -> list[dict[str, Any]]:
    """The calls in a file. In JSON, one object is one call and a list several; numbers become tensors of ``dtypes``
    by argument name (int64 or float32 where that is not known). ``OptionError`` names what cannot be read.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise OptionError(f"'{path}' has no known ending; give calls as {', '.join(FORMATS)}")
    if path.suffix == ".json":
        return [_typed(call, dtypes or {}, path) for call in _json(path)]
    try:
        return [dict(batch.kwargs) for batch in Calibration(path).batches]
    except CalibrationError as fault:
        raise OptionError(str(fault).removeprefix("calibration ")) from fault
    except Exception as fault:  # a damaged archive can fail anywhere in its reader
        raise OptionError(f"'{path}' cannot be read ({type(fault).__name__}: {fault}); write it anew") from fault


def _json(path: Path) -> list[dict[str, Any]]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as fault:
        raise OptionError(
            f"'{path}' cannot be read as JSON ({fault}); write one object of arguments per call"
        ) from fault
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise OptionError(f"'{path}' holds no calls; write an object of arguments, or a list of such objects")
    return calls


def _typed(call: Mapping[str, Any], dtypes: Mapping[str, torch.dtype], path: Path) -> dict[str, Any]:
    found = {}
    for name, value in call.items():
        try:
            made = torch.tensor(value)
            wanted = dtypes.get(name)
            found[name] = made if wanted is None else made.to(wanted)
        except (ValueError, TypeError, RuntimeError) as fault:
            raise OptionError(f"'{name}' in '{path}' is no tensor ({fault}); write numbers in nested lists") from fault
    return found


def dtypes_of(program: Program, signature: Signature) -> dict[str, torch.dtype]:
    """The dtype of every argument that is one tensor, by name."""
    return {
        str(path[0]): DTYPES[program.slots[slot].form]
        for path, slot in zip(signature.paths, program.inputs, strict=False)
        if len(path) == 1 and slot >= 0
    }


def named(value: Any, name: str = "output") -> dict[str, Tensor]:
    """The tensors in a program's output by path: "output", "output.0", "last_hidden_state"."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        items: Sequence[tuple[str, Any]] = [(str(key), each) for key, each in value.items()]
        top = name == "output"
        return {k: t for key, each in items for k, t in named(each, key if top else f"{name}.{key}").items()}
    if isinstance(value, tuple | list):
        return {k: t for n, each in enumerate(value) for k, t in named(each, f"{name}.{n}").items()}
    return {}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One file of named tensors, in the format of its ending. bf16 becomes float32 where the format lacks it."""
    if path.suffix not in FORMATS:
        raise OptionError(f"--output {path} has no known ending; use one of {', '.join(FORMATS)}")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({name: each.contiguous().clone() for name, each in tensors.items()}, partial)
        elif path.suffix == ".npz":
            import numpy as np

            arrays: dict[str, Any] = {name: _plain(each).numpy() for name, each in tensors.items()}
            np.savez(partial, **arrays)
        else:
            partial.write_text(json.dumps({name: _values(each) for name, each in tensors.items()}))
        partial.replace(path)
    except OSError as fault:
        raise OptionError(f"--output {path} cannot be written ({fault}); name a writable path") from fault


def _plain(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


def _values(tensor: Tensor) -> Any:
    """Nested lists; what JSON has no number for becomes null."""
    values = _plain(tensor).tolist()
    return values if not tensor.is_floating_point() or bool(tensor.isfinite().all()) else _finite(values)


def _finite(values: Any) -> Any:
    if isinstance(values, list):
        return [_finite(each) for each in values]
    return values if math.isfinite(values) else None
