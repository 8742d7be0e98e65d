"""Prints a whole program as one C++ unit: its steps, the loops over them, and the tables the driver walks.

In: a ``Program``. Out: C++ text for ``native.build`` with the kernel library's folder as include path. No name of the
model reaches the text: everything is called by its number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from adaflex.codegen.cpp_attention import attention_scratch, attention_text, truth
from adaflex.codegen.cpp_region import C_TYPE, Body, size_text
from adaflex.codegen.cpp_rows import RowPrinter, form_function
from adaflex.codegen.cpp_waiting import Waiting
from adaflex.codegen.cpp_windows import window_text
from adaflex.native import Common
from adaflex.runtime.program import (
    ITEM_BYTES,
    AttentionStep,
    GemmStep,
    Loop,
    Program,
    RowStep,
    Segment,
    Step,
    WindowStep,
)
from adaflex.runtime.region import evaluate

ISA_FLAGS = {
    "avx512": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512", "-DAF_AVX512"),
    "avx2": ("-march=x86-64-v3", "-DAF_AVX2"),
    "portable": ("-DAF_PORTABLE",),
}


def include_folder() -> Path:
    """Where the kernel library's headers lie."""
    return Path(str(files("adaflex.codegen") / "cpp"))


def render(program: Program) -> str:
    """The C++ text of every native step and of the segments that run them."""
    headers = sorted({step.header for step in program.steps if isinstance(step, GemmStep)})
    if any(isinstance(step, AttentionStep) for step in program.steps):
        headers.append("attention.h")
    if any(isinstance(step, WindowStep) for step in program.steps):
        headers.append("windows.h")
    lines = ['#include "driver.h"', *(f'#include "{header}"' for header in headers)]
    scratch: dict[str, None] = {}
    bodies = _Bodies()
    for number, step in enumerate(program.steps):
        lines += bodies.of_step(number, _step(program, step, scratch))
    segments = [entry for entry in program.schedule if isinstance(entry, Segment)]
    for number, segment in enumerate(segments):
        lines += _segment(program, number, segment)
    return "\n".join([*lines, *_entries(len(segments), scratch)]) + "\n"


def common(program: Program) -> Common:
    """What a program's unit shares with others': the library's headers, and the tiles of its products and attention.

    A header says what a product's tiles are by a macro AF_TILES_...; without one they are compiled in each unit.
    """
    found = {_tiles(step.function) for step in program.steps if isinstance(step, GemmStep)}
    found |= {_tiles(f"attention<{truth(step.bf16)}>") for step in program.steps if isinstance(step, AttentionStep)}
    found |= {_tiles("windows") for step in program.steps if isinstance(step, WindowStep)}
    return Common(("driver.h", "gemm.h", "attention.h", "windows.h"), tuple(sorted(found)))


def tiles_macro(function: str) -> str:
    """The macro by which a header says what the tiles of a function template are."""
    return f"AF_TILES_{function.partition('<')[0].upper()}"


def _tiles(function: str) -> tuple[str, str]:
    """What declares and what defines the tiles of a function template, given its name and arguments."""
    macro, arguments = tiles_macro(function), function.partition("<")[2].removesuffix(">")
    whole = f", {arguments}" if arguments else ""
    text = f"#ifdef {macro}\n{macro}({{}}{whole})\n#endif\n"
    return text.format("extern template"), text.format("template")


def row_scratch(program: Program, values: Mapping[str, int]) -> int:
    """Bytes of scratch that a thread needs for a program's row steps at these sizes, without building it."""
    rows = (step for step in program.steps if isinstance(step, RowStep))
    bodies = (Body(step.region, program.slots, program.symbols) for step in rows)
    return max((Waiting(body).scratch(evaluate(body.region.columns, values)) for body in bodies), default=0)


