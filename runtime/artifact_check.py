"""Checks that a program read from a file refers only to what exists and calls only what may be called.

In: a ``Program`` of the right schema, the bytes of its constants, what the kernel library holds. Out: nothing, or
``ArtifactError`` naming the first fault. Whether reads stay inside their slots depends on sizes: see runtime/bounds.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from adaflex.errors import ArtifactError
from adaflex.runtime.extents import fault
from adaflex.runtime.layout import read, touched, written
from adaflex.runtime.library import resolve
from adaflex.runtime.program import (
    ITEM_BYTES,
    Argument,
    AttentionStep,
    GemmStep,
    LibraryStep,
    Operand,
    Program,
    RowStep,
    Segment,
    Step,
    WindowStep,
)
from adaflex.runtime.region import BINARY, FOLD, PANELS, REDUCE, TERNARY, UNARY, Region, Size
from adaflex.runtime.streaming_check import check_streamed

ALIGNMENT = 64
FUNCTION = re.compile(r"[a-z0-9_]+(<[0-9, a-z]+>)?")
HEADER = re.compile(r"[a-z0-9_]+\.h")
SYMBOL = re.compile(r"[a-z][a-z0-9_]{0,30}")
FORM = re.compile(r"(u8t|u8g(32|64|128)|bf16)(-h(64|128))?")
TIERS = ("memory", "disk")
MOST_TAPS = 1 << 16  # of a window
ARITY = {
    **dict.fromkeys((*UNARY, *REDUCE, *FOLD, "load"), 1),
    **dict.fromkeys(BINARY, 2),
    **dict.fromkeys(TERNARY, 3),
    **dict.fromkeys(("const", "acc", "column", "width", "depth"), 0),
}


NATIVE_FORMS = ("f32", "bf16", "f16", "i64", "i32", "i8", "u8", "bool")  # that generated code loads and stores
FLOATS = ("f32", "bf16", "f16")
EPILOGUE = (*FLOATS, "bool")  # that the region of a product stores

# (function, N, K) -> (activation form, ((part, bytes), ...)), None where the library has no such product
Products = Callable[[str, int, int], tuple[str, tuple[tuple[str, int], ...]] | None]


@dataclass(frozen=True)
class KernelLibrary:
    """What programs may call: file names of the library's headers, and what each product reads."""

    headers: Collection[str]
    product: Products


def check_program(program: Program, weight_bytes: int, library: KernelLibrary, streamed_bytes: int = 0) -> None:
    """Raise ``ArtifactError`` where the program is not sound."""
    _check_tables(program)
    _check_constants(program, "memory", weight_bytes)
    _check_constants(program, "disk", streamed_bytes)
    for number in range(len(program.slots)):
        _check_slot(program, number)
    for number, step in enumerate(program.steps):
        where = f"step {number}"
        for slot in touched(step):
            _in_range(slot, len(program.slots), f"a slot of {where}")
        _check_written(program, step, where)
        if isinstance(step, RowStep):
            _check_region(step.region, where, template=False)
            _check_forms(program, step.region, where, NATIVE_FORMS)
        elif isinstance(step, GemmStep):
            _check_gemm(program, step, where, library)
        elif isinstance(step, AttentionStep):
            _check_attention(program, step, where)
        elif isinstance(step, WindowStep):
            _check_windows(program, step, where)
        else:
            _check_library(program, step, where)
    _check_order(program, _check_schedule(program))
    check_streamed(program, streamed_bytes)
    for name in _symbols_used(program):
        if name not in program.symbols:
            raise ArtifactError(
                f"the program uses the size '{name:.40}', which it does not declare; the file is damaged"
            )


def _in_range(value: int, end: int, what: str, low: int = 0) -> None:
    if not low <= value < end:
        raise fault(f"{what} is number {value} of {end}")


def _check_tables(program: Program) -> None:
    count = len(program.symbols)
    if len(set(program.symbols)) != count or not all(SYMBOL.fullmatch(name) for name in program.symbols):
        raise fault("the names of the program's sizes are malformed")
    if len(program.sources) != count or any(len(t) not in (0, count) for t in (program.ranges, program.hints)):
        raise fault("sources, ranges and hints do not have one entry per size")
    if len(program.input_names) != len(program.inputs):
        raise fault("inputs and their names differ in number")
    for slot in (*(slot for slot in program.inputs if slot >= 0), *program.outputs):
        _in_range(slot, len(program.slots), "a slot of inputs or outputs")
    for index, axis in program.sources:
        _in_range(index, len(program.inputs), "the input that gives a size", -1)
        slot = program.inputs[index] if index >= 0 else -1
        if axis >= 0 and (slot < 0 or axis >= len(program.slots[slot].shape)):
            raise fault(f"a size is read from axis {axis} of input {index}, which has no such axis")
    if any(program.slots[slot].kind != "input" for slot in program.inputs if slot >= 0):
        raise fault("an input is not stored in an input slot")
    if any(program.slots[slot].kind not in ("output", "value") for slot in program.outputs):
        raise fault("an output is stored where the caller cannot get it")


