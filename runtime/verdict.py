"""The verdict: what was asked, planned and measured for each budget, and whether the promise held.

In: figures of the plan and of the program that runs. Out: ``Verdict``, as text and as JSON; and the bytes that a
process has grown by, the only memory figure that can be compared with other programs'.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

SCHEMA = 1
SQUARED = "squared relative error"  # how an error is stored, so that choices add up
NOISE = 0.10  # a time within this share above its limit holds where the measurement's own spread explains it
STALL_SHARE, STALL_NS = 1.25, 1_000_000  # a stall holds up to this share of what was stated, and so much more
ROLLUP = Path("/proc/self/smaps_rollup")


@dataclass(frozen=True)
class Promise:
    """One budget. Bytes, nanoseconds, or the unit of the loss; ``asked`` None: no limit, only reported."""

    name: str  # "memory", "latency", "loss", "bits", "stall"
    unit: str  # "bytes", "ns", "error", "kl", ...
    asked: float | None
    planned: float | None  # None: the plan does not predict it
    measured: float | None  # None: not measured on this machine
    spread: float = 0.0  # of the measurement, in its unit

    @property
    def held(self) -> bool:
        """Does what was measured keep to what was asked? Nothing asked or nothing measured breaks nothing.

        A time above its limit by less than the spread of its own measurement, and less than a tenth, holds.
        """
        if self.asked is None or self.measured is None:
            return True
        if math.isnan(self.measured):
            return False
        slack = min(self.spread, NOISE * self.asked) if self.unit == "ns" else 0.0
        return self.measured <= self.asked + slack

    def as_read(self) -> Promise:
        """The figures as people read them: of a squared relative error the root, as it was asked for."""
        if self.unit != SQUARED:
            return self
        return replace(
            self,
            unit=SQUARED.removeprefix("squared "),
            asked=_root(self.asked),
            planned=_root(self.planned),
            measured=_root(self.measured),
        )

    def sentence(self) -> str:
        """ "memory: asked 120.0 MiB, planned 98.1 MiB, measured 98.3 MiB: held"."""
        read = self.as_read()
        parts = [f"{word} {_amount(value, read.unit)}" for word, value in read._figures() if value is not None]
        judged = self.asked is not None and self.measured is not None
        end = "" if not judged else ": held" if self.held else ": BROKEN"
        return f"{self.name}: {', '.join(parts)}{end}"

    def _figures(self) -> tuple[tuple[str, float | None], ...]:
        limit = "allowed" if self.name == "stall" else "asked"
        return (limit, self.asked), ("planned", self.planned), ("measured", self.measured)


def stall_promise(stated: int, measured: int) -> Promise:
    """How long a call waits for the disk while nothing is cached: it may be a quarter and a millisecond longer."""
    return Promise("stall", "ns", STALL_SHARE * stated + STALL_NS, stated, measured)


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value) if value > 0 else 0.0 if value <= 0 else value


@dataclass(frozen=True)
class Verdict:
    """All promises of a program."""

    promises: tuple[Promise, ...]
    same_data: bool = False  # loss was measured on the very data that the plan was made with
    machine: str = ""  # fingerprint of where it was measured

    @property
    def held(self) -> bool:
        """Did every promise hold?"""
        return all(promise.held for promise in self.promises)

    def sentence(self) -> str:
        """One line: what broke, or that all held."""
        broken = [promise.sentence() for promise in self.promises if not promise.held]
        if broken:
            return "the plan's promise was broken: " + "; ".join(broken)
        asked = [promise.sentence() for promise in self.promises if promise.asked is not None]
        return "all promises held" + (": " + "; ".join(asked) if asked else "")

    def text(self) -> str:
        """One line per promise, and a mark where loss was judged on the data that planned it."""
        lines = [promise.sentence() for promise in self.promises]
        if self.same_data:
            lines.append("loss was measured on the same data that the plan was made with; give more calibration data")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it."""
        promises = [{**asdict(promise), "held": promise.held} for promise in self.promises]
        return {
            "schema": SCHEMA,
            "held": self.held,
            "same_data": self.same_data,
            "machine": self.machine,
            "promises": promises,
        }


def from_json(value: Mapping[str, Any]) -> Verdict:
    """The verdict that ``to_json`` wrote. Raises ValueError for another schema, KeyError for a missing entry."""
    if value["schema"] != SCHEMA:
        raise ValueError(f"verdict schema {value['schema']!r} is not {SCHEMA}; verify the program again")
    names = ("name", "unit", "asked", "planned", "measured", "spread")
    promises = tuple(Promise(*(entry[name] for name in names)) for entry in value["promises"])
    return Verdict(promises, bool(value["same_data"]), str(value["machine"]))


def _amount(value: float, unit: str) -> str:
    """A figure in the unit people read."""
    if unit == "bytes":
        for power, word in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
            if abs(value) >= 2**power:
                return f"{value / 2**power:.1f} {word}"
        return f"{value:.0f} bytes"
    if unit == "ns":
        for scale, word in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
            if abs(value) >= scale:
                return f"{value / scale:.3g} {word}"
        return f"{value:.0f} ns"
    return f"{value:.4g}"


# ---- the memory of the process ----
def anonymous_bytes() -> int:
    """Anonymous memory of this process, in bytes; 0 where the system does not say (anything but Linux)."""
    return _rollup()["Anonymous"]


def process_growth(work: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes by which this process grew while ``work`` ran: anonymous memory and resident file pages, and its result.

    To be compared with other programs it must run in a fresh process. What ``work`` returns stays alive meanwhile.
    """
    gc.collect()
    before = _rollup()
    result = work()
    gc.collect()
    after = _rollup()
    files = (after["Rss"] - after["Anonymous"]) - (before["Rss"] - before["Anonymous"])
    return after["Anonymous"] - before["Anonymous"] + max(files, 0), result


def _rollup() -> dict[str, int]:
    found = {"Anonymous": 0, "Rss": 0}
    try:
        lines = ROLLUP.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    return found
