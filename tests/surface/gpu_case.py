"""A small model planned for device="cuda" and run, with Triton's interpreter in the place of a GPU (or on one).

In: TRITON_INTERPRET=1, or a GPU. Out: one line of JSON with what was found.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import adaflex
from adaflex import gpu
from tests.surface.tiny_model import calls, model


def found() -> dict[str, object]:
    """Plan under a memory budget that fp32 does not meet, run, save, load on the CPU."""
    here = "cuda" if torch.cuda.is_available() else "cpu"
    if here == "cpu":  # the interpreter works on host memory
        gpu.DEVICE, gpu.check = "cpu", lambda options: None
    table = adaflex.plan(model(), calls(), device="cuda", loss=0.5, threads=1).table
    least = min(c.cost.size_bytes for c in table.choices if c.sites == ("up.weight",))
    made = adaflex.plan(model(), calls(), device="cuda", memory="56KiB", loss=0.5, threads=1, on_broken="warn")
    program = made.compile()
    x = calls(1)[0]["x"].to(here)
    got, want = program(x), model().to(here)(x)
    with TemporaryDirectory() as folder:
        program.save(Path(folder) / "m")
        again = adaflex.load(Path(folder) / "m", threads=1)(x.cpu())
    return {
        "families": sorted({c.encoding.family for c in made.table.choices if c.encoding is not None}),
        "chosen": sorted(choice for _, choice in made.planned.plan.choices),
        "error": float((got - want).norm() / want.norm()),
        "apart": float((got.cpu() - again).norm() / again.norm()),
        "weights": program.memory(x)["weights"],
        "stored": sum(
            c.cost.size_bytes for c in made.table.choices if c.id in dict(made.planned.plan.choices).values()
        ),
        "least": least,
        "memory": next(p.held for p in made.planned.verdict.promises if p.name == "memory"),
        "device": str(got.device),
    }


if __name__ == "__main__":
    print(json.dumps(found()))
