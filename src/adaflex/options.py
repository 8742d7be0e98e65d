"""The options of ``torch.compile(..., options=...)`` and of the Python entry points, checked before anything runs.

In: a mapping of keywords. Out: a frozen ``Options``; an ``OptionError`` names the key, the value and the way out.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from adaflex.errors import OptionError

BYTES = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
NANOSECONDS = {"": 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "µs": 10**3, "ns": 1}
AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)\s*([A-Za-zµ]*)\s*")
OBJECTIVES = ("", "loss", "latency", "memory", "bits")
AXES = ("precision", "sparsity", "skip", "placement")


@dataclass(frozen=True)
class Amount:
    """A budget: an exact count of units, or a share of the baseline ("0.5x")."""

    count: int | None = None
    share: float | None = None

    def resolve(self, baseline: int) -> int:
        """The budget in units, given what 1x is. Rounded down: a budget is never exceeded."""
        return self.count if self.count is not None else math.floor((self.share or 0.0) * baseline)


@dataclass(frozen=True)
class Options:
    """Every option, at its default. Bytes, nanoseconds and relative error; ``None`` is "no budget"."""

    memory: Amount | None = None
    latency: Amount | None = None
    loss: float | None = None
    bits: float | None = None
    tiers: tuple[tuple[str, int], ...] = ()
    objective: str = ""
    loss_fn: str | Callable[..., float] = "error"
    calibration: Any = None
    shapes: Any = None
    axes: tuple[str, ...] = ("precision",)
    pin: tuple[tuple[str, str], ...] = ()
    forbid: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"
    threads: int | None = None
    max_concurrency: int = 1
    time_limit: float | None = None
    plan: str | None = None
    save_plan: str | None = None
    report: bool | str = False
    strict: bool = False
    on_broken: str = "error"


def parse(given: Mapping[str, Any] | None, *, on_broken: str = "error") -> Options:
    """Check and convert the keywords; ``on_broken`` is the default of the door that was used."""
    given = dict(given or {})
    known = {field.name for field in fields(Options)}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean '{near[0]}'?" if near else "known are " + ", ".join(sorted(known)) + "."
            raise OptionError(f"unknown option '{key}': {hint}")
    values: dict[str, Any] = {"on_broken": on_broken}
    for key, value in given.items():
        if value is not None:
            values[key] = CHECKS[key](key, value)
    return Options(**values)


def amount(key: str, value: Any, units: Mapping[str, int], example: str) -> Amount:
    """A number with a unit, a bare number in base units, or a share like "0.5x"."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise OptionError(f"{key}={value!r} is not an amount; write for example {example}")
    if isinstance(value, int | float):
        count = value * units[""]
        if not (math.isfinite(count) and count >= 0):
            raise OptionError(f"{key}={value!r} must be a finite number of at least 0; write for example {example}")
        return Amount(math.floor(count))
    match = AMOUNT.fullmatch(value)
    if match is None:
        raise OptionError(f"{key}='{value}' is not an amount; write for example {example}")
    number, unit = float(match[1]), match[2]
    if unit == "x":
        return Amount(share=number)
    if unit not in units:
        near = [name for name in units if name.lower() == unit.lower() and name]
        said = f"did you mean '{near[0]}'?" if near else f"units are {', '.join(name for name in units if name)} and x"
        raise OptionError(f"{key}='{value}' has the unknown unit '{unit}': {said}")
    exact = int(match[1]) * units[unit] if match[1].isdigit() else math.floor(number * units[unit])
    return Amount(exact)


def _memory(key: str, value: Any) -> Amount:
    return amount(key, value, BYTES, '"120MiB" or "0.5x"')


def _latency(key: str, value: Any) -> Amount:
    return amount(key, value, NANOSECONDS, '"8ms" or "0.5x"')


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise OptionError(f"{key}={value!r} must be a finite number of at least 0, for example {key}=0.03")
    return float(value)


def _positive(key: str, value: Any) -> float:
    number = _number(key, value)
    if number == 0:
        raise OptionError(f"{key}={value!r} must be more than 0")
    return number


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{key}={value!r} must be a whole number of at least 1")
    return value


def _one_of(choices: Sequence[str]) -> Callable[[str, Any], str]:
    def check(key: str, value: Any) -> str:
        if value not in choices:
            said = ", ".join(repr(choice) for choice in choices if choice)
            raise OptionError(f"{key}={value!r} is unknown; choose one of {said}")
        return str(value)

    return check


def _axes(key: str, value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else list(value)
    for word in words:
        if word not in AXES:
            raise OptionError(f"{key} names the unknown axis {word!r}; axes are {', '.join(AXES)}")
    return tuple(words)


def _pairs(key: str, value: Any) -> tuple[tuple[str, str], ...]:
    pairs = list(value.items()) if isinstance(value, Mapping) else list(value)
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise OptionError(
                f"{key} holds {pair!r}; it takes pairs (layer pattern, choice), for example ('*.value', 'bf16')"
            )
        if pair[0].startswith("re:"):
            _regular(key, pair[0][3:])
    return tuple((str(a), str(b)) for a, b in pairs)


def _regular(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as fault:
        raise OptionError(f"{key} holds the pattern 're:{pattern}', which is no regular expression: {fault}") from fault


def _tiers(key: str, value: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, Mapping):
        raise OptionError(f"{key}={value!r} must map tier names to amounts, for example {{'disk': '2GiB'}}")
    return tuple((str(name), _memory(f"{key}['{name}']", size).resolve(0)) for name, size in value.items())


def _loss_fn(key: str, value: Any) -> Any:
    if callable(value) or value in ("error", "kl"):
        return value
    raise OptionError(f"{key}={value!r} must be 'error', 'kl' or a callable (output, batch) -> float")


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{key}={value!r} must be True or False")
    return value


def _report(key: str, value: Any) -> bool | str:
    return value if isinstance(value, bool) else _path(key, value)


def _path(key: str, value: Any) -> str:
    if not isinstance(value, str | Path) or not str(value):
        raise OptionError(f"{key}={value!r} must be a file path")
    return str(value)


def _any(key: str, value: Any) -> Any:
    return value


CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "memory": _memory,
    "latency": _latency,
    "loss": _number,
    "bits": _positive,
    "tiers": _tiers,
    "objective": _one_of(OBJECTIVES),
    "loss_fn": _loss_fn,
    "calibration": _any,
    "shapes": _any,
    "axes": _axes,
    "pin": _pairs,
    "forbid": _pairs,
    "device": _one_of(("cpu", "cuda")),
    "threads": _count,
    "max_concurrency": _count,
    "time_limit": _positive,
    "plan": _path,
    "save_plan": _path,
    "report": _report,
    "strict": _flag,
    "on_broken": _one_of(("error", "warn")),
}
