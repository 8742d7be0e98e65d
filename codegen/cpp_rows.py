"""Prints row steps: a region without template, walked row by row in stages.

In: a ``RowStep``'s region. Out: the C++ text of its function.
"""

from __future__ import annotations

from collections.abc import Iterable

from adaflex.codegen.cpp_region import C_TYPE, FINISH, FOLD_START, NEUTRAL, Body
from adaflex.runtime.program import ITEM_BYTES
from adaflex.runtime.region import FOLD, LEAVES, REDUCE, Region

ACCUMULATE = {"sum": "{a} + {v}", "rmax": "af::max({a}, {v})", "rmin": "af::min({a}, {v})"}
FOLD_STEP = {"fold_sum": "{a} + {v}", "fold_max": "af::max({a}, {v})", "fold_min": "af::min({a}, {v})"}
CHEAP = ("load", "column")  # computed again in a later stage rather than kept in scratch


def closure(region: Region, targets: Iterable[int], stop: Iterable[int] = ()) -> list[int]:
    """``targets`` and all they need, in order, not looking behind ``stop``."""
    stop = set(stop)
    wanted: set[int] = set()
    stack = list(targets)
    while stack:
        number = stack.pop()
        if number in wanted:
            continue
        wanted.add(number)
        op = region.ops[number]
        if number not in stop and op.name not in LEAVES:
            stack.extend(op.args)
    return sorted(wanted)


