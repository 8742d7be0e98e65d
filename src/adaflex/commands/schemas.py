"""JSON Schemas of what each command prints under ``--json``: the documentation, and what tests hold the output to.

In: nothing. Out: ``SCHEMAS``, by command. Bytes and nanoseconds are whole numbers; a loss of a layer is the relative
error (or KL), a loss in a verdict is additive in the promise's unit (a relative error is squared there).
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

NUMBER: Schema = {"type": "number"}
MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
WHOLE: Schema = {"type": "integer", "minimum": 0}
TEXT: Schema = {"type": "string"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
FLAG: Schema = {"type": "boolean"}
PAIRS: Schema = {"type": "object", "additionalProperties": TEXT}
ANY_OBJECT: Schema = {"type": ["object", "null"]}


def record(fields: Schema, optional: tuple[str, ...] = ()) -> Schema:
    """An object with exactly these fields."""
    required = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def many(item: Schema) -> Schema:
    """A list of such values."""
    return {"type": "array", "items": item}


PROMISE = record(
    {
        "name": TEXT,
        "unit": TEXT,
        "asked": MAYBE_NUMBER,
        "planned": MAYBE_NUMBER,
        "measured": MAYBE_NUMBER,
        "spread": NUMBER,
        "held": FLAG,
    }
)
VERDICT = record({"schema": {"const": 1}, "held": FLAG, "same_data": FLAG, "machine": TEXT, "promises": many(PROMISE)})
SOURCE: Schema = {"enum": ["measured", "estimated", "bound"]}
LAYER = record(
    {
        "layer": TEXT,
        "choice": TEXT,
        "covers": many(TEXT),  # sites: the figures are those of all of them
        "size_bytes": WHOLE,
        "time_ns": many(WHOLE),
        "loss": NUMBER,
        "source": SOURCE,
        "loss_source": SOURCE,
        "runner_up": MAYBE_TEXT,
        "runner_up_price": MAYBE_NUMBER,
    }
)
STATUS: Schema = {"enum": ["optimal", "feasible", "infeasible", "unknown"]}
PLAN_FIELDS: Schema = {
    "status": STATUS,
    "objective": TEXT,
    "value": MAYBE_NUMBER,
    "bound": MAYBE_NUMBER,
    "gap": MAYBE_NUMBER,
    "limit": TEXT,
    "budget": {"type": "object"},
    "totals": ANY_OBJECT,
    "loss_kind": TEXT,
    "reasons": many(TEXT),
    "prices": {"type": "object", "additionalProperties": NUMBER},
    "table_digest": TEXT,
    "layers": many(LAYER),
}
COLUMN = record(
    {"choice": TEXT, "why": TEXT, "price": NUMBER, "size_bytes": WHOLE, "time_ns": many(WHOLE), "loss": NUMBER}
)
OUTPUT = record({"name": TEXT, "dtype": TEXT, "shape": many(WHOLE)})
INPUT = record({"name": TEXT, "dtype": TEXT, "shape": many({"type": ["integer", "string"]})})
CONSTANT = record({"name": TEXT, "form": TEXT, "shape": many(WHOLE), "size_bytes": WHOLE})
COUNTED = record({"count": WHOLE, "size_bytes": WHOLE})
INSPECT = record(
    {
        "path": TEXT,
        "digest": TEXT,
        "size_bytes": WHOLE,
        "written_by": TEXT,
        "parameters": many(TEXT),
        "inputs": many(INPUT),
        "weights_bytes": WHOLE,
        "forms": {"type": "object", "additionalProperties": COUNTED},
        "steps": {"type": "object", "additionalProperties": WHOLE},
        "native": FLAG,
        "machine": PAIRS,
        "plan": {"type": "object"},
        "verdict": ANY_OBJECT,
        "constants": {"type": ["array", "null"], "items": CONSTANT},
    }
)
FINDING = record({"name": TEXT, "state": {"enum": ["ok", "warning", "broken"]}, "text": TEXT, "way_out": TEXT})
PART = record({"folder": TEXT, "files": WHOLE, "size_bytes": WHOLE})

SCHEMAS: dict[str, Schema] = {
    "plan": record({**PLAN_FIELDS, "verdict": VERDICT}),
    "compile": record(
        {
            **PLAN_FIELDS,
            "verdict": VERDICT,
            "artifact": record({"path": TEXT, "size_bytes": WHOLE, "digest": TEXT}),
        }
    ),
    "run": record({"calls": many(record({"time_ns": WHOLE, "outputs": many(OUTPUT)})), "written": MAYBE_TEXT}),
    "inspect": INSPECT,
    "explain": {
        "anyOf": [record(PLAN_FIELDS), record({"layer": TEXT, "choice": TEXT, "columns": many(COLUMN)})],
    },
    "verify": record({"verdict": VERDICT, "process_bytes": NUMBER, "same_machine": FLAG, "machine_here": PAIRS}),
    "doctor": record({"adaflex": TEXT, "ok": FLAG, "findings": many(FINDING)}),
    "cache": record(
        {
            "folder": TEXT,
            "action": {"enum": ["show", "clear"]},
            "parts": {"type": "object", "additionalProperties": PART},
        }
    ),
}
