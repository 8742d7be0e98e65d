"""Prints row steps: a region without template, walked row by row in stages.

In: a ``RowStep``'s region. Out: the C++ text of its function.
"""

from __future__ import annotations

from collections.abc import Iterable

from adaflex.codegen.cpp_region import C_TYPE, FINISH, FOLD_START, NEUTRAL, Body
from adaflex.codegen.sizes import known
from adaflex.runtime.program import ITEM_BYTES
from adaflex.runtime.region import FOLD, LEAVES, Region

ACCUMULATE = {"sum": "{a} + {v}", "rmax": "af::max({a}, {v})", "rmin": "af::min({a}, {v})"}
JOIN = {"sum": "af::joined_sum", "rmax": "af::joined_max", "rmin": "af::joined_min"}
FOLD_STEP = {"fold_sum": "{a} + {v}", "fold_max": "af::max({a}, {v})", "fold_min": "af::min({a}, {v})"}
CHEAP = ("load", "column")  # computed again in a later stage rather than kept in scratch
LIGHT = ("add", "sub", "mul", "neg")  # the same where all but one operand are one per row, a few in a row
MOST_LIGHT = 2
FIXED = ("const", "width", "depth")
ROWS_BYTES = 16384  # of rows that go through their stages together: what they keep stays in the first-level cache
MOST_ROWS = 4
CHAINS = 4  # of a reduction: additions of one chain wait for each other


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
        plain = {s.value: k for k, s in enumerate(self.region.stores) if body.slots[s.slot].form == "f32"}
        # what goes out as it is can be read from there
        self.out = {n: plain[n] for n in self.kept if n in plain and self._is_full(n) and self.region.inner == 1}
        self.together = self._together()

    def _together(self) -> int:
        """How many rows go through the stages together, so that none waits for its own reductions."""
        columns, stages = known(self.region.columns), max(self.shape.stage, default=0) + 1
        if columns is None or stages == 1 or self.region.inner != 1:
            return 1
        return max(1, min(MOST_ROWS, ROWS_BYTES // (4 * max(columns, 1))))

    def _kept(self) -> list[int]:
        """Values that wait in a row of their own: used in a later stage, or stored in an activation form."""
        late = set(self.formed)
        for number, op in enumerate(self.region.ops):
            for a in op.args if op.name != "load" else ():
                if self.shape.stage[number] > self.shape.stage[a]:
                    late |= self._sources(a)
        return sorted(late)

    def _sources(self, number: int) -> set[int]:
        """What must be kept so that a later stage has this value."""
        op = self.region.ops[number]
        if self.shape.per_row[number] or op.name in CHEAP:
            return set()
        if self._steps_again(number) <= MOST_LIGHT:
            return set().union(*(self._sources(a) for a in op.args))
        return {number}

    def _steps_again(self, number: int) -> int:
        """Ops between this value and what is loaded or kept; more than ``MOST_LIGHT`` where it is to be kept."""
        op = self.region.ops[number]
        if op.name in CHEAP:
            return 0
        full = [a for a in op.args if self._is_full(a)]
        if op.name not in LIGHT or len(full) != 1 or number in self.formed:
            return MOST_LIGHT + 1
        steps = self._steps_again(full[0])
        return 1 if steps > MOST_LIGHT else steps + 1

    def text(self) -> list[str]:
        """Lines inside the function: everything between its braces."""
        lines = [f"const long C = {self.body.columns};"]
        return [*lines, *(self._rows_together() if self.together > 1 else self._row_by_row())]

    def _row_by_row(self) -> list[str]:
        row = self.body.row
        lines = [f"for (long {row} = r0; {row} < r1; ++{row}) {{", *self._addresses()]
        lines += self._fold() if self.region.inner != 1 else self._stages()
        return [*lines, "}"]

    def _rows_together(self) -> list[str]:
        """A few rows do a stage before any does the next; what later stages need of each row waits in arrays."""
        last = max(self.shape.stage)
        carried = [n for n in range(len(self.region.ops)) if self._ready(n) <= last and self._is_carried(n)]
        spanned = [n for n in self.kept if self._is_spanned(n) and self._is_full(n)]
        lines = [f"for (long b = r0; b < r1; b += {self.together}) {{"]
        lines.append(f"const int rows = int(af::size_min({self.together}, r1 - b));")
        lines += [f"af::vf p{n}[{self.together}];" for n in carried]
        lines += [f"af::Coding c{n}[{self.together}];" for n in spanned]
        for stage in range(last + 1):
            known_now = [n for n in carried if self._ready(n) <= stage] if stage else []
            inside = [f"const af::vf v{n} = p{n}[k];" for n in known_now]
            inside += self._row_values(0, stage > 0)
            inside += self._loop(stage)
            inside += self._row_values(stage + 1) if stage < last else self._row_stores()
            inside += [
                f"p{n}[k] = v{n};" for n in carried if self._ready(n) == stage + 1 or self._ready(n) == stage == 0
            ]
            codes = self._codes(stage)
            lines += [*self._each(inside), *(self._each(codes) if codes else [])]
        return [*lines, "}"]

    def _each(self, inside: list[str]) -> list[str]:
        """The lines for every one of the rows that go together."""
        head = ["for (int k = 0; k < rows; ++k) {", f"const long {self.body.row} = b + k;"]
        return [*head, *self._addresses(), *inside, "}"]

    def _is_carried(self, number: int) -> bool:
        return self.shape.per_row[number] and self.region.ops[number].name not in FIXED

    def _ready(self, number: int) -> int:
        """The stage from which a value can be used: a reduction's after that of its loop."""
        return self.shape.stage[number] + self.shape.reduces(self.region, number)

    def scratch_rows(self) -> int:
        """Rows of fp32 scratch the function needs."""
        return (len(self.kept) - len(self.out)) * self.together

    def _addresses(self) -> list[str]:
        """Pointers of one row: what is loaded, stored and kept."""
        lines = [*self.body.indices(), *self.body.pointers(), *self._outputs()]
        for place, number in enumerate(n for n in self.kept if n not in self.out):
            at = f"({place * self.together} + k)" if self.together > 1 else str(place)
            lines.append(f"float* const w{number} = (float*)t.scratch + {at} * af::round16(C);")
        return lines

    def _outputs(self) -> list[str]:
        lines = []
        for k, store in enumerate(self.region.stores):
            slot = self.body.slots[store.slot]
            kind = C_TYPE.get(slot.form, "char")
            place = f"t.p[{store.slot}] + {self.body.row} * {self.body.size(slot.row_bytes)}"
            lines.append(f"{kind}* const y{k} = ({kind}*)({place});")
        return [*lines, *(f"float* const w{number} = y{k};" for number, k in self.out.items())]

    def _stages(self) -> list[str]:
        lines: list[str] = []
        last = max(self.shape.stage, default=0)
        for stage in range(last + 1):
            lines += self._row_values(stage)
            lines += self._loop(stage)
        return [*lines, *self._row_stores()]

    def _row_values(self, stage: int, again: bool = False) -> list[str]:
        """Values of one number per row that stand before this stage's loop; ``again``: constants alone."""
        lines = []
        for number, op in enumerate(self.region.ops):
            if again and op.name not in FIXED:
                continue
            reduces = self.shape.reduces(self.region, number)
            if self.shape.per_row[number] and self.shape.stage[number] == stage and not reduces:
                lines.append(f"const af::vf v{number} = {self.body.op_text(number, '0', '1')};")
            if reduces and self.shape.stage[number] + 1 == stage:
                lines.append(self._reduced(number))
        return lines

    def _reduced(self, number: int) -> str:
        """The line after which a reduction's result can be used."""
        name = self.region.ops[number].name
        total = (
            f"af::total(m{number}, C)" if self._is_shifted(number) else f"af::{FINISH[name]}({JOIN[name]}(a{number}))"
        )
        return f"const af::vf v{number} = af::set1({total});"

    def _is_shifted(self, number: int) -> bool:
        """Is it a sum whose pass also meets the squares?"""
        return number in self.shape.spread.values()

    def _loop(self, stage: int) -> list[str]:
        ops, shape = self.region.ops, self.shape
        reduced = [n for n in range(len(ops)) if shape.reduces(self.region, n) and shape.stage[n] == stage]
        stored = [
            (k, s) for k, s in enumerate(self.region.stores) if shape.stage[s.value] == stage and self._is_full(s.value)
        ]
        kept = [n for n in self.kept if shape.stage[n] == stage and self._is_full(n)]
        targets = [ops[n].args[0] for n in reduced] + [s.value for _, s in stored] + kept
        if not targets:
            return []
        spans = [n for n in kept if self._is_spanned(n)]
        shifted = [n for n in reduced if self._is_shifted(n)]
        lines = [f"af::Shifted m{n}[{CHAINS}] = {{}};" for n in shifted]
        lines += [f"af::vf a{n}[{CHAINS}] = {{{_start(ops[n].name)}}};" for n in reduced if n not in shifted]
        lines += [f"af::Span e{n}[{CHAINS}] = {{{_start('span')}}};" for n in spans]
        if shifted:
            lines.append("af::begun_chains(C, [&](long col, int n, int i, bool begins) AF_LAMBDA {")
        elif reduced or spans:
            lines.append("af::chains(C, [&](long col, int n, int i) AF_LAMBDA {")
        else:
            lines.append("af::columns(C, [&](long col, int n) AF_LAMBDA {")
        lines += self._values(stage, targets)
        lines += [f"af::st(w{n} + col, v{n}, n);" for n in kept if n not in self.out]
        lines += [f"e{n}[i].add(v{n}, n);" for n in spans]
        lines += [f"m{n}[i].add(v{ops[n].args[0]}, n, begins);" for n in shifted]
        for n in (n for n in reduced if n not in shifted):
            name, argument = ops[n].name, f"af::keep(v{ops[n].args[0]}, n, {NEUTRAL[ops[n].name]})"
            lines.append(f"a{n}[i] = {ACCUMULATE[name].format(a=f'a{n}[i]', v=argument)};")
        lines += [
            f"af::st(y{k} + col, v{s.value}, n);" for k, s in stored if s.value not in self.formed or self._plain(k)
        ]
        lines.append("});")
        return [*lines, *self._finish_forms(stage)]

    def _is_spanned(self, value: int) -> bool:
        """Is the value's extent over the row what a form of it needs first?"""
        return any(s.value == value and self.body.slots[s.slot].form == "u8t" for s in self.region.stores)

    def _plain(self, store: int) -> bool:
        return self.body.slots[self.region.stores[store].slot].form in ITEM_BYTES

    def _is_full(self, value: int) -> bool:
        return not self.shape.per_row[value]

    def _values(self, stage: int, targets: Iterable[int]) -> list[str]:
        early = [
            n
            for n in range(len(self.region.ops))
            if self.shape.per_row[n] or (self.shape.stage[n] < stage and n in self.kept)
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
            if slot.form == "u8t":
                made = f"af::coding(w{store.value}, C, af::joined(e{store.value}))"
                later, now = f"c{store.value}[k] = {made};", f"af::write_u8t(w{store.value}, C, y{k}, {made});"
                lines.append(later if self.together > 1 else now)
            elif slot.form not in ITEM_BYTES:
                lines.append(f"af::{form_function(slot.form)}(w{store.value}, C, y{k});")
            elif slot.form == "bf16":
                lines.append(f"af::zero_tail(y{k}, C, {self.body.size(slot.row_bytes)});")
        return lines

    def _codes(self, stage: int) -> list[str]:
        """What is left of forms whose coding is known, where rows go together."""
        return [
            f"af::write_u8t(w{s.value}, C, y{k}, c{s.value}[k]);"
            for k, s in enumerate(self.region.stores)
            if self.body.slots[s.slot].form == "u8t" and self.shape.stage[s.value] == stage and self._is_full(s.value)
        ]

    def _row_stores(self) -> list[str]:
        """Values of one number per row: stored once, after all stages."""
        lines = []
        last = max(self.shape.stage, default=0)
        for n in range(len(self.region.ops)):  # a reduction in the last stage has no stage after it
            if self.shape.stage[n] == last and self.shape.reduces(self.region, n):
                lines.append(self._reduced(n))
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


def _start(name: str) -> str:
    """Where each chain of a reduction begins."""
    one = "af::Span::none()" if name == "span" else f"af::set1({NEUTRAL[name]})"
    return ", ".join([one] * CHAINS)


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
