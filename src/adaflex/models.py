"""Models as the command line names them: ``module:callable`` or ``file.py:callable``.

In: that text. Out: the model, its example inputs and calibration data, as the callable returned them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from adaflex.errors import AdaflexError, OptionError


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a callable returned: ``(model, inputs)`` or ``(model, inputs, calibration)``."""

    model: nn.Module
    inputs: Any
    calibration: Any = None


def load_model(name: str) -> Loaded:
    """Import the module (from the working directory too), call the callable without arguments, check what it gives.

    ``OptionError`` says what is missing; an error inside the callable is named with its type.
    """
    module_name, colon, attribute = name.rpartition(":")
    if not colon or not module_name or not attribute:
        raise OptionError(f"model '{name}' must be written MODULE:CALLABLE, for example models.py:encoder")
    module = _module(module_name, name)
    made = getattr(module, attribute, None)
    if not callable(made):
        near = [each for each in vars(module) if callable(getattr(module, each)) and not each.startswith("_")]
        raise OptionError(f"'{module_name}' has no callable '{attribute}'; it has {', '.join(near[:8]) or 'none'}")
    try:
        value = made()
    except AdaflexError:
        raise
    except Exception as fault:
        raise OptionError(f"model '{name}' could not be made: {type(fault).__name__}: {fault}") from fault
    if not isinstance(value, tuple) or len(value) not in (2, 3) or not isinstance(value[0], nn.Module):
        raise OptionError(
            f"'{name}' must return (model, inputs) or (model, inputs, calibration); it returned {_kind(value)}"
        )
    return Loaded(*value)


def _module(module_name: str, name: str) -> Any:
    if module_name.endswith(".py"):
        path = Path(module_name).resolve()
        if not path.is_file():
            raise OptionError(f"model '{name}' names the file '{module_name}', which does not exist")
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        return _from_file(path, name)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return _imported(module_name, name)


def _imported(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as fault:
        raise OptionError(f"model '{name}' could not be imported: {type(fault).__name__}: {fault}") from fault


def _from_file(path: Path, name: str) -> Any:
    """A module from exactly this file, whatever else has its name."""
    spec = importlib.util.spec_from_file_location(f"adaflex_model_{abs(hash(path))}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as fault:
        raise OptionError(f"model '{name}' could not be imported: {type(fault).__name__}: {fault}") from fault
    return module


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    return f"a {type(value).__name__}"
