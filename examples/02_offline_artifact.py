"""Compile a model offline into one file, and run that file elsewhere: without the model's code, without the planner.

The same from the shell:

    adaflex compile examples/02_offline_artifact.py:subject --loss 0.02 -o minilm.adaflex
    adaflex inspect minilm.adaflex
    adaflex verify minilm.adaflex --model examples/02_offline_artifact.py:subject
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import sentences
import torch

import adaflex

RUNNER = """
import sys, torch, adaflex
program = adaflex.load(sys.argv[1])
torch.save(program(**torch.load(sys.argv[2])), sys.argv[3])
print("imported to run it:", [m for m in ("transformers", "adaflex.passes.score", "highspy") if m in sys.modules])
"""


def subject() -> tuple[torch.nn.Module, Any, Any]:
    """The model, one call of it, and calibration calls: what ``adaflex compile`` takes too."""
    model, tokenizer = sentences.load()
    call = sentences.tokens(tokenizer, sentences.passages(1, seed=9), 128)
    return model, call, sentences.batches(tokenizer, sentences.passages(80))


def compile_to(path: Path, model: torch.nn.Module, call: Any, calibration: Any, loss: float) -> None:
    """Plan, prove, write; an error if what was promised does not hold here."""
    program = adaflex.compile(model, call, loss=loss, calibration=calibration)
    digest = program.save(path)
    print(f"wrote {path.stat().st_size / 2**20:.1f} MiB, {digest}")
    assert program.verdict is not None
    print(program.verdict.sentence())


def run_elsewhere(path: Path, call: Any, folder: Path) -> torch.Tensor:
    """The file alone, in a process of its own."""
    torch.save(call, folder / "call.pt")
    words = [sys.executable, "-c", RUNNER, str(path), str(folder / "call.pt"), str(folder / "out.pt")]
    print(subprocess.run(words, check=True, capture_output=True, text=True).stdout, end="")
    made: torch.Tensor = torch.load(folder / "out.pt")
    return made


def main(loss: float = 0.02) -> float:
    """Compile, run elsewhere, compare; the relative error."""
    model, call, calibration = subject()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.adaflex"
        compile_to(path, model, call, calibration, loss)
        ours = run_elsewhere(path, call, Path(name))
    with torch.no_grad():
        exact = model(**call)
    error = float((ours - exact).norm() / exact.norm())
    print(f"error against the original: {error:.4f} (allowed {loss})")
    return error


if __name__ == "__main__":
    main()
