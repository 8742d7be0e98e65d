"""How a call's arguments become a program's inputs, and its outputs become what the model returned.

In: argument paths and the shape of the output structure, as plain data. Out: ``Signature``: bind, restore, JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaflex.errors import ArtifactError, OptionError

Path = tuple[str | int, ...]
DEEPEST = 32  # levels of nesting in an output


@dataclass(frozen=True)
class Signature:
    """``paths``: for each input, the argument's name, then keys and indices; () where only its position is known.

    ``outputs`` nests {"tuple": [...]}, {"list": [...]}, {"dict": {...}}, {"leaf": n}, {"value": x}; ``skip`` outputs
    before the first leaf are new values of the program's own state.
    """

    paths: tuple[Path, ...]
    outputs: Mapping[str, Any]
    skip: int = 0

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the arguments, in order."""
        return tuple(dict.fromkeys(str(path[0]) for path in self.paths if path))

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The inputs of one call. ``OptionError`` names an argument that is missing or unknown."""
        names = self.parameters
        if len(args) > max(len(names), len(self.paths)):
            raise OptionError(f"{len(args)} positional arguments were given; this program takes {', '.join(names)}")
        values = dict(zip(names, args, strict=False)) | dict(kwargs)
        unknown = [name for name in kwargs if name not in names]
        if unknown:
            raise OptionError(f"argument '{unknown[0]}' is not one this program takes: {', '.join(names)}")
        return [_at(values, path) if path else args[place] for place, path in enumerate(self.paths)]

    def restore(self, outputs: Sequence[Any]) -> Any:
        """The outputs nested as the model returned them."""
        return _restore(self.outputs, outputs[self.skip :], 0)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"paths": [list(path) for path in self.paths], "outputs": self.outputs, "skip": self.skip}

    @staticmethod
    def from_json(data: Any) -> Signature:
        """Read and check; ``ArtifactError`` where it is not what ``to_json`` writes."""
        try:
            paths = tuple(tuple(path) for path in data["paths"])
            good = all(isinstance(part, str | int) for path in paths for part in path) and isinstance(data["skip"], int)
            if not good or set(data) != {"paths", "outputs", "skip"}:
                raise ValueError("fields")
            _check(data["outputs"], 0)
            return Signature(paths, data["outputs"], data["skip"])
        except (KeyError, TypeError, ValueError) as fault:
            raise ArtifactError(f"the artifact's signature is damaged ({fault}); write the artifact again") from fault


def structure(value: Any) -> dict[str, Any]:
    """The nesting of a returned value whose leaves are their own numbers."""
    if isinstance(value, Mapping):
        return {"dict": {str(key): structure(item) for key, item in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [structure(item) for item in value]}
    if isinstance(value, list):
        return {"list": [structure(item) for item in value]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"dict": {f.name: structure(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, int) and not isinstance(value, bool):
        return {"leaf": value}
    if value is None or isinstance(value, str | float | bool):
        return {"value": value}
    raise OptionError(f"an output of type {type(value).__name__} cannot be described; return tensors, tuples or dicts")


def _restore(spec: Mapping[str, Any], outputs: Sequence[Any], depth: int) -> Any:
    ((kind, inside),) = spec.items()
    if kind == "leaf":
        return outputs[inside]
    if kind == "value":
        return inside
    if kind == "dict":
        return {key: _restore(item, outputs, depth + 1) for key, item in inside.items()}
    items = [_restore(item, outputs, depth + 1) for item in inside]
    return tuple(items) if kind == "tuple" else items


def _check(spec: Any, depth: int) -> None:
    if depth > DEEPEST or not isinstance(spec, dict) or len(spec) != 1:
        raise ValueError("outputs")
    ((kind, inside),) = spec.items()
    if kind in ("tuple", "list") and isinstance(inside, list):
        for item in inside:
            _check(item, depth + 1)
    elif kind == "dict" and isinstance(inside, dict):
        for item in inside.values():
            _check(item, depth + 1)
    elif not (kind == "leaf" and isinstance(inside, int)) and kind != "value":
        raise ValueError("outputs")


def _at(values: Mapping[str, Any], path: Path) -> Any:
    found: Any = values
    for step, part in enumerate(path):
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            name = ".".join(map(str, path[: step + 1]))
            raise OptionError(f"argument '{name}' is missing; this program needs it") from None
    return found