def _check_constants(program: Program, tier: str, weight_bytes: int) -> None:
    end = 0
    for number, constant in sorted(enumerate(program.constants), key=lambda item: item[1].offset):
        if constant.tier not in TIERS:
            raise fault(f"constant {number} lies on the unknown tier '{constant.tier:.20}'")
        if constant.tier != tier:
            continue
        where = f"constant {number}"
        if constant.offset % ALIGNMENT or constant.offset < end:
            raise fault(f"{where} at byte {constant.offset} is not aligned to {ALIGNMENT} or overlaps another")
        end = constant.offset + constant.size_bytes
        if end > weight_bytes:
            raise fault(f"{where} ends at byte {end} of {weight_bytes}")
        plain = ITEM_BYTES.get(constant.form)
        if plain is not None and plain * math.prod(constant.shape) != constant.size_bytes:
            raise fault(
                f"{where} of {constant.size_bytes} bytes is said to hold {constant.form} {list(constant.shape)}"
            )


def _check_slot(program: Program, number: int) -> None:
    slot, where = program.slots[number], f"slot {number}"
    if slot.form not in ITEM_BYTES and not FORM.fullmatch(slot.form):
        raise fault(f"{where} has the unknown form '{slot.form:.40}'")
    if (slot.kind == "constant") != (slot.constant >= 0):
        raise fault(f"{where} of kind '{slot.kind}' names constant {slot.constant}")
    if slot.kind in ("input", "output", "value") and slot.form not in ITEM_BYTES:
        raise fault(f"{where} holds a tensor in the form '{slot.form}', which is none of a tensor")
    if slot.kind != "constant":
        return
    _in_range(slot.constant, len(program.constants), f"the constant of {where}")
    held = program.constants[slot.constant].size_bytes
    sizes = (slot.rows, slot.columns, slot.row_bytes)
    if not all(isinstance(size, int) for size in (*sizes, *slot.shape)):
        raise fault(f"{where} holds a constant but has no fixed size")
    rows, _, row_bytes = (int(size) for size in sizes if isinstance(size, int))
    item = ITEM_BYTES.get(slot.form, 1)
    if rows * row_bytes > held or (slot.shape and math.prod(map(int, slot.shape)) * item > held):  # type: ignore[arg-type]
        raise fault(f"{where} reaches beyond the {held} bytes of constant {slot.constant}")


def _check_written(program: Program, step: Step, where: str) -> None:
    """Native steps write to memory of our own and outputs; library steps return tensors; nobody writes the rest."""
    kinds = ("value",) if isinstance(step, LibraryStep) else ("local", "output")
    for slot in written(step):
        if program.slots[slot].kind not in kinds:
            raise fault(f"{where} writes to slot {slot}, which is of kind '{program.slots[slot].kind}'")


def _check_region(region: Region, where: str, template: bool) -> None:
    folds = [op for op in region.ops if op.name in FOLD]
    for number, op in enumerate(region.ops):
        if len(op.args) != ARITY[op.name]:
            raise fault(f"op {number} ('{op.name}') of {where} has {len(op.args)} operands")
        end = len(region.loads) if op.name == "load" else number
        for argument in op.args:
            _in_range(argument, end, f"an operand of op {number} of {where}")
    names = {op.name for op in region.ops}
    if template != ("acc" in names) or (template and names & {*REDUCE, *FOLD}):
        raise fault(f"the region of {where} uses or lacks the result of a product, or reduces it")
    if region.inner != 1 and (not folds or names & {*REDUCE}):
        raise fault(f"the region of {where} has an inner axis that nothing folds")
    if not region.dims or not region.stores:
        raise fault(f"the region of {where} has no rows or stores nothing")
    for load in region.loads:
        _in_range(load.gather, len(region.loads), f"a gather of {where}", -1)
        if len(load.strides) != len(region.dims):
            raise fault(f"a load of {where} has {len(load.strides)} strides over {len(region.dims)} axes")
        if load.gather >= 0 and region.loads[load.gather].gather >= 0:
            raise fault(f"a load of {where} picks its rows by a load that picks its rows")
        if load.inner != 0 and region.inner == 1:
            raise fault(f"a load of {where} walks an inner axis, and there is none")
        if load.gather >= 0 and load.choices == 0:
            raise fault(f"a load of {where} picks rows without saying how many there are")
        if load.panel not in PANELS or (load.panel and (load.gather < 0 or load.column != 1 or load.inner != 0)):
            raise fault(f"a load of {where} walks panels in a way that no kernel does")
    for store in region.stores:
        _in_range(store.value, len(region.ops), f"a store of {where}")