class _Bodies:
    """Functions of steps that do the same to other slots, as the layers of a model do, are printed once.

    A printed step names its slots ``t.p[12]``; a function takes the numbers of its slots as a table ``u``.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of_step(self, number: int, inside: list[str]) -> list[str]:
        """The function of a step, unless there is one already, and the entry ``step<number>`` that names it."""
        if not inside:
            return []
        places: dict[str, int] = {}
        text = _SLOT.sub(lambda found: f"slot{places.setdefault(found[1], len(places))}", "\n".join(inside))
        known = len(self._numbers)
        body = self._numbers.setdefault(text, known)
        entry = [
            f"static const int slots{number}[] = {{{', '.join(places) or '0'}}};",
            f"static const af::Step step{number} = {{body{body}, slots{number}}};",
        ]
        if body != known:
            return entry
        head = f"AF_STEP static void body{body}(const af::Call& c, af::Thread& t, const int* u, long r0, long r1) {{"
        pointers = [f"char* const slot{k} = t.p[u[{k}]];" for k in range(len(places))]
        return [head, "const long* const s = c.symbols; (void)s; (void)u;", *pointers, text, "}", *entry]


_SLOT = re.compile(r"\bt\.p\[(\d+)\]")


def _step(program: Program, step: Step, scratch: dict[str, None]) -> list[str]:
    if isinstance(step, RowStep):
        printer = RowPrinter(Body(step.region, program.slots, program.symbols))
        inside = printer.text()
        if printer.scratch_floats():
            scratch[f"4 * ({printer.scratch_floats()})"] = None
        return inside
    if isinstance(step, GemmStep):
        return _gemm(program, step)
    if isinstance(step, AttentionStep):
        scratch[attention_scratch(step, program)] = None
        return attention_text(step, program)
    if isinstance(step, WindowStep):
        return window_text(step, program)
    return []


def _gemm(program: Program, step: GemmStep) -> list[str]:
    body = Body(step.region, program.slots, program.symbols)
    stride = body.size(program.slots[step.a].row_bytes)
    parts = "".join(f", af::Any{{w + {part.offset}}}" for part in step.parts)
    lines = [
        f"const char* const w = t.p[{step.weight}];",
        f"const long n0 = af::column_share({step.n}, t.part, t.parts);",
        f"const long n1 = af::column_share({step.n}, t.part + 1, t.parts);",
        "if (n0 >= n1) return;",
        f"af::{step.function}(t.p[{step.a}] + r0 * {stride}, {stride}, r1 - r0{parts}, {step.k}L, {step.n}L, n0, n1,",
        f"[&](long row, long col, af::vf v{_accumulator(step)}, int n) AF_LAMBDA {{",
        "const long r = r0 + row; (void)r;",
        *body.indices(),
        *body.pointers(),
    ]
    for number, op in enumerate(step.region.ops):
        if op.name != "acc":
            lines.append(f"const af::vf v{number} = {body.op_text(number, 'col', 'n')};")
    for store in step.region.stores:
        slot = program.slots[store.slot]
        assert slot.form in ITEM_BYTES, form_function(slot.form)
        place = f"({C_TYPE[slot.form]}*)(t.p[{store.slot}] + r * {body.size(slot.row_bytes)}) + col"
        lines.append(f"af::st({place}, v{store.value}, n);")
    return [*lines, "});"]


def _accumulator(step: GemmStep) -> int:
    return next(number for number, op in enumerate(step.region.ops) if op.name == "acc")


def _segment(program: Program, number: int, segment: Segment) -> list[str]:
    lines: list[str] = []
    phases = []
    for i, phase in enumerate(segment.phases):
        entries = []
        for j, loop in enumerate(phase.loops):
            name = f"{number}_{i}_{j}"
            lines += _loop(program, name, loop)
            entries.append(f"{{loop{name}, rows{name}, steps{name}, splits{name}, {len(loop.steps)}}}")
        lines.append(f"static const af::LoopEntry loops{number}_{i}[] = {{{', '.join(entries)}}};")
        phases.append(f"{{loops{number}_{i}, {len(entries)}}}")
    lines.append(f"static const af::PhaseEntry phases{number}[] = {{{', '.join(phases)}}};")
    lines.append(f"static const af::SegmentEntry segment{number} = {{phases{number}, {len(phases)}}};")
    return lines


def _loop(program: Program, name: str, loop: Loop) -> list[str]:
    block_slots = sorted(
        {slot for step in loop.steps for slot in _written(program.steps[step]) if program.slots[slot].window == "block"}
    )
    rows = size_text(loop.rows, program.symbols)
    block = str(loop.block) if loop.block else "r1 - r0"
    lines = [
        f"static long rows{name}(const long* s) {{ (void)s; return {rows}; }}",
        f"static void loop{name}(const af::Call& c, af::Thread& t, long r0, long r1) {{",
        "t.part = 0; t.parts = 1;",
        f"for (long b = r0; b < r1; b += {block}) {{",
        f"const long e = b + {block} < r1 ? b + {block} : r1;",
        *(f"if (c.window[{slot}] == af::BLOCK) af::rebase_block(c, t, {slot}, b);" for slot in block_slots),
        *(f"step{step}.run(c, t, step{step}.slots, b, e);" for step in loop.steps),
        "}",
        "}",
    ]
    steps = ", ".join(f"step{step}" for step in loop.steps)
    splits = ", ".join("1" if isinstance(program.steps[step], GemmStep) else "0" for step in loop.steps)
    return [
        *lines,
        f"static const af::Step steps{name}[] = {{{steps}}};",
        f"static const char splits{name}[] = {{{splits}}};",
    ]


def _written(step: Step) -> tuple[int, ...]:
    if isinstance(step, RowStep | GemmStep):
        return tuple(store.slot for store in step.region.stores)
    if isinstance(step, WindowStep):
        return (step.out,)
    return (step.out.slot,) if isinstance(step, AttentionStep) else ()


def _entries(segments: int, scratch: Mapping[str, None]) -> list[str]:
    cases = [f"case {k}: return af::run_segment(segment{k}, call);" for k in range(segments)]
    return [
        'extern "C" int adaflex_segment(int k, const af::Call* call) {',
        "switch (k) {",
        *cases,
        "}",
        "return 2;",
        "}",
        'extern "C" long adaflex_scratch(const long* s) {',
        "long most = 64; (void)s;",
        *(f"most = af::size_max(most, {text});" for text in scratch),
        "return most;",
        "}",
        'extern "C" void* adaflex_team(int threads) { return new af::Team(threads); }',
        'extern "C" void adaflex_team_free(void* team) { delete static_cast<af::Team*>(team); }',
    ]
