"""Whole programs through the GPU executor with its kernels in Triton's interpreter, on the CPU: a process of its own.

Each case runs a small model, its weights stored by one family, against the reference graph. As triton_cases.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from adaflex.assembly import assemble
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.codegen.triton_launch import kernels_for
from adaflex.passes.decision import Decision
from adaflex.passes.export_door import from_export
from adaflex.passes.menu import Encoded, Machine
from adaflex.passes.rewrite import rewrite, run
from adaflex.passes.sites import find_sites
from adaflex.runtime.cuda import CudaExecutor
from adaflex.solver.table import Encoding
from tests.codegen import triton_oracle as oracle
from tests.codegen.triton_cases import Check, error
from tests.passes.models import Entry, zoo

MACHINE = Machine("portable", 1, ())
RUNS = {"sentence": ("w8a8", "w4"), "spellings": ("fp32",), "lstm": ("fp32",)}  # model -> families for its linears
ALLOWED = {"fp32": 2e-6, "w8a8": 1e-3, "w4": 3e-3}  # over the rounding of the formats, which the reference shares


def executor(entry: Entry, family: str, device: str = "cpu") -> tuple[CudaExecutor, Callable[..., list[Any]]]:
    """A model as the GPU executor runs it, every linear in ``family``; and its reference."""
    capture, weights = from_export(entry.model(), entry.inputs(), {}, entry.dynamic_shapes() if entry.dynamic else None)
    sites = find_sites(capture, weights, MENU, MACHINE)
    encodings = {
        site.id: next((e for e in sites.offers[site.id] if e.family == family), sites.keep[site.id])
        for site in sites.sites
    }

    def provide(site: str, encoding: Encoding) -> Encoded:
        stored = sites.weight(weights, site).float()
        return kernel(MENU, encoding.family).encode(stored, encoding, None)

    chosen = {site: provide(site, encoding) for site, encoding in encodings.items()}
    made = assemble(capture, weights, sites, Decision(encodings), lambda site, encoding: chosen[site])
    reference = rewrite(capture, sites, MENU, chosen)
    program, constants, kernels = kernels_for(made.program, made.weights, MENU, device, f16=device == "cpu")
    return CudaExecutor(program, constants, kernels, device), partial(run, reference, weights)


def model_case(name: str, family: str, device: str = "cpu") -> list[Check]:
    """Two sizes, the first one again in the end, over poisoned memory: right, and the same bits."""
    entry = zoo()[name]
    program, reference = executor(entry, family, device)
    checks, first = [], None
    for batch, length in ((2, 8), (1, 5), (2, 8)):
        inputs = entry.inputs(batch, length if entry.dynamic and len(entry.dynamic[0]) > 1 else 0)
        for shape in program._shapes.values():
            for arena in shape.free:
                arena.memory.fill_(0xFF)
        got = [value.cpu() for value in program(*(given.to(device) for given in inputs))]
        want = reference(inputs)
        worst = max(error(g.double().numpy(), w.double().numpy()) for g, w in zip(got, want, strict=True))
        checks.append((f"{batch}x{length}", worst, ALLOWED[family]))
        first = first or got
    same = all(torch.equal(a, b) for a, b in zip(first or [], got, strict=True))
    return [*checks, ("same bits", float(not same), 0.0)]


CASES = {
    f"{name}_{family}": partial(model_case, name, family)
    for name, families in RUNS.items()
    for family in families
    if any(entry.name == family for entry in MENU)
}


if __name__ == "__main__":
    oracle.report(CASES, sys.argv[1:])