def _check_forms(program: Program, region: Region, where: str, stored: Collection[str]) -> None:
    """Generated code reads and writes the dtypes it has words for; row steps also write activation forms."""
    for load in region.loads:
        form = program.slots[load.slot].form
        if form not in NATIVE_FORMS or (load.form or form) not in NATIVE_FORMS:
            raise fault(f"{where} reads slot {load.slot}, which holds '{form}', as '{load.form or form}'")
    for store in region.stores:
        form = program.slots[store.slot].form
        if form not in stored and (stored is EPILOGUE or form in ITEM_BYTES):
            raise fault(f"{where} writes to slot {store.slot}, which holds '{form}'")


def _check_gemm(program: Program, step: GemmStep, where: str, library: KernelLibrary) -> None:
    if not FUNCTION.fullmatch(step.function):
        raise fault(f"{where} calls '{step.function:.60}', which is no name of a kernel")
    if not HEADER.fullmatch(step.header) or step.header not in library.headers:
        raise ArtifactError(f"{where} needs the kernel file '{step.header:.60}', which this AdaFlex lacks; update it")
    reads = library.product(step.function, step.n, step.k)
    if reads is None:
        raise ArtifactError(f"{where} needs the kernel '{step.function}', which this AdaFlex lacks; update it")
    slot, form = program.slots[step.weight], program.slots[step.a].form
    if slot.kind != "constant":
        raise fault(f"the weight of {where} is no constant")
    if form.partition("-")[0] != reads[0]:
        raise fault(f"{where} multiplies slot {step.a}, which holds '{form}', and its kernel reads '{reads[0]}'")
    held = int(slot.rows) * int(slot.row_bytes)  # type: ignore[arg-type]  # fixed and within its constant: _check_slot
    if [part.name for part in step.parts] != [name for name, _ in reads[1]]:
        raise fault(f"{where} gives its kernel other parts than it takes")
    for part, (_, size) in zip(step.parts, reads[1], strict=True):
        if part.offset % ALIGNMENT or part.offset + size > held:
            raise fault(
                f"part '{part.name:.20}' of {where} begins at byte {part.offset} of {held}, or is not aligned; "
                f"{size} bytes of it are read"
            )
    _check_region(step.region, where, template=True)
    _check_forms(program, step.region, where, EPILOGUE)


def _check_attention(program: Program, step: AttentionStep, where: str) -> None:
    given = [step.q, step.k, step.v, step.out, *([step.mask] if step.mask is not None else [])]
    if any(len(operand.strides) != 4 for operand in given):
        raise fault(f"an operand of {where} does not have four axes")
    for operand in given:
        form = program.slots[operand.slot].form
        if form not in FLOATS and (operand is not step.mask or form != "bool"):
            raise fault(f"an operand of {where} lies in slot {operand.slot}, which holds '{form}'")


def _check_windows(program: Program, step: WindowStep, where: str) -> None:
    if len(step.x.strides) != 4:
        raise fault(f"the images of {where} do not have four axes")
    for slot in touched(step):
        if program.slots[slot].form != "f32":
            raise fault(f"an operand of {where} lies in slot {slot}, which holds '{program.slots[slot].form}'")
    if step.taps > MOST_TAPS:
        raise fault(f"{where} has windows of {step.taps} taps")
    if (step.kind == "depthwise") != (step.weight >= 0):
        raise fault(f"{where} makes '{step.kind}' of its taps and names slot {step.weight} for their weights")
    if step.weight < 0:
        return
    weight = program.slots[step.weight]
    if weight.kind != "constant":
        raise fault(f"the weight of {where} is no constant")
    held = int(weight.rows) * int(weight.row_bytes)  # type: ignore[arg-type]  # fixed, within its constant: _check_slot
    if held != step.taps * step.channels * ITEM_BYTES["f32"]:
        raise fault(f"{where} weighs {step.taps} taps of {step.channels} channels by a constant of {held} bytes")