class RowPrinter:
    """The function text of one row region."""

    def __init__(self, body: Body) -> None:
        self.body, self.region, self.shape = body, body.region, body.shape
        self.formed = {s.value: s.slot for s in self.region.stores if body.slots[s.slot].form not in ITEM_BYTES}
        self.kept = self._kept()

    def _kept(self) -> list[int]:
        """Values that wait in scratch: used in a later stage, or stored in an activation form."""
        late = {
            a
            for number, op in enumerate(self.region.ops)
            for a in op.args
            if op.name != "load"
            and not self.shape.per_row[a]
            and self.shape.stage[number] > self.shape.stage[a]
            and op.name not in REDUCE
            and self.region.ops[a].name not in CHEAP
        }
        late |= {
            a
            for number, op in enumerate(self.region.ops)
            if op.name in REDUCE
            for a in op.args
            if self.shape.stage[number] > self.shape.stage[a] and self.region.ops[a].name not in CHEAP
        }
        return sorted(late | set(self.formed))

    def text(self) -> list[str]:
        """Lines inside the function: everything between its braces."""
        body = self.body
        lines = [f"const long C = {body.columns};"]
        for place, number in enumerate(self.kept):
            lines.append(f"float* const w{number} = (float*)t.scratch + {place} * af::round16(C);")
        lines.append(f"for (long {body.row} = r0; {body.row} < r1; ++{body.row}) {{")
        lines += [*body.indices(), *body.pointers(), *self._outputs()]
        lines += self._fold() if self.region.inner != 1 else self._stages()
        return [*lines, "}"]

    def scratch_rows(self) -> int:
        """Rows of fp32 scratch the function needs."""
        return len(self.kept)

    def _outputs(self) -> list[str]:
        lines = []
        for k, store in enumerate(self.region.stores):
            slot = self.body.slots[store.slot]
            kind = C_TYPE.get(slot.form, "char")
            place = f"t.p[{store.slot}] + {self.body.row} * {self.body.size(slot.row_bytes)}"
            lines.append(f"{kind}* const y{k} = ({kind}*)({place});")
        return lines

    def _stages(self) -> list[str]:
        lines: list[str] = []
        last = max(self.shape.stage, default=0)
        for stage in range(last + 1):
            lines += self._row_values(stage)
            lines += self._loop(stage)
        return [*lines, *self._row_stores()]

    def _row_values(self, stage: int) -> list[str]:
        """Values of one number per row that stand before this stage's loop."""
        lines = []
        for number, op in enumerate(self.region.ops):
            if self.shape.per_row[number] and self.shape.stage[number] == stage and op.name not in REDUCE:
                lines.append(f"const af::vf v{number} = {self.body.op_text(number, '0', '1')};")
            if op.name in REDUCE and self._ready(number) == stage:
                lines.append(f"const af::vf v{number} = af::set1(af::{FINISH[op.name]}(a{number}));")
        return lines

    def _ready(self, number: int) -> int:
        """The stage from which a reduction's result can be used."""
        return self.shape.stage[number] + 1

    def _loop(self, stage: int) -> list[str]:
        ops, shape = self.region.ops, self.shape
        reduced = [n for n, op in enumerate(ops) if op.name in REDUCE and shape.stage[n] == stage]
        stored = [
            (k, s) for k, s in enumerate(self.region.stores) if shape.stage[s.value] == stage and self._is_full(s.value)
        ]
        kept = [n for n in self.kept if shape.stage[n] == stage and self._is_full(n)]
        targets = [ops[n].args[0] for n in reduced] + [s.value for _, s in stored] + kept
        if not targets:
            return []
        lines = [f"af::vf a{n} = af::set1({NEUTRAL[ops[n].name]});" for n in reduced]
        lines.append("af::columns(C, [&](long col, int n) AF_LAMBDA {")
        lines += self._values(stage, targets)
        lines += [f"af::st(w{n} + col, v{n}, n);" for n in kept]
        for n in reduced:
            name, argument = ops[n].name, f"af::keep(v{ops[n].args[0]}, n, {NEUTRAL[ops[n].name]})"
            lines.append(f"a{n} = {ACCUMULATE[name].format(a=f'a{n}', v=argument)};")
        lines += [
            f"af::st(y{k} + col, v{s.value}, n);" for k, s in stored if s.value not in self.formed or self._plain(k)
        ]
        lines.append("});")
        return [*lines, *self._finish_forms(stage)]

    def _plain(self, store: int) -> bool:
        return self.body.slots[self.region.stores[store].slot].form in ITEM_BYTES

    def _is_full(self, value: int) -> bool:
        return not self.shape.per_row[value]

    def _values(self, stage: int, targets: Iterable[int]) -> list[str]:
        early = [
            n
            for n in range(len(self.region.ops))
            if self.shape.per_row[n] or (self.shape.stage[n] < stage and self.region.ops[n].name not in CHEAP)
        ]
        lines = []
        for number in closure(self.region, targets, early):
            if self.shape.per_row[number]:
                continue
            waiting = number in early
            text = f"af::ld(w{number} + col, n)" if waiting else self.body.op_text(number, "col", "n")
            lines.append(f"const af::vf v{number} = {text};")
        return lines

    def _finish_forms(self, stage: int) -> list[str]:
        lines = []
        for k, store in enumerate(self.region.stores):
            slot = self.body.slots[store.slot]
            if self.shape.stage[store.value] != stage or not self._is_full(store.value):
                continue
            if slot.form not in ITEM_BYTES:
                lines.append(f"af::{form_function(slot.form)}(w{store.value}, C, y{k});")
            elif slot.form == "bf16":
                lines.append(f"af::zero_tail(y{k}, C, {self.body.size(slot.row_bytes)});")
        return lines

    def _row_stores(self) -> list[str]:
        """Values of one number per row: stored once, after all stages."""
        lines = []
        for n, op in enumerate(self.region.ops):  # a reduction in the last stage has no stage after it
            if op.name in REDUCE and self._ready(n) > max(self.shape.stage, default=0):
                lines.append(f"const af::vf v{n} = af::set1(af::{FINISH[op.name]}(a{n}));")
        for k, store in enumerate(self.region.stores):
            if not self._is_full(store.value):
                count = "1" if self._one_column(k) else "C"
                slot = self.body.slots[store.slot]
                if slot.form not in ITEM_BYTES:
                    lines.append(f"af::fill(w{store.value}, v{store.value}, {count});")
                    lines.append(f"af::{form_function(slot.form)}(w{store.value}, {count}, y{k});")
                    continue
                lines.append(f"af::fill(y{k}, v{store.value}, {count});")
                if slot.form == "bf16":
                    lines.append(f"af::zero_tail(y{k}, {count}, {self.body.size(slot.row_bytes)});")
        return lines

    def _one_column(self, store: int) -> bool:
        return self.body.slots[self.region.stores[store].slot].columns == 1

    def _fold(self) -> list[str]:
        """Column by column, then along the inner axis: what is folded, then what follows the fold."""
        ops = self.region.ops
        folds = [n for n, op in enumerate(ops) if op.name in FOLD]
        before = closure(self.region, [ops[n].args[0] for n in folds])
        after = [n for n in closure(self.region, [s.value for s in self.region.stores], folds) if n not in folds]
        lines = ["af::columns(C, [&](long col, int n) AF_LAMBDA {"]
        lines += [f"af::vf a{n} = af::set1({FOLD_START[ops[n].name]});" for n in folds]
        lines.append(f"for (long j = 0; j < {self.body.size(self.region.inner)}; ++j) {{")
        lines += [f"const af::vf v{n} = {self.body.op_text(n, 'col', 'n')};" for n in before]
        lines += [f"a{n} = {FOLD_STEP[ops[n].name].format(a=f'a{n}', v=f'v{ops[n].args[0]}')};" for n in folds]
        lines.append("}")
        lines += [f"const af::vf v{n} = a{n};" for n in folds]
        lines += ["const long j = 0; (void)j;"]
        lines += [f"const af::vf v{n} = {self.body.op_text(n, 'col', 'n')};" for n in after]
        lines += [f"af::st(y{k} + col, v{s.value}, n);" for k, s in enumerate(self.region.stores)]
        return [*lines, "});"]


def form_function(form: str) -> str:
    """The row function of the kernel library that writes an activation form: "u8t-h128" -> quantise_row_u8t<128>."""
    base, _, rotation = form.partition("-h")
    if base == "u8t":
        return f"quantise_row_u8t<{rotation or 0}>"
    if base.startswith("u8g"):
        return f"quantise_row_u8g<{base[3:]}, {rotation or 0}>"
    if base == "bf16":
        return f"bf16_row<{rotation or 0}>"
    raise ValueError(f"no row function writes the activation form '{form}'")
