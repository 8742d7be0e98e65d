"""Plants faults one at a time and runs the suite's oracles on each: started as a program by test_planted.py.

In: nothing. Out: a JSON object on stdout: fault -> what caught it, "" where nothing did. Each fault lives in a forked
child that imports AdaFlex from text in which one thing was replaced.
"""

# ruff: noqa: E501 (a fault a line)
from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # before any fork: it takes seconds to import

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (*range(20), 30, 50, 52, 56, 59, 76, 77, 84, 99)
PARALLEL = 2


@dataclass(frozen=True)
class Fault:
    """``old`` in ``path`` (from the repository's root) becomes ``new``; ``oracles`` look for the consequence."""

    name: str
    path: str
    old: str
    new: str
    oracles: tuple[str, ...] = ("graphs",)


FAULTS = (
    Fault("slice begins one late", "codegen/views.py", "start = _from_start(start, view.shape[axis])", "start = plus(_from_start(start, view.shape[axis]), 1)"),
    Fault("index from the end off by one", "codegen/views.py", "return plus(size, index)", "return plus(size, plus(index, -1))", ("found",)),
    Fault("broadcast axis walks", "codegen/regions.py", "[0 if known(size) == 1 else stride for size, stride in sizes]", "[stride for _, stride in sizes]"),
    Fault("life cut by one", "runtime/layout.py", "last[slot] = (at.shared + 1, span[1])", "last[slot] = (at.shared, span[1])", ("layout",)),
    Fault("buffers that meet at their ends share", "runtime/arena.py", "a.first < b.end and b.first < a.end", "a.first < b.end - 1 and b.first < a.end - 1", ("layout",)),
    Fault("alpha forgotten", "codegen/scalar_ops.py", 'if k.get("alpha", 1) != 1:', "if False:"),
    Fault("norm's bias twice", "codegen/scalar_ops.py", 'return value if bias is None else w.emit("add", value, bias)', 'return value if bias is None else w.emit("add", w.emit("add", value, bias), bias)'),
    Fault("linear's bias dropped", "codegen/lower.py", 'value = builder.writer.emit("add", value, self._operand(builder, parts.bias))', "pass"),
    Fault("mean is a sum", "codegen/scalar_ops.py", 'return self.emit("div", self.emit("sum", value), self.emit("width"))', 'return self.emit("sum", value)'),
    Fault("softmax over its maximum", "codegen/scalar_ops.py", 'w.emit("sum", shifted)', 'w.emit("rmax", shifted)'),
    Fault("split begins one piece early", "codegen/view_graph.py", "for earlier in range(place % len(values)):", "for earlier in range(max(place % len(values) - 1, 0)):"),
    Fault("library view without offset", "runtime/library.py", "whole.storage_offset() + offset", "whole.storage_offset()"),
    Fault("fold's mean is a sum", "codegen/regions.py", 'return w.emit("div", folded, w.emit("depth")) if name == "mean" else folded', "return folded"),
    Fault("permuted output handed out as its base", "codegen/lower.py", "whole = is_whole(view, entry.shape) and _same_shape(", "whole = _same_shape(", ("found",)),
    Fault("weight scale and its column sum swapped", "codegen/kernels/w8a8.py", "layout.pack_columns(scale), layout.column_sums(codes, scale)", "layout.column_sums(codes, scale), layout.pack_columns(scale)", ("lossy",)),
    Fault("words of a panel in another order", "codegen/layout.py", "blocks.transpose(1, 2).contiguous()", "blocks.flip(1).transpose(1, 2).contiguous()", ("lossy",)),
    Fault("overlapping constants accepted", "runtime/artifact_check.py", "constant.offset < end:", "constant.offset < end - 64:", ("artifact",)),
    Fault("divisor of zero accepted", "runtime/json_readers.py", "part <= 0 for part", "part < 0 for part", ("json",)),
    Fault("gaps not checked", "runtime/artifact.py", "if content[at:].any():", "if False:", ("artifact",)),
    Fault("limit itself counts as broken", "runtime/verdict.py", "self.measured <= self.asked + slack", "self.measured < self.asked + slack", ("verdict",)),
    Fault("last columns dropped", "codegen/cpp/driver.h", "if (col < count) body(col, int(count - col));", "", ("compiled",)),
    Fault("last tile of rows dropped", "codegen/cpp/driver.h", "const long tiles = (rows + 7) / 8;", "const long tiles = rows / 8;", ("compiled",)),
    Fault("window of another group", "codegen/cpp/driver.h", " - group * c.group_rows[i] * c.row_bytes[i]", "", ("compiled",)),
    Fault("load without offset", "codegen/cpp_region.py", "parts = [self.size(load.offset)] if load.offset != 0 else []", "parts = []", ("compiled",)),
)  # fmt: skip


# ---- oracles: each raises, or returns what it found ----
def graphs_oracle() -> str:
    """Random graphs through the evaluator against float64."""
    from adaflex.codegen.evaluate import Evaluator
    from adaflex.runtime.execute import Executor
    from tests.codegen import graphs, test_fuzz_graphs
    from tests.codegen.lowered import program_of

    for seed in SEEDS:
        case = graphs.graph(seed)
        if case.symbolic:
            continue
        program, weights = program_of(case.capture, case.weights)
        run = Executor(program, weights, Evaluator(program), threads=1)
        run.poison = 0xFF
        found = test_fuzz_graphs.faults(case, run, 4)
        if found:
            return found[0]
    return ""


def found_oracle() -> str:
    """Graphs that were once lowered wrongly."""
    from tests.codegen import test_lower_found

    for name in test_lower_found.CASES:
        test_lower_found.test_found(name)
    return ""


