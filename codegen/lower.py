"""Lowers a captured graph under a plan's choices to a draft: slots, steps, and which constants they need.

In: a ``Capture`` and an ``Assignment`` for each weight that the plan decides. Out: a ``Draft``.

Every tensor that is written has a base node; what only looks at it is a view. A base can be stored more than once:
plain, and in each activation form that a product reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from adaflex.codegen import library
from adaflex.codegen.classify import FORMS, Linear, linear_of, op_name, tensor
from adaflex.codegen.draft import Assignment, ConstantUse, Draft, Read, StepRows, form_row_bytes, packed_form
from adaflex.codegen.fuse import Fuser, Unit
from adaflex.codegen.gather import gather
from adaflex.codegen.lower_attention import attention_views, lower_attention, products_are_bf16
from adaflex.codegen.lower_windows import lower_windows
from adaflex.codegen.regions import RegionBuilder, build_nodes, fold_value, reads_of
from adaflex.codegen.scalar_ops import Value
from adaflex.codegen.sizes import known, same
from adaflex.codegen.view_graph import ViewGraph
from adaflex.codegen.views import View, is_contiguous, is_whole
from adaflex.errors import CaptureError
from adaflex.passes.capture import Capture
from adaflex.runtime.program import ITEM_BYTES, GemmStep, Part, RowStep, Slot, Step
from adaflex.runtime.region import Size, Store, product, times

PLAIN = "plain"


def lower(capture: Capture, assignments: Mapping[str, Assignment]) -> Draft:
    """Lower ``capture``; ``assignments`` maps the placeholder of each decided weight to what was decided.

    Raises ``CaptureError`` where an output is no tensor.
    """
    return Lowering(capture, assignments).run()


class Lowering:
    """The draft in the making."""

    def __init__(self, capture: Capture, assignments: Mapping[str, Assignment]) -> None:
        self.capture, self.assignments = capture, assignments
        self.constant_names = {constant.node for constant in capture.constants}
        for node in capture.graph.graph.nodes:
            if node.op == "placeholder" and node.name in self.constant_names:
                node.meta["constant"] = True
                node.meta["decided"] = node.name in assignments
        self.views = ViewGraph(capture)
        fuser = Fuser(capture.graph.graph, capture.sizes, self.views.base_of)
        self.units = fuser.run()
        self.unit_of = fuser.unit_of
        self.slots: list[Slot] = []
        self.steps: list[Step] = []
        self.walks: list[StepRows | None] = []
        self.reads: list[tuple[Read, ...]] = []
        self.constants: list[ConstantUse] = []
        self.stored: dict[tuple[fx.Node, str], int] = {}
        self.formed: dict[tuple[View, str], int] = {}
        self.demands: dict[fx.Node, list[str]] = {}

    def run(self) -> Draft:
        """Slots for the inputs, then every unit's steps, then the outputs."""
        for unit in self.units:
            self._demand(unit)
        outputs = self._output_nodes()
        for node in outputs:
            self._want(self.views.base_of(node), PLAIN)
        inputs = [self._input(node) for node in self._input_nodes()]
        self._claim_outputs(outputs)
        for unit in self.units:
            self._unit(unit)
        slots = tuple(self._output(node, outputs.index(node) != place) for place, node in enumerate(outputs))
        symbols = self.capture.symbols
        return Draft(
            symbols=tuple(symbol.name for symbol in symbols),
            sources=tuple(_source(symbol.source) for symbol in symbols),
            inputs=tuple(inputs),
            input_names=tuple(entry.name for entry in self.capture.inputs),
            outputs=slots,
            slots=tuple(self.slots),
            constants=tuple(self.constants),
            steps=tuple(self.steps),
            walks=tuple(self.walks),
            reads=tuple(self.reads),
            ranges=tuple((symbol.low or 0, symbol.high or 0) for symbol in symbols),
            hints=tuple(symbol.hint or 0 for symbol in symbols),
            guards=self.capture.guards,
        )

    # ---- what is asked of each base ----
    def _want(self, base: fx.Node, kind: str) -> None:
        kinds = self.demands.setdefault(base, [])
        if kind not in kinds:
            kinds.append(kind)

    def _demand(self, unit: Unit) -> None:
        for node in unit.nodes:
            if unit.kind == "linear" and node is unit.nodes[0]:
                parts = self._linear(node)
                self._want_form(parts.x, self.assignments[parts.weight.name].form)
                others = [parts.bias] if parts.bias is not None else []
            elif unit.kind == "attention":
                for operand in attention_views(node):
                    base = self.views.base_of(operand)
                    self._want(base, "bf16" if self._bf16(node) and self.unpadded(base) else PLAIN)
                others = [a for a in node.all_input_nodes if a not in attention_views(node)]
            elif op_name(node) == "embedding":
                others = [node.args[1]]  # type: ignore[list-item]
            else:
                others = node.all_input_nodes
            for argument in others:
                base = self.views.base_of(argument)
                if self.unit_of.get(base) is not unit and tensor(base) is not None:
                    self._want(base, PLAIN)

    def _want_form(self, x: fx.Node, form: str) -> None:
        """The producer stores the form itself where it can; else it stores plain and a step of its own converts."""
        view = self.views.of(x)
        unit = self.unit_of.get(view.node)
        form = PLAIN if form == "f32" else form
        if unit is not None and self._is_flat(view) and self._can_store(unit, form, self._columns(view.node)):
            self._want(view.node, form)
        else:
            self._want(view.node, PLAIN)

    def _is_flat(self, view: View) -> bool:
        """Does the view show its base's rows as they lie in memory, all of them?"""
        rows, columns = self.views.physical(view.node)
        whole = is_contiguous(view) and view.offset == 0 and same(product(view.shape), times(rows, columns))
        return whole and len(view.shape) > 0 and same(view.shape[-1], columns)

    def _can_store(self, unit: Unit, form: str, columns: Size) -> bool:
        if unit.kind == "rows" or form == PLAIN:
            return True
        width = known(columns)
        return unit.kind in ("linear", "attention") and form == "bf16" and width is not None and width % 32 == 0

    def unpadded(self, base: fx.Node) -> bool:
        """Do rows of bf16 follow each other without padding, as attention walks them?"""
        return (known(self._columns(base)) or 1) % 32 == 0

    def _bf16(self, node: fx.Node) -> bool:
        return products_are_bf16(node, {n: a.encoding.family for n, a in self.assignments.items()})

    def unit_kind(self, base: fx.Node) -> str:
        """The kind of the unit that computes ``base``; "" for inputs and constants."""
        unit = self.unit_of.get(base)
        return "" if unit is None else unit.kind

    # ---- slots ----
    def _columns(self, base: fx.Node) -> Size:
        return self.views.physical(base)[1]

    def _slot(self, slot: Slot) -> int:
        self.slots.append(slot)
        return len(self.slots) - 1

    def _new(self, base: fx.Node, kind: str, home: str = "local") -> int:
        """A slot for ``base`` in a kind ("plain" or an activation form)."""
        key = (base, kind)
        if key not in self.stored:
            value = tensor(base)
            assert value is not None
            form = FORMS[value.dtype] if kind == PLAIN else kind
            rows, columns = self.views.physical(base)
            width = (
                form_row_bytes(form, columns, ITEM_BYTES[form]) if kind == PLAIN else form_row_bytes(form, columns, 2)
            )
            if kind == PLAIN and form == "bf16":
                width = form_row_bytes("bf16-plain", columns, 2)
            shape = self.capture.sizes(base) if kind == PLAIN else ()
            self.stored[key] = self._slot(Slot(home, form, rows, columns, width, shape, scalar=value.dim() == 0))
        return self.stored[key]

    def plain(self, base: fx.Node) -> int:
        """The slot of a base's plain tensor (of a constant: made on first use)."""
        if base.name in self.constant_names and (base, PLAIN) not in self.stored:
            number = len(self.constants)
            value = tensor(base)
            assert value is not None
            slot = self._new(base, PLAIN, "constant")
            shape = tuple(int(size) for size in value.shape)
            count = 1
            for size in shape:
                count *= size
            form = FORMS[value.dtype]
            self.constants.append(ConstantUse(base.name, None, False, count * ITEM_BYTES[form], form, shape))
            self.slots[slot] = replace(self.slots[slot], constant=number)
        return self.stored[(base, PLAIN)]

    def packed(self, weight: fx.Node, transposed: bool) -> int:
        """The slot of a weight as its encoding stores it."""
        key = (weight, f"packed{transposed}")
        if key not in self.stored:
            choice = self.assignments[weight.name]
            value = tensor(weight)
            assert value is not None
            shape = tuple(int(size) for size in value.shape)
            number = len(self.constants)
            self.constants.append(
                ConstantUse(
                    weight.name, choice.encoding, transposed, choice.size_bytes, packed_form(choice.encoding), shape
                )
            )
            self.stored[key] = self._slot(
                Slot("constant", "u8", 1, choice.size_bytes, choice.size_bytes, constant=number)
            )
        return self.stored[key]

    # ---- inputs and outputs ----
    def _input_nodes(self) -> list[fx.Node]:
        nodes = [node for node in self.capture.graph.graph.nodes if node.op == "placeholder"]
        return nodes[len(self.capture.constants) :]

    def _input(self, node: fx.Node) -> int:
        return self._new(node, PLAIN, "input") if tensor(node) is not None else -1

    def _output_nodes(self) -> list[fx.Node]:
        (out,) = (node for node in self.capture.graph.graph.nodes if node.op == "output")
        given = out.args[0] if isinstance(out.args[0], list | tuple) else [out.args[0]]
        return [node for node in given if isinstance(node, fx.Node) and tensor(node) is not None]

    def _claim_outputs(self, outputs: list[fx.Node]) -> None:
        """Outputs that are a whole base of our own are stored where the caller gets them."""
        for node in outputs:
            view = self.views.of(node)
            unit = self.unit_of.get(view.node)
            own = unit is not None and unit.kind in ("rows", "fold", "linear", "window", "copy")
            if own and is_whole(view, self.capture.sizes(view.node)) and (view.node, PLAIN) not in self.stored:
                slot = self._new(view.node, PLAIN, "output")
                self.slots[slot] = replace(self.slots[slot], shape=view.shape)

    def _output(self, node: fx.Node, repeated: bool) -> int:
        view = self.views.of(node)
        slot = self.plain(view.node)
        entry = self.slots[slot]
        whole = is_whole(view, entry.shape) and _same_shape(entry.shape, view.shape)
        if entry.kind in ("output", "value") and whole and not repeated:
            return slot
        step, made = library.clone(self, view)
        self.add(step, None, (Read(slot, False, False),))
        return made

    # ---- steps ----
    def add(self, step: Step, walk: StepRows | None, reads: tuple[Read, ...]) -> None:
        """Append a step."""
        self.steps.append(step)
        self.walks.append(walk)
        self.reads.append(reads)

    def _unit(self, unit: Unit) -> None:
        if unit.kind == "rows":
            self._rows(unit)
        elif unit.kind == "fold":
            self._fold(unit)
        elif unit.kind == "linear":
            self._gemm(unit)
        elif unit.kind == "attention":
            lower_attention(self, unit.nodes[0], self._bf16(unit.nodes[0]))
        elif unit.kind == "window":
            lower_windows(self, unit.nodes[0])
        elif unit.kind == "copy":
            self._copy(unit.nodes[0])
        else:
            library.lower(self, unit.nodes[0])

    def _operand(self, builder: RegionBuilder, node: fx.Node, inner_axis: int = -1) -> Value:
        view = self.views.of(node)
        if view.node in builder.values:  # a value of the region's own rows, expanded over its columns
            return builder.values[view.node]
        return builder.view(view, self.plain(view.node), inner_axis)

    def _rows(self, unit: Unit) -> None:
        builder = RegionBuilder(unit.space[:-1], unit.space[-1])
        for node in unit.nodes:
            if op_name(node) == "embedding":
                builder.values[node] = gather(self, builder, node)
        build_nodes(builder, unit, lambda node: self._operand(builder, node))
        stores = [
            Store(builder.values[node], self._new(node, kind))
            for node in unit.nodes
            for kind in self.demands.get(node, ())
        ]
        self._row_step(builder, stores, unit.space, unit.nodes[-1].name)

    def _row_step(self, builder: RegionBuilder, stores: list[Store], space: tuple[Size, ...], label: str) -> None:
        region = builder.finish(stores)
        lead = space[0] if len(space) > 1 else 1
        self.add(
            RowStep(region, label), StepRows(product(region.dims), lead), tuple(reads_of(region, lead, self.slots))
        )

    def _fold(self, unit: Unit) -> None:
        node = unit.nodes[-1]
        axes = node.args[1]
        axis = int(axes[0] if isinstance(axes, list | tuple) else axes) % len(unit.space)  # type: ignore[arg-type]
        lead = (*unit.space[:axis], *unit.space[axis + 1 : -1])
        builder = RegionBuilder(lead, unit.space[-1], unit.space[axis])
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if len(unit.nodes) > 1:
            head = replace_nodes(unit, unit.nodes[:-1])
            build_nodes(builder, head, lambda n: self._operand(builder, n, axis))
            x = builder.values[source]
        else:
            x = self._operand(builder, source, axis)
        value = fold_value(builder, node, x)
        stores = [Store(value, self._new(node, kind)) for kind in self.demands.get(node, ())]
        self._row_step(builder, stores, (*lead, unit.space[-1]), node.name)

    def _copy(self, node: fx.Node) -> None:
        """A view op that needs its elements moved: the input, made contiguous."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        view = self.views.of(source)
        if FORMS[tensor(node).dtype] not in ("f32", "bf16", "f16", "bool"):  # type: ignore[union-attr]
            library.lower_copy(self, node, view)
            return
        builder = RegionBuilder(view.shape[:-1], view.shape[-1])
        value = builder.view(view, self.plain(view.node))
        self._row_step(builder, [Store(value, self._new(node, PLAIN))], view.shape, node.name)

    def _linear(self, node: fx.Node) -> Linear:
        parts = linear_of(node)
        assert parts is not None
        if parts.weight.name not in self.assignments:
            raise CaptureError(f"the plan has no choice for the weight '{parts.weight.name}'; plan this model again")
        return parts

    def _gemm(self, unit: Unit) -> None:
        node = unit.nodes[0]
        parts = self._linear(node)
        choice = self.assignments[parts.weight.name]
        call = choice.call
        assert call is not None
        a = self.form_slot(parts.x, choice.form)
        weight = self.packed(parts.weight, parts.transposed)
        builder = RegionBuilder(unit.space[:-1], unit.space[-1])
        value = builder.writer.emit("acc")
        if parts.bias is not None:
            value = builder.writer.emit("add", value, self._operand(builder, parts.bias))
        builder.values[node] = Value(value)
        build_nodes(builder, unit, lambda n: self._operand(builder, n))
        stores = [Store(builder.values[n], self._new(n, kind)) for n in unit.nodes for kind in self.demands.get(n, ())]
        region = builder.finish(stores)
        rows, lead = product(region.dims), unit.space[0] if len(unit.space) > 1 else 1
        reads = (Read(a, True, True), *reads_of(region, lead, self.slots))
        shape = tensor(parts.weight).shape  # type: ignore[union-attr]
        n, k = (int(shape[1]), int(shape[0])) if parts.transposed else (int(shape[0]), int(shape[1]))
        pieces = tuple(Part(name, offset) for name, offset in call.parts)
        self.add(
            GemmStep(a, weight, call.header, call.function, pieces, k, n, region, node.name),
            StepRows(rows, lead),
            reads,
        )

    def form_slot(self, x: fx.Node, form: str) -> int:
        """The slot of ``x`` in an activation form; a step that makes it is added where no producer did."""
        view = self.views.of(x)
        kind = PLAIN if form == "f32" else form
        unit = self.unit_of.get(view.node)
        if self._is_flat(view) and (view.node, kind) in self.stored:
            return self.stored[(view.node, kind)]
        key = (view, kind)
        if key not in self.formed:
            assert unit is None or (view.node, PLAIN) in self.stored
            self.formed[key] = self._convert(view, form, x.name)
        return self.formed[key]

    def _convert(self, view: View, form: str, label: str) -> int:
        space = view.shape if len(view.shape) > 1 else (1, *view.shape)
        builder = RegionBuilder(space[:-1], space[-1])
        value = builder.view(view, self.plain(view.node))
        width = form_row_bytes(form, space[-1], 4)
        slot = self._slot(Slot("local", form, product(space[:-1]), space[-1], width, space if form == "f32" else ()))
        self._row_step(builder, [Store(value, slot)], space, label)
        return slot


def replace_nodes(unit: Unit, nodes: list[fx.Node]) -> Unit:
    """The unit with other nodes."""
    return Unit(unit.number, unit.kind, unit.space, nodes, unit.needs)


def _source(source: tuple[int, int | None] | None) -> tuple[int, int]:
    if source is None:
        return (-1, -1)
    return (source[0], -1 if source[1] is None else source[1])


def _same_shape(left: tuple[Size, ...], right: tuple[Size, ...]) -> bool:
    return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
