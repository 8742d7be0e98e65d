"""Builds, checks and times the GPU kernels, and a small model, on the CUDA device that is there.

    python -m benchmarks.gpu [--json FILE] [--quick] [--no-model]

From the repository's root, with PYTHONPATH=src where the package is not installed. In: this checkout, torch with CUDA,
Triton, numpy, filelock, platformdirs (the model also needs the torch release this project is made for). Out: the chip's
name, its ceilings measured in the same run (copy in GB/s, bf16 product in TFLOP/s), then one row per kernel: error
against float64, time, share of the copy rate, speed against torch or cuBLAS, and whether the floor set for it holds.
Exits 1 where an answer is wrong, 2 where there is no CUDA device. Every time is the median over replays of a CUDA graph
whose calls cycle through operands larger than the L2 cache. ``--dry`` runs everything but the model at tiny sizes on
the CPU, kernels in Triton's interpreter (TRITON_INTERPRET=1): it checks this script, its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import triton

from benchmarks.gpu_int4 import Int4, int4_case
from benchmarks.gpu_report import Report, Row, error, microseconds
from benchmarks.gpu_rows import ROW_CASES, row_case

ROWS = (1, 4, 16, 64, 128, 256)
PRODUCTS = ((4096, 4096), (14336, 4096), (4096, 14336), (8192, 8192))  # N, K
TALL = ((32768, 4096), (131072, 1000))


def ceilings(report: Report) -> None:
    """Rates of a large copy (read and write) and of a large bf16 product."""
    size, width = (1 << 30, 8192) if report.device == "cuda" else (1 << 12, 32)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=report.device)
    target = torch.empty_like(source)
    report.copy_gbs = 2 * size / microseconds([lambda: target.copy_(source)], report.device) / 1e3
    a, b = (torch.randn(width, width, device=report.device).bfloat16() for _ in range(2))
    report.bf16_tflops = 2 * width**3 / microseconds([lambda: torch.mm(a, b)], report.device) / 1e6


def kernels(report: Report, quick: bool) -> None:
    """All row kernels, then all products."""
    dry = report.device == "cpu"
    tall = ((3, 256),) if dry else TALL[:1] if quick else TALL
    for case in ROW_CASES:
        for rows, columns in tall:
            if columns % 128 == 0 or not case.form.endswith("h128"):
                report.rows.append(row_case(case, rows, columns, report))
    for n, k in ((64, 256),) if dry else PRODUCTS:
        weights = Int4(n, k, report.device)
        for rows in (1, 5) if dry else ROWS:
            report.rows.append(int4_case(weights, rows, report, quick))


def model_rows(report: Report) -> None:
    """A small encoder by family of its linears, against eager torch in bf16 on the same device."""
    from benchmarks.gpu_model import build, eager

    inputs, times = eager(lambda calls: microseconds(calls, report.device))
    for family in ("w4", "fp32"):
        run, want, allowed = build(family, inputs)
        wrong = error(run(), want)
        us = microseconds([run], report.device)
        note = f"eager fp32 {times['fp32']:.0f} us, bf16 {times['bf16']:.0f} us; graph replays of all three"
        report.rows.append(Row(f"encoder {family}", "4x512", wrong, allowed, us, 0.0, times["bf16"] / us, note=note))


def main() -> int:
    """Run everything; 0 where every answer was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--quick", action="store_true", help="only the shapes that a program would choose")
    parser.add_argument("--no-model", action="store_true", help="kernels only")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU, to check this script")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure here (--dry checks this script)")
        return 2
    started = time.monotonic()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": str(torch.version.cuda)}
    if options.dry:
        report = Report("interpreter, no chip", "cpu", 1, versions)
    else:
        chip = torch.cuda.get_device_properties(0)
        report = Report(chip.name, "cuda", chip.multi_processor_count, versions)
    with torch.no_grad():
        ceilings(report)
        kernels(report, options.quick or options.dry)
        if not options.no_model and not options.dry:
            model_rows(report)
    report.seconds = time.monotonic() - started
    print(report.markdown())
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1))
    return int(any(not row.error <= row.allowed for row in report.rows))


if __name__ == "__main__":
    sys.exit(main())
