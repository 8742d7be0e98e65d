"""``adaflex verify``: measure an artifact here against what its plan promised.

In: an artifact, and where given: calls, the model it was made from. Out: the verdict on this machine; exit code 4 where
a promise is broken. Memory is the program's own count; beside it stands the growth of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaflex.commands.planned import CALLS
from adaflex.errors import AdaflexError, ArtifactError, OptionError

if TYPE_CHECKING:
    from adaflex.handle import Program
    from adaflex.runtime.verdict import Promise, Verdict

HELP = "measure an artifact here against what its plan promised"
SECONDS = 300  # for the fresh process


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("--inputs", type=Path, metavar="FILE", help=CALLS + "; default: ones")
    parser.add_argument("--model", metavar="MODULE:CALLABLE", help="the original, so that loss is measured too")
    parser.add_argument("--threads", type=int, help="threads to use (default: torch's)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Load, measure, judge, print."""
    from adaflex import machine
    from adaflex.handle import load

    program = load(args.artifact, threads=args.threads)
    if program.verdict is None:
        raise ArtifactError(f"'{args.artifact}' holds no promises to verify; compile the model again")
    original, calls = _given(args, program)
    verdict = measured(program, calls, original)
    process = _growth(args.artifact, calls, args.threads)
    here = [list(pair) for pair in machine.fingerprint(args.threads)]
    same = here == [list(pair) for pair in program.manifest.get("machine", [])]
    if args.json:
        extra = {"process_bytes": process, "same_machine": same, "machine_here": dict(here)}
        print(json.dumps({"verdict": verdict.to_json(), **extra}))
    else:
        if not same:
            print("the plan was made on another machine; its latency was predicted for that one")
        print(verdict.text())
        print(f"process: grew by {process / 2**20:.1f} MiB when it loaded and ran the program")
        print("all promises held" if verdict.held else "a promise is BROKEN")
    return 0 if verdict.held else 4


def _given(args: argparse.Namespace, program: Program) -> tuple[Any, list[dict[str, Any]]]:
    """The original model where one was named, and the calls to measure on."""
    from adaflex.models import load_model
    from adaflex.passes.calibration import calibration
    from adaflex.reading import dtypes_of, read_calls

    found = load_model(args.model) if args.model is not None else None
    if args.inputs is not None:
        return found, read_calls(args.inputs, dtypes_of(program.executor.program, program.signature))
    if found is None:
        return None, [ones(program)]
    given = found.calibration if found.calibration is not None else found.inputs
    names = program.signature.parameters
    return found, [dict(zip(names, each.args, strict=False)) | dict(each.kwargs) for each in calibration(given).batches]


def ones(program: Program) -> dict[str, Any]:
    """A call of ones at the sizes the model was captured with: valid as numbers, tokens and masks."""
    import torch

    from adaflex.runtime.library import DTYPES
    from adaflex.runtime.region import evaluate

    inner = program.executor.program
    values = dict(zip(inner.symbols, inner.hints or (1,) * len(inner.symbols), strict=True))
    call = {}
    for path, slot in zip(program.signature.paths, inner.inputs, strict=True):
        if len(path) != 1 or slot < 0:
            raise OptionError("this program's arguments are nested; give calls with --inputs or the model with --model")
        shape = [evaluate(size, values) for size in inner.slots[slot].shape]
        call[str(path[0])] = torch.ones(shape, dtype=DTYPES[inner.slots[slot].form])
    return call


def measured(program: Program, calls: Sequence[Mapping[str, Any]], original: Any) -> Verdict:
    """The artifact's verdict with this machine's figures; loss only where the original is at hand."""
    from adaflex.machine import cpu, isa, thread_count
    from adaflex.measuring import latency, stall

    assert program.verdict is not None
    own = max(program.memory(**call)["total"] for call in calls)
    taken, spread = latency(lambda: program(**calls[0]))
    found: list[Promise] = []
    for promise in program.verdict.promises:
        if promise.name == "memory":
            promise = replace(promise, measured=own, spread=0.0)
        elif promise.name == "latency":
            promise = replace(promise, measured=taken, spread=spread * taken)
        elif promise.name == "stall" and program.executor.staging is not None:
            promise = replace(promise, measured=stall(program.executor, lambda: program(**calls[0])))
        elif promise.name == "loss":
            loss = loss_of(program, calls, original, promise.unit) if original is not None else None
            promise = replace(promise, measured=loss)
        found.append(promise)
    name = f"{cpu()[0]}, {thread_count(program.executor.threads)} threads, {isa()}"
    return replace(program.verdict, promises=tuple(found), machine=name, same_data=False)


def loss_of(program: Program, calls: Sequence[Mapping[str, Any]], original: Any, kind: str) -> float:
    """Additive loss of the program against the original over the calls; ``kind`` as in the plan's table."""
    import torch

    from adaflex.passes.losses import divergence, relative
    from adaflex.reading import named

    if kind not in ("squared relative error", "KL divergence"):
        raise OptionError(f"the plan's loss is '{kind}', which needs its own function; verify without --model")
    shape = program.executor.program.slots[program.executor.program.outputs[0]].shape
    rows = bool(shape) and not isinstance(shape[0], int)
    total, count = 0.0, 0.0
    with torch.no_grad():
        for call in calls:
            wanted, made = named(original.model(**call)), named(program(**call))
            mask = next((v for k, v in call.items() if "mask" in k.lower() and v.dim() == 2), None)
            for ours, theirs in zip(made.values(), wanted.values(), strict=True):
                if theirs.is_floating_point():
                    pair = ours.float(), theirs.float()
                    by = relative(*pair, mask, rows) if kind.startswith("squared") else divergence(*pair, mask)
                    total, count = total + by[0], count + by[1]
    return max(0.0, total / max(count, 1.0))


def _growth(artifact: Path, calls: Sequence[Mapping[str, Any]], threads: int | None) -> int:
    """Growth of a fresh process that loads the artifact and runs the calls; its kernels are in the cache by now."""
    from adaflex.reading import write_tensors

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.safetensors"
        write_tensors(path, {f"{n}.{name}": value for n, call in enumerate(calls) for name, value in call.items()})
        command = [sys.executable, "-m", "adaflex.growth", str(artifact), str(path), str(threads or 0)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AdaflexError(f"the fresh process that measures memory failed: {last}")
    return int(json.loads(done.stdout)["process_bytes"])