def layout_oracle() -> str:
    """Buffers that live at one time."""
    from tests.runtime import test_layout

    return "; ".join(problem for seed in test_layout.SEEDS for problem in test_layout.problems(seed))


def lossy_oracle() -> str:
    """An encoded linear through the evaluator against the linear itself."""
    from tests.codegen import test_evaluate

    for encoding in test_evaluate.ENCODINGS[:3]:
        test_evaluate.test_packed_weights_are_read_as_the_byte_formulas_say(encoding, (33, 256))
    return ""


def artifact_oracle() -> str:
    """Hostile artifacts."""
    from tests.error import test_artifact

    for name in test_artifact.ATTACKS:
        with tempfile.TemporaryDirectory() as folder:
            test_artifact.test_hostile_files_are_refused_by_name(name, Path(folder))
    return ""


def json_oracle() -> str:
    """Programs that break the schema."""
    from tests.runtime import test_program_json

    for name in test_program_json.BAD:
        test_program_json.test_what_breaks_the_schema_is_refused_by_name(name)
    return ""


def verdict_oracle() -> str:
    """A promise met exactly."""
    from adaflex.runtime.verdict import Promise

    return "" if Promise("memory", "bytes", 100, 90, 100).held else "a promise met exactly is broken"


def compiled_oracle() -> str:
    """A few graphs through C++, by group, by row and by column."""
    from adaflex.codegen.cpp import ISA_FLAGS, include_folder, render
    from adaflex.native import build
    from adaflex.runtime.execute import Executor
    from tests.codegen import graphs, test_fuzz_graphs
    from tests.codegen.batched import BatchedKernels, join, supported
    from tests.codegen.lowered import program_of

    cases = [graphs.graph(seed, most=14) for seed in (10_001, 10_004, 10_008, 10_012)]
    made = [program_of(case.capture, case.weights) for case in cases]
    units = join([render(program) for program, _ in made])
    library = build(units, includes=[_headers(include_folder())], flags=ISA_FLAGS[supported()])
    for number, (case, (program, weights)) in enumerate(zip(cases, made, strict=True)):
        for threads in (1, 2):
            run = Executor(program, weights, BatchedKernels(library, threads, number), threads=threads)
            run.poison = 0xFF
            found = test_fuzz_graphs.faults(case, run, 7)
            if found:
                return found[0]
    return ""


def _headers(folder: Path) -> Path:
    """A copy of the kernel library with the fault in it."""
    copy = Path(tempfile.mkdtemp())
    for header in folder.glob("*.h"):
        text = header.read_text()
        if PLANTED and PLANTED.path == f"codegen/cpp/{header.name}":
            text = text.replace(PLANTED.old, PLANTED.new)
        (copy / header.name).write_text(text)
    return copy


ORACLES: dict[str, Callable[[], str]] = {
    "graphs": graphs_oracle,
    "found": found_oracle,
    "layout": layout_oracle,
    "lossy": lossy_oracle,
    "artifact": artifact_oracle,
    "json": json_oracle,
    "verdict": verdict_oracle,
    "compiled": compiled_oracle,
}
PLANTED: Fault | None = None


class Planter(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports the faulty module from changed text."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        module = "adaflex." + fault.path.removesuffix(".py").replace("/", ".")
        super().__init__(module, str(ROOT / fault.path))

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=self.path)

    def get_code(self, fullname: str) -> Any:  # never from a cache of the true text
        return self.source_to_code(self.get_data(self.path), self.path)

    def get_data(self, path: Any) -> bytes:
        text = (ROOT / self.fault.path).read_text()
        assert self.fault.old in text, f"{self.fault.name}: the text to replace is gone from {self.fault.path}"
        return text.replace(self.fault.old, self.fault.new).encode()


def run_fault(fault: Fault | None, oracles: tuple[str, ...]) -> str:
    """In a child: what the oracles say of the fault."""
    global PLANTED
    PLANTED = fault
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if fault is not None:
        text = (ROOT / fault.path).read_text()
        if fault.old not in text:
            return "GONE"
        if fault.path.endswith(".py"):
            sys.meta_path.insert(0, Planter(fault))
    for name in oracles:
        try:
            found = ORACLES[name]()
        except BaseException as problem:
            return f"{name}: {type(problem).__name__}: {problem}"[:300]
        if found:
            return f"{name}: {found}"[:300]
    return ""


def start(fault: Fault | None, oracles: tuple[str, ...], folder: Path, number: int) -> int:
    """Fork a child that writes its answer to a file; its id."""
    child = os.fork()
    if child == 0:
        (folder / str(number)).write_text(run_fault(fault, oracles) or "-")
        os._exit(0)
    return child


def main() -> None:
    """Run the oracles without a fault, then each fault."""
    jobs: list[tuple[str, Fault | None, tuple[str, ...]]] = [("", None, tuple(ORACLES))]
    jobs += [(fault.name, fault, fault.oracles) for fault in FAULTS]
    found: dict[str, str] = {}
    running: dict[int, tuple[str, int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (title, fault, oracles) in enumerate(jobs):
            if len(running) == PARALLEL:
                reap(running, folder, found)
            running[start(fault, oracles, folder, number)] = (title, number)
        while running:
            reap(running, folder, found)
    print(json.dumps(found))


def reap(running: dict[int, tuple[str, int]], folder: Path, found: dict[str, str]) -> None:
    """Wait for one child; one that died was caught by its own crash."""
    child, status = os.wait()
    title, number = running.pop(child)
    answer = folder / str(number)
    text = answer.read_text() if answer.exists() else f"crashed with status {status}"
    found[title] = "" if text == "-" else text


if __name__ == "__main__":
    main()
