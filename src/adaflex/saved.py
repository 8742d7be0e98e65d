"""Saved plans: a plan with its table and digests of what it was made for, as one JSON file.

In: ``Planned``. Out: a file; and from a file ``Saved``, checked against the model that it is to be applied to. The
table inside serves any other budget without the model (``adaflex pareto``, ``adaflex explain``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaflex.errors import ArtifactError, OptionError
from adaflex.runtime.artifact_file import replace_file
from adaflex.solver.plan import Plan
from adaflex.solver.table import CostTable, Encoding
from adaflex.solver.table_json import digest, encode, from_json, parse, read_bytes

log = logging.getLogger("adaflex")

SCHEMA = "adaflex.saved/2"
OLDER = "adaflex.saved/1"  # its sizes and losses are of weights in groups with scales of fp32
FIELDS = {"schema", "weights", "calibration", "plan", "table"}
LATER = {"asked_loss"}  # may be missing


@dataclass(frozen=True)
class Saved:
    """What a file of a saved plan holds. Digests are SHA-256 in hexadecimal."""

    plan: Plan
    table: CostTable
    weights: str  # of every decided weight: name, dtype, shape, values
    calibration: str  # of the calls that repaired the weights
    asked_loss: float | None = None  # what was promised: the plan's own budget may have been lowered to keep to it

    def to_json(self) -> str:
        """The file's text."""
        parts = {
            "schema": SCHEMA,
            "weights": self.weights,
            "calibration": self.calibration,
            "asked_loss": self.asked_loss,
            "plan": encode(self.plan),
            "table": encode(self.table),
        }
        return json.dumps(parts, indent=1)


def write(path: str | Path, saved: Saved) -> None:
    """Write the file; an older one stays until this is whole."""
    try:
        replace_file(Path(path), [saved.to_json().encode()])
    except ArtifactError as fault:
        raise OptionError(f"save_plan='{path}' cannot be written ({fault.__cause__}); name a writable path") from fault


def read(path: str | Path) -> Saved:
    """Read and check a file; ``OptionError`` (``TableError``) names what does not fit."""
    values = parse(read_bytes(Path(path)), str(path))
    if isinstance(values, Mapping) and values.get("schema") == OLDER:
        raise OptionError(f"the plan in '{path}' is of schema '{OLDER}', whose sizes no longer hold; plan again")
    if not isinstance(values, Mapping) or values.get("schema") != SCHEMA:
        raise OptionError(f"'{path}' is no saved plan (schema '{SCHEMA}'); write one with save_plan= or --save-plan")
    if set(values) - LATER != FIELDS:
        raise OptionError(f"'{path}' has the fields {', '.join(sorted(values))}; a saved plan has {sorted(FIELDS)}")
    saved = Saved(
        from_json(Plan, values["plan"], f"the plan of {path}"),
        from_json(CostTable, values["table"], f"the table of {path}"),
        str(values["weights"]),
        str(values["calibration"]),
        _loss(values.get("asked_loss"), path),
    )
    if saved.plan.table_digest != digest(saved.table):
        raise OptionError(f"the plan in '{path}' was not made from the table beside it (digests differ); plan again")
    if saved.plan.totals is None:
        raise OptionError(f"the plan in '{path}' is {saved.plan.status} and decides nothing; plan with other budgets")
    return saved


def _loss(value: Any, path: str | Path) -> float | None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf
    ):
        raise OptionError(f"asked_loss in '{path}' is {value!r}; it must be a number from 0 on, or null")
    return value


def digest_of(values: Mapping[str, Any]) -> str:
    """One digest of named tensors, in the order of their names, or of numbered calls of several."""
    whole = hashlib.sha256()
    for name in sorted(values):
        whole.update(name.encode())
        _add(whole, values[name])
    return whole.hexdigest()


def _add(whole: Any, value: Any) -> None:
    import torch

    if isinstance(value, tuple | list):
        for each in value:
            _add(whole, each)
    elif isinstance(value, torch.Tensor):
        dense = value.detach().cpu().contiguous()
        whole.update(f"{dense.dtype}{list(dense.shape)}".encode())
        whole.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b"")
    else:
        whole.update(repr(value).encode())


def check(saved: Saved, path: str, weights: str, calibration: str, offers: Mapping[str, tuple[Encoding, ...]]) -> None:
    """``OptionError`` where the plan does not belong to this model, or asks for what is not offered here."""
    sites = [site for site, _ in saved.plan.choices]
    unknown = sorted(set(sites) ^ set(offers))
    if unknown:
        raise OptionError(
            f"plan='{path}' and this model do not have the same layers ('{unknown[0]}' is in one only); plan again"
        )
    if saved.weights != weights:
        raise OptionError(f"plan='{path}' was made for other weights (digests differ); plan this model again")
    if saved.calibration != calibration:
        log.warning("plan='%s' was made with other calibration data: weights are repaired on this one's", path)
    by_id = {choice.id: choice for choice in saved.table.choices}
    for site, name in saved.plan.choices:
        encoding = by_id[name].encoding
        if encoding is not None and encoding not in offers[site]:
            raise OptionError(f"plan='{path}' stores '{site}' as {encoding.label()}, which has no kernel here")
