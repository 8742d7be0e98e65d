"""Prints a whole program for the GPU: row steps and the epilogues of its products as one Triton module.

In: a ``Program``. Out: ``Source``: the text, and for each step the kernels that run it. Equal texts are printed once,
under names from a counter; no name of the model reaches the text.

Every product gets a "finish" kernel: the epilogue over sums that lie in the workspace as fp32 [parts, rows, N]. An
int4 product also gets its template twice (matrix unit, and few rows), with the epilogue spliced in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files

from adaflex.codegen.triton_build import HEAD
from adaflex.codegen.triton_forms import legalise
from adaflex.codegen.triton_region import Body
from adaflex.codegen.triton_rows import Kernel, print_rows
from adaflex.runtime.program import GemmStep, Program, RowStep, Slot
from adaflex.runtime.region import Load, Op, Region, Size, Store, product, times

PARTS = "parts"  # symbol of the finish kernels: how many partial sums there are
IMPORTS = (
    "from adaflex.codegen.triton_templates.w4_gemm import half_product\n"
    "from adaflex.codegen.triton_templates.w4_gemv import half_sums\n"
)


@dataclass(frozen=True)
class Named:
    """A row kernel under its name."""

    name: str
    kernel: Kernel


@dataclass(frozen=True)
class Product:
    """The kernels of a product: ``finish`` after partial sums or a library's; templates where it is int4."""

    finish: Named
    gemm: str = ""
    gemv: str = ""
    slots: tuple[int, ...] = ()  # arguments of the templates' epilogue
    symbols: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A printed program. Steps without an entry are not ours to run."""

    text: str
    rows: dict[int, tuple[Named, ...]]
    products: dict[int, Product]


def render(program: Program) -> Source:
    """The Triton text of every row step and product of ``program``."""
    writer = _Writer()
    rows: dict[int, tuple[Named, ...]] = {}
    products: dict[int, Product] = {}
    for number, step in enumerate(program.steps):
        if isinstance(step, RowStep):
            rows[number] = tuple(writer.named(kernel) for kernel in print_rows(step.region, program.slots))
        elif isinstance(step, GemmStep):
            products[number] = _product(writer, step, program.slots)
    head = HEAD + (IMPORTS if any(entry.gemm for entry in products.values()) else "")
    return Source(head + "".join("\n\n" + text for text in writer.texts), rows, products)


def is_int4(step: GemmStep) -> bool:
    """Do the int4 templates serve this product (weight-only, 16-bit activations)?"""
    return step.function.startswith("gemm_w4<")


@dataclass
class _Writer:
    """Texts so far, and the name each body was given."""

    texts: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, text: str) -> str:
        """The name of a kernel whose text says KERNEL where its name belongs."""
        if text not in self.names:
            self.names[text] = f"k{len(self.names)}"
            self.texts.append(text.replace("KERNEL", self.names[text]))
        return self.names[text]

    def named(self, kernel: Kernel) -> Named:
        """A row kernel's name."""
        return Named(self.add(kernel.text("KERNEL")), kernel)


def _product(writer: _Writer, step: GemmStep, slots: Sequence[Slot]) -> Product:
    workspace = Slot("local", "f32", 1, step.n, 4 * step.n)
    summed = after_sums(step.region, len(slots), step.n)
    (kernel,) = print_rows(summed, (*slots, workspace))
    finish = writer.named(kernel)
    if not is_int4(step):
        return Product(finish)
    lines, body = epilogue(step.region, slots)
    names = [writer.add(splice(template, lines, body.arguments())) for template in ("w4_gemm", "w4_gemv")]
    return Product(finish, names[0], names[1], tuple(body.slot_order), tuple(body.symbol_order))


def epilogue(region: Region, slots: Sequence[Slot]) -> tuple[list[str], Body]:
    """Lines that store a template's result: ``sums`` or ``total`` is the value "acc", named RESULT here."""
    legal, targets = legalise(region, slots)
    body = Body(legal, slots)
    lines = [*body.indices(), *body.bases()]
    for number, op in enumerate(legal.ops):
        lines.append(f"v{number} = {'RESULT' if op.name == 'acc' else body.value(number)}")
    return lines + [body.store(target) for target in targets], body


def splice(template: str, lines: Sequence[str], arguments: Sequence[str]) -> str:
    """A template's kernel with an epilogue and its arguments in their places; its name is still KERNEL."""
    text = (files("adaflex.codegen") / "triton_templates" / f"{template}.py").read_text()
    head, _, tail = text.partition("\ndef KERNEL(")
    kernel = head[head.rindex("@triton.jit") :] + "\ndef KERNEL(" + tail
    kernel = kernel.replace("ARGUMENTS,", "".join(f"{name}, " for name in arguments).rstrip())
    result = "sums" if template == "w4_gemm" else "total"
    indented = "\n        ".join(lines).replace("RESULT", result)
    return kernel.replace("EPILOGUE", indented)


def after_sums(region: Region, slot: int, columns: Size) -> Region:
    """An epilogue as a row region: "acc" is the sum over partial results fp32 [parts, rows, columns] in ``slot``."""
    rows = product(region.dims)
    strides = tuple(times(product(region.dims[axis + 1 :]), columns) for axis in range(len(region.dims)))
    load = Load(slot, strides, 1, inner=times(rows, columns))
    place = next((number for number, op in enumerate(region.ops) if op.name == "acc"), -1)
    moved = {number: number + 2 for number in range(len(region.ops))} | {place: 1}
    ops = [Op("load", (len(region.loads),)), Op("fold_sum", (0,))]
    for op in region.ops:
        if op.name == "acc":
            op = Op("depth")  # keeps the numbers of what follows; nothing reads it
        ops.append(op if op.name == "load" else replace(op, args=tuple(moved[a] for a in op.args)))
    stores = tuple(Store(moved[store.value], store.slot) for store in region.stores)
    return Region(region.dims, region.columns, (*region.loads, load), tuple(ops), stores, PARTS)