def _check_library(program: Program, step: LibraryStep, where: str) -> None:
    resolve(step.op)
    for argument in arguments(step):
        needs_slot = argument.kind == "slot"
        if needs_slot != (argument.slot >= 0):
            raise fault(f"an argument of {where} of kind '{argument.kind}' names slot {argument.slot}")
        if needs_slot and program.slots[argument.slot].form not in ITEM_BYTES:
            raise fault(f"{where} takes slot {argument.slot}, which holds no tensor")
        if argument.view is None:
            continue
        if len(argument.view.strides) != len(argument.shape) or argument.view.slot != argument.slot:
            raise fault(f"a view of {where} does not have one stride per size, or is of another slot")


def arguments(step: LibraryStep) -> Iterator[Argument]:
    """All arguments of a library step, those inside lists included."""
    stack = [*step.args, *(value for _, value in step.kwargs)]
    while stack:
        argument = stack.pop()
        stack.extend(argument.items)
        yield argument


def _check_order(program: Program, order: list[int]) -> None:
    """What a step reads was given or written before it."""
    given = {slot for slot in program.inputs if slot >= 0}
    known = {number for number, slot in enumerate(program.slots) if slot.kind == "constant"} | given
    for number in order:
        step = program.steps[number]
        made = written(step)
        for slot in read(step):
            if slot not in known:
                raise fault(f"step {number} reads slot {slot}, which nothing before it has written")
        for slot in made:
            if program.slots[slot].kind == "output" and slot not in program.outputs:
                raise fault(f"step {number} writes to slot {slot}, which is no output of the program")
            known.add(slot)
    for slot in program.outputs:
        if slot not in known:
            raise fault(f"slot {slot} is an output and no step writes to it")


def _check_schedule(program: Program) -> list[int]:
    """The steps in the order in which they run."""
    seen: list[int] = []
    for place, entry in enumerate(program.schedule):
        library = isinstance(entry, int)
        steps = [entry] if isinstance(entry, int) else [s for p in entry.phases for l in p.loops for s in l.steps]
        for step in steps:
            _in_range(step, len(program.steps), f"a step of schedule entry {place}")
            if isinstance(program.steps[step], LibraryStep) != library:
                raise fault(f"schedule entry {place} runs step {step} in the wrong way")
        if isinstance(entry, Segment) and not steps:
            raise fault(f"schedule entry {place} runs nothing")
        seen += steps
    if sorted(seen) != list(range(len(program.steps))):
        raise fault("the schedule does not run every step exactly once")
    return seen


def _symbols_used(program: Program) -> set[str]:
    found: set[str] = set()
    for size in _sizes(program):
        stack: list[Size] = [size]
        while stack:
            top = stack.pop()
            if isinstance(top, str):
                found.add(top)
            elif isinstance(top, tuple):
                stack.extend(top[1:])
    return found


def _sizes(program: Program) -> Iterator[Size]:
    for slot in program.slots:
        yield from (slot.rows, slot.columns, slot.row_bytes, *slot.shape)
    yield from (size for _, *sides in program.guards for size in sides)
    for step in program.steps:
        if isinstance(step, RowStep | GemmStep):
            yield from _region_sizes(step.region)
        elif isinstance(step, AttentionStep):
            yield from (step.batch, step.heads, step.kv_heads, step.queries, step.keys)
            for operand in (step.q, step.k, step.v, step.out, step.mask):
                yield from _operand_sizes(operand)
        elif isinstance(step, WindowStep):
            yield from (step.batch, step.height, step.width, *_operand_sizes(step.x))
        else:
            for argument in arguments(step):
                yield from (argument.size, *argument.shape, *_operand_sizes(argument.view))
    for entry in program.schedule:
        if isinstance(entry, Segment):
            yield entry.groups
            yield from (loop.rows for phase in entry.phases for loop in phase.loops)


def _operand_sizes(operand: Operand | None) -> Iterator[Size]:
    if operand is not None:
        yield from (*operand.strides, operand.offset)


def _region_sizes(region: Region) -> Iterator[Size]:
    yield from (*region.dims, region.columns, region.inner)
    for load in region.loads:
        yield from (*load.strides, load.column, load.offset, load.inner, load.pitch, load.choices)
