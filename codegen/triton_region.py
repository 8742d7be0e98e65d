"""Prints a region's values as Triton: the part that row kernels and template epilogues share.

In: a ``Region``, the slots it touches, the program's symbols. Out: lines of Triton over a tile whose row numbers are
``rows``, whose column numbers are ``cols`` (shaped so that they broadcast against each other, either one first), and
whose limits are the masks ``rm`` and ``cm``. Pointers are ``p0, p1, ...`` and sizes ``s0, s1, ...`` in order of first
use, so that equal steps print equal text. Arithmetic is fp32 whatever the slots hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaflex.codegen.cpp_region import analyse
from adaflex.codegen.sizes import known
from adaflex.codegen.triton_forms import Target
from adaflex.runtime.program import ITEM_BYTES, Slot
from adaflex.runtime.region import Load, Region, Size, round_up

POINTER = {"f32": "fp32", "f16": "fp16", "bool": "u8"}  # Triton's name of a form's item, where it differs
LONG_NAME = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i64": "int64", "i32": "int32", "i16": "int16"}
LONG_NAME |= {"i8": "int8", "u8": "uint8", "bool": "uint8"}
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
LANGUAGE = {
    **{name: f"tl.{name}" for name in ("abs", "sqrt", "rsqrt", "exp", "exp2", "log", "log2", "erf", "sin", "cos")},
    **{name: f"tl.{name}" for name in ("floor", "ceil")},
    **{name: f"af.{name}" for name in ("tanh", "expm1", "log1p", "sigmoid", "gelu", "gelu_tanh", "trunc", "sign")},
    "round": "af.round_even",
    "pow": "af.power",
    "mod": "af.modulo",
    "min": "af.minimum",
    "max": "af.maximum",
}
EXTREME = {"min": "tl.minimum", "max": "tl.maximum"}
SPELLED = {
    "neg": "(-{0})",
    "recip": "(1.0 / {0})",
    "silu": "({0} * af.sigmoid({0}))",
    "relu": "af.maximum({0}, 0.0)",
    "square": "({0} * {0})",
    "not": "tl.where({0} == 0.0, 1.0, 0.0)",
    "bf16": "{0}.to(tl.bfloat16).to(tl.float32)",
    "floordiv": "tl.floor({0} / {1})",
    "and": "tl.where(({0} != 0.0) & ({1} != 0.0), 1.0, 0.0)",
    "or": "tl.where(({0} != 0.0) | ({1} != 0.0), 1.0, 0.0)",
    "select": "tl.where({0} != 0.0, {1}, {2})",
}


def item_of(slot: Slot) -> str:
    """The form of a slot's items: its own, or that of an activation form's bytes."""
    if slot.form in ITEM_BYTES:
        return slot.form
    return "bf16" if slot.form.partition("-")[0] == "bf16" else "u8"


def pointer_type(slot: Slot) -> str:
    """Triton's type of a pointer to a slot: "*fp32", "*bf16", "*u8" (bools too), ..."""
    item = item_of(slot)
    return "*" + POINTER.get(item, item)


def literal(value: float) -> str:
    """A float as Triton text."""
    if value != value:
        return 'float("nan")'
    if value in (float("inf"), float("-inf")):
        return 'float("-inf")' if value < 0 else 'float("inf")'
    return repr(float(value))


