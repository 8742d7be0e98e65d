"""``adaflex inspect``: show what an artifact holds, without running or building anything of it.

In: an artifact. Out: its plan, promises, sizes, machine and digest, for people or as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaflex.errors import ArtifactError
from adaflex.solver.units import show_bytes

HELP = "show what an artifact holds"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("--constants", action="store_true", help="list every stored tensor")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Read, check, print."""
    found = facts(args.artifact, args.constants)
    print(json.dumps(found) if args.json else "\n".join(lines_of(found)))
    return 0


def facts(path: Path, constants: bool = False) -> dict[str, Any]:
    """Everything that is shown, as plain data."""
    from adaflex.handle import kernel_library
    from adaflex.runtime import artifact
    from adaflex.runtime.signature import Signature

    made = artifact.read(path, kernel_library())
    program, manifest = made.program, made.manifest
    signature = Signature.from_json(manifest.get("signature"))
    inputs = [
        {"name": name, "dtype": program.slots[slot].form, "shape": [_size(size) for size in program.slots[slot].shape]}
        for name, slot in zip(program.input_names, program.inputs, strict=False)
        if slot >= 0
    ]
    forms = Counter(constant.form for constant in program.constants)
    sizes: dict[str, int] = {}
    for constant in program.constants:
        sizes[constant.form] = sizes.get(constant.form, 0) + constant.size_bytes
    listed = [
        {"name": c.name, "form": c.form, "shape": list(c.shape), "size_bytes": c.size_bytes} for c in program.constants
    ]
    return {
        "path": str(path),
        "digest": made.digest,
        "size_bytes": path.stat().st_size,
        "written_by": str(manifest.get("adaflex", "unknown")),
        "parameters": list(signature.parameters),
        "inputs": inputs,
        "weights_bytes": len(made.weights),
        "forms": {form: {"count": forms[form], "size_bytes": sizes[form]} for form in sorted(forms)},
        "steps": dict(sorted(Counter(type(step).__name__ for step in program.steps).items())),
        "native": made.has_native,
        "machine": _pairs(manifest.get("machine")),
        "plan": _plan(manifest.get("plan")),
        "verdict": manifest.get("verdict"),
        "constants": listed if constants else None,
    }


def _size(size: Any) -> Any:
    return size if isinstance(size, int | str) else "expression"


def _pairs(value: Any) -> dict[str, str]:
    try:
        return {str(name): str(text) for name, text in value or []}
    except (TypeError, ValueError) as fault:
        raise ArtifactError(f"the artifact's machine is damaged ({fault}); write the artifact again") from fault


def _plan(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ArtifactError("the artifact has no plan; write it again")
    names = ("status", "objective", "value", "bound", "gap", "totals", "budget", "table_digest")
    return {name: value.get(name) for name in names}


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """What is printed for people."""
    lines = [
        f"{found['path']}: {show_bytes(found['size_bytes'])}, written by AdaFlex {found['written_by']}",
        f"digest {found['digest']}",
        f"built kernels inside: {'yes, used only under trust' if found['native'] else 'no'}",
    ]
    for each in found["inputs"]:
        lines.append(f"input {each['name']}: {each['dtype']} [{', '.join(map(str, each['shape']))}]")
    lines.append(f"weights: {show_bytes(found['weights_bytes'])}")
    for form, entry in found["forms"].items():
        lines.append(f"  {entry['count']:5d} x {form:16} {show_bytes(entry['size_bytes'])}")
    lines.append("steps: " + ", ".join(f"{count} {name}" for name, count in found["steps"].items()))
    plan = found["plan"]
    lines.append(f"plan: {plan['status']}, least {plan['objective']}, table {str(plan['table_digest'])[:12]}")
    lines.append("measured on: " + ", ".join(f"{name} {text}" for name, text in found["machine"].items()))
    if found["verdict"] is not None:
        from adaflex.runtime.verdict import from_json

        lines += [promise.sentence() for promise in from_json(found["verdict"]).promises]
    for each in found["constants"] or []:
        lines.append(f"  {each['name']} {each['form']} {each['shape']} {each['size_bytes']}")
    return lines
