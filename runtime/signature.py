"""How a call's arguments become a program's inputs, and its outputs become what the model returned.

In: argument paths and the shape of the output structure, as plain data. Out: ``Signature``: bind, restore, JSON.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaflex.errors import ArtifactError, OptionError

Path = tuple[str | int, ...]
Plain = str | int | float | None  # of a fixed argument; a bool is an int
PAIRED = ("dict", "record", "named")
DEEPEST = 32  # levels of nesting in an output


@dataclass(frozen=True)
class Signature:
    """``paths``: for each input, the argument's name, then keys and indices; () where only its position is known.

    ``outputs`` nests {"tuple": [...]}, {"list": [...]}, {"leaf": n}, {"value": x}, and as pairs of a key and what it
    holds {"dict": [...]}, {"record": [...]}, {"named": [...]}; ``skip`` outputs before the first leaf are new values of
    the program's own state, or of an input: ``writes`` has (output, input) of those. ``names``: the positional
    arguments, a last one "*name" takes the rest. ``fixed``: (path, value, needed) of plain values that the program was
    made for; one that is not needed may be left out.
    """

    paths: tuple[Path, ...]
    outputs: Mapping[str, Any]
    skip: int = 0
    names: tuple[str, ...] = ()
    fixed: tuple[tuple[Path, Any, bool], ...] = ()
    writes: tuple[tuple[int, int], ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the arguments, in order."""
        found = dict.fromkeys(str(path[0]) for path in self.paths if path)
        return self.names or tuple(found)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The inputs of one call. ``OptionError`` names an argument that is missing, unknown or of another value."""
        plain = [name for name in self.parameters if not name.startswith("*")]
        rest = [name[1:] for name in self.parameters if name.startswith("*")]
        if not rest and len(args) > max(len(plain), len(self.paths)):
            raise OptionError(f"{len(args)} positional arguments were given; this program takes {', '.join(plain)}")
        values = dict(zip(plain, args, strict=False)) | dict(kwargs)
        values |= {name: args[len(plain) :] for name in rest if len(args) > len(plain)}
        self._refuse(values)
        return [_at(values, path) if path else args[place] for place, path in enumerate(self.paths)]

    def _refuse(self, values: Mapping[str, Any]) -> None:
        """Every argument is one the program knows, and plain values are those it was made for."""
        heads = {str(path[0]) for path in self.paths if path}
        known = heads | {str(path[0]) for path, _, _ in self.fixed}
        unknown = [name for name, value in values.items() if name not in known and value is not None]
        if unknown:
            raise OptionError(f"argument '{unknown[0]}' is not one this program takes: {', '.join(sorted(known))}")
        for path, wanted, needed in self.fixed:
            if needed or path[0] in values:
                given = _at(values, path)
                if type(given) is not type(wanted) or given != wanted:
                    name = ".".join(map(str, path))
                    what = type(given).__name__ if given is None or hasattr(given, "shape") else repr(given)
                    raise OptionError(f"argument '{name}' is {what}; this program was made for {wanted!r} alone")

    def write(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Leave in the caller's tensors what the model leaves there."""
        for output, place in self.writes:
            inputs[place].copy_(outputs[output])

    def restore(self, outputs: Sequence[Any]) -> Any:
        """The outputs nested as the model returned them."""
        return _restore(self.outputs, outputs[self.skip :], 0)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        writes = {"writes": [list(pair) for pair in self.writes]} if self.writes else {}
        return writes | {
            "paths": [list(path) for path in self.paths],
            "outputs": self.outputs,
            "skip": self.skip,
            "names": list(self.names),
            "fixed": [[list(path), value, needed] for path, value, needed in self.fixed],
        }

    @staticmethod
    def from_json(data: Any) -> Signature:
        """Read and check; ``ArtifactError`` where it is not what ``to_json`` writes."""
        try:
            paths = tuple(tuple(path) for path in data["paths"])
            fixed = tuple((tuple(path), value, needed) for path, value, needed in data["fixed"])
            every = [*paths, *(path for path, _, _ in fixed)]
            good = all(isinstance(part, str | int) for path in every for part in path) and isinstance(data["skip"], int)
            good = good and all(path and isinstance(value, Plain) for path, value, _ in fixed)
            good = good and all(isinstance(name, str) for name in data["names"])
            if not good or set(data) - {"writes"} != {"paths", "outputs", "skip", "names", "fixed"}:
                raise ValueError("fields")
            writes = tuple((int(output), int(place)) for output, place in data.get("writes", ()))
            if not all(0 <= output < data["skip"] and 0 <= place < len(paths) for output, place in writes):
                raise ValueError("writes")
            _check(data["outputs"], 0)
            return Signature(paths, data["outputs"], data["skip"], tuple(data["names"]), fixed, writes)
        except (KeyError, TypeError, ValueError) as fault:
            raise ArtifactError(f"the artifact's signature is damaged ({fault}); write the artifact again") from fault


@dataclass(frozen=True)
class Leaf:
    """Stands for an output tensor in what a model returns."""

    place: int


class Record(dict[str, Any]):
    """What a dataclass or a library's output type becomes: values by key, by attribute and by position."""

    def __getattr__(self, name: str) -> Any:
        try:
            return dict.__getitem__(self, name)
        except KeyError:
            raise AttributeError(f"this output has no '{name}'; it has {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        return dict.__getitem__(self, key) if isinstance(key, str) else tuple(self.values())[key]


def structure(value: Any) -> dict[str, Any]:
    """The nesting of a returned value whose tensors are leaves. Keys keep their order in JSON: as pairs."""
    if isinstance(value, Leaf):
        return {"leaf": value.place}
    if isinstance(value, Mapping):
        return {"dict" if type(value) is dict else "record": _pairs(value.items())}
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None)
        if names is not None:
            return {"named": _pairs(zip(names, value, strict=True))}
        return {"tuple": [structure(item) for item in value]}
    if isinstance(value, list):
        return {"list": [structure(item) for item in value]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"record": _pairs((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))}
    if isinstance(value, Plain):
        return {"value": value}
    raise OptionError(f"an output of type {type(value).__name__} cannot be described; return tensors, tuples or dicts")


def _pairs(items: Iterable[tuple[Any, Any]]) -> list[list[Any]]:
    return [[key if isinstance(key, int) else str(key), structure(item)] for key, item in items]


def _restore(spec: Mapping[str, Any], outputs: Sequence[Any], depth: int) -> Any:
    ((kind, inside),) = spec.items()
    if kind == "leaf":
        return outputs[inside]
    if kind == "value":
        return inside
    if kind in PAIRED:
        found = {key: _restore(item, outputs, depth + 1) for key, item in inside}
        return found if kind == "dict" else Record(found) if kind == "record" else _named(tuple(found))(**found)
    items = [_restore(item, outputs, depth + 1) for item in inside]
    return tuple(items) if kind == "tuple" else items


@functools.cache
def _named(fields: tuple[str, ...]) -> Any:
    return collections.namedtuple("Output", fields)


def _check(spec: Any, depth: int) -> None:
    if depth > DEEPEST or not isinstance(spec, dict) or len(spec) != 1:
        raise ValueError("outputs")
    ((kind, inside),) = spec.items()
    if kind in ("tuple", "list") and isinstance(inside, list):
        for item in inside:
            _check(item, depth + 1)
    elif kind in PAIRED and isinstance(inside, list):
        for key, item in inside:
            if not (isinstance(key, str) if kind != "dict" else isinstance(key, str | int)):
                raise ValueError("outputs")
            _check(item, depth + 1)
        if kind == "named":
            _named(tuple(key for key, _ in inside))  # ValueError for what is no name
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