class Body:
    """Prints one region's values. ``slot_order`` and ``symbol_order`` grow as the text names them."""

    def __init__(self, region: Region, slots: Sequence[Slot]) -> None:
        self.region, self.slots = region, slots
        self.shape = analyse(region)
        self.slot_order: list[int] = []
        self.symbol_order: list[str] = []

    # ---- names ----
    def pointer(self, slot: int) -> str:
        """The argument that points to a slot."""
        if slot not in self.slot_order:
            self.slot_order.append(slot)
        return f"p{self.slot_order.index(slot)}"

    def size(self, size: Size) -> str:
        """A size as an expression over the arguments."""
        number = known(size)
        if number is not None:
            return str(number)
        if isinstance(size, str):
            if size not in self.symbol_order:
                self.symbol_order.append(size)
            return f"s{self.symbol_order.index(size)}"
        assert isinstance(size, tuple)
        operator, *parts = size
        texts = [self.size(part) for part in parts]
        if operator in ("+", "*", "//", "%"):
            return "(" + f" {operator} ".join(texts) + ")"
        if operator == "cdiv":
            return f"(({texts[0]} + {texts[1]} - 1) // {texts[1]})"
        return f"{EXTREME[operator]}({texts[0]}, {texts[1]})"

    def arguments(self) -> list[str]:
        """All arguments named so far: pointers, then sizes."""
        return [f"p{k}" for k in range(len(self.slot_order))] + [f"s{k}" for k in range(len(self.symbol_order))]

    # ---- addresses ----
    def indices(self) -> list[str]:
        """The index along each leading axis, where rows are not one axis."""
        dims, lines, rest = self.region.dims, [], "rows"
        if len(dims) == 1:
            return []
        for k in range(len(dims) - 1, 0, -1):
            lines += [f"i{k} = {rest} % {self.size(dims[k])}", f"q{k} = {rest} // {self.size(dims[k])}"]
            rest = f"q{k}"
        return [*lines, f"i0 = {rest}"]

    def _walks_rows(self, load: Load) -> bool:
        return load.gather >= 0 or any(known(stride) != 0 for stride in load.strides)

    def _row_offset(self, load: Load) -> str:
        """Offset in elements of a load's row, without what a gather adds."""
        parts = [self.size(load.offset)] if load.offset != 0 else []
        names = ["rows"] if len(self.region.dims) == 1 else [f"i{k}" for k in range(len(load.strides))]
        for name, stride in zip(names, load.strides, strict=True):
            if known(stride) != 0:
                parts.append(f"{name}.to(tl.int64) * {self.size(stride)}")
        return " + ".join(parts)

    def bases(self) -> list[str]:
        """Each load's row pointer ``x<k>`` (after ``indices``), gathers resolved."""
        lines = []
        for k, load in enumerate(self.region.loads):
            parts = [self._start(load), self._row_offset(load)]
            if load.gather >= 0:
                index = self.region.loads[load.gather]
                mask = ", mask=rm, other=0" if self._walks_rows(index) else ""
                picked = " + ".join(part for part in (self.pointer(index.slot), self._row_offset(index)) if part)
                lines.append(f"g{k} = tl.load({picked}{mask}).to(tl.int64)")
                pitch, lanes = self.size(load.pitch), load.panel
                parts.append(f"g{k} // 32 * {pitch} + g{k} % 32 * {lanes}" if lanes else f"g{k} * {pitch}")
            lines.append(f"x{k} = " + " + ".join(part for part in parts if part))
        return lines

    def _item(self, load: Load) -> str:
        return load.form or item_of(self.slots[load.slot])

    def _start(self, load: Load) -> str:
        """The slot's pointer, of the type that the load reads."""
        item, pointer = self._item(load), self.pointer(load.slot)
        if item == item_of(self.slots[load.slot]):
            return pointer
        return f"{pointer}.to(tl.pointer_type(tl.{LONG_NAME[item]}))"

    def _load(self, number: int) -> str:
        load = self.region.loads[number]
        base = f"x{number}"
        if load.inner != 0:
            base += f" + j * {self.size(load.inner)}"
        masks = ["rm"] if self._walks_rows(load) else []
        if load.column != 0:
            column = self.size(load.column)
            if load.panel:
                base += f" + cols // {load.panel} * {32 * load.panel} + cols % {load.panel}"
            else:
                base += " + cols" if column == "1" else f" + cols.to(tl.int64) * {column}"
            masks.append("cm")
        mask = f", mask={' & '.join(masks)}, other=0" if masks else ""
        loaded = f"tl.load({base}{mask})"
        if self._item(load) == "bool":
            return f"tl.where({loaded} != 0, 1.0, 0.0)"
        return f"{loaded}.to(tl.float32)"

    # ---- values ----
    def value(self, number: int) -> str:
        """The expression of value ``number`` (no reduction, no fold, not "acc") over v0, v1, ..."""
        op = self.region.ops[number]
        name, v = op.name, [f"v{a}" for a in op.args]
        if name == "load":
            return self._load(op.args[0])
        if name == "const":
            return f"tl.full((), {literal(op.value)}, tl.float32)"
        if name in ("width", "depth"):
            size = self.region.columns if name == "width" else self.region.inner
            return f"tl.full((), 0.0, tl.float32) + {self.size(size)}"
        if name == "column":
            return "cols.to(tl.float32)"
        if name in INFIX:
            return f"{v[0]} {INFIX[name]} {v[1]}"
        if name in COMPARE:
            return f"tl.where({v[0]} {COMPARE[name]} {v[1]}, 1.0, 0.0)"
        if name in SPELLED:
            return SPELLED[name].format(*v)
        if name in ("group_min", "group_max"):
            return f"af.{name}({v[0]}, {int(op.value)})"
        if name == "rotate":
            return f"af.rotate({v[0]}, {int(op.value).bit_length() - 1}, {literal(op.value**-0.5)})"
        return f"{LANGUAGE[name]}({', '.join(v)})"

    # ---- stores ----
    def store(self, target: Target) -> str:
        """Write one target's value at the tile's rows and columns."""
        slot = self.slots[target.slot]
        value = self._converted(f"v{target.value}", item_of(slot))
        place = f"{self.pointer(target.slot)} + {self._row_start(slot)}"
        if target.kind == "codes":
            padded = f"tl.where(cm, {value}, 0)"
            limit = self.size(round_up(self.region.columns, target.unit))
            return f"tl.store({place} + cols, {padded}, mask=rm & (cols < {limit}))"
        if target.kind == "tail":
            return f"tl.store({self._float_at(place, target, '')}, v{target.value}, mask=rm)"
        if target.kind == "group":
            at = self._float_at(place, target, f" + cols // {target.group} * 4")
            return f"tl.store({at}, v{target.value}, mask=rm & cm & (cols % {target.group} == 0))"
        if target.kind == "row":
            return f"tl.store({place}, {value}, mask=rm)"
        return f"tl.store({place} + cols, {value}, mask=rm & cm)"

    def _float_at(self, place: str, target: Target, column: str) -> str:
        return f"({place} + {self.size(target.offset)}{column}).to(tl.pointer_type(tl.float32))"

    def _row_start(self, slot: Slot) -> str:
        item = ITEM_BYTES[item_of(slot)]
        bytes_ = known(slot.row_bytes)
        pitch = str(bytes_ // item) if bytes_ is not None else self.size(("//", slot.row_bytes, item))
        return f"rows.to(tl.int64) * {pitch}"

    def _converted(self, value: str, item: str) -> str:
        if item == "bool":
            return f"({value} != 0.0).to(tl.uint8)"
        return {"u8": f"{value}.to(tl.uint8)", "bf16": f"{value}.to(tl.bfloat16)"}.get(item, value)
