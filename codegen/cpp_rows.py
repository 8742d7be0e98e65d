"""Prints row steps: a region without template, walked row by row, or a few rows together stage by stage.

In: a ``RowStep``'s region. Out: the C++ text of its function.

Rows go together where a row has to wait: for a reduction over its columns, or for the scales of an activation form.
Each stage is done for all of them before the next, and numbers that belong to a row lie in the lanes of one vector. A
stage that reads the same columns for every row (a norm's weights) goes through the columns in parts, so that all rows
find them in the first-level cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adaflex.codegen.cpp_region import C_TYPE, FINISH, FOLD_START, NEUTRAL, mean_of
from adaflex.codegen.cpp_waiting import FIXED, Waiting, closure, group_of
from adaflex.runtime.program import ITEM_BYTES
from adaflex.runtime.region import FOLD, LEAVES

ACCUMULATE = {"sum": "{a} + {v}", "rmax": "af::max({a}, {v})", "rmin": "af::min({a}, {v})"}
JOIN = {"sum": "af::joined_sum", "rmax": "af::joined_max", "rmin": "af::joined_min"}
FOLD_STEP = {"fold_sum": "{a} + {v}", "fold_max": "af::max({a}, {v})", "fold_min": "af::min({a}, {v})"}
CHAINS = 4  # of a reduction: additions of one chain wait for each other


class RowPrinter(Waiting):
    """The function text of one row region."""

    def scratch_floats(self) -> str:
        """Floats of scratch the function needs, as C++ text over its columns; "" for none."""
        whole = len(self.whole)
        rows = f"{whole} * af::rows_together({self.body.columns})" if self.together else str(whole)
        parts = [f"{rows} * af::round16({self.body.columns})"] if whole else []
        if self.brief:
            rows = f"{len(self.brief)} * af::rows_together({self.body.columns})"
            parts.append(f"{rows} * af::part_pitch({self.body.columns})")
        return " + ".join(parts)

    # ---- text
    def text(self) -> list[str]:
        """Lines inside the function: everything between its braces."""
        lines = [f"const long C = {self.body.columns};"]
        return [*lines, *(self._rows_together() if self.together else self._row_by_row())]

    def _row_by_row(self) -> list[str]:
        row = self.body.row
        lines = [f"for (long {row} = r0; {row} < r1; ++{row}) {{", *self._addresses()]
        lines += self._fold() if self.region.inner != 1 else self._one_row()
        return [*lines, "}"]

    def _one_row(self) -> list[str]:
        """A row of a region of one stage that waits for nothing."""
        single = [n for n in range(len(self.region.ops)) if not self._is_full(n)]
        stored = [(k, s.value) for k, s in enumerate(self.region.stores) if self._is_full(s.value)]
        lines = [f"const af::vf v{n} = {self.body.op_text(n, '0', '1')};" for n in single]
        if stored:
            lines.append("af::columns(C, [&](long col, int n) AF_LAMBDA {")
            lines += self._values([value for _, value in stored], ())
            lines += [f"af::st(y{k} + col, v{value}, n);" for k, value in stored]
            lines.append("});")
        lines += [line for k, _ in stored for line in self._zero_tail(k)]
        return [*lines, *self._row_stores()]

    def _rows_together(self) -> list[str]:
        carried = [n for n in range(len(self.region.ops)) if self._is_carried(n)]
        reduced = [n for n in range(len(self.region.ops)) if self.shape.reduces(self.region, n)]
        spanned = [n for n in self.kept if self._is_spanned(n)]
        lines = ["constexpr int ROWS = af::ROWS;", *(f"af::vf p{n};" for n in carried)]
        lines += [f"{'af::Shifted' if self._is_shifted(n) else 'af::vf'} a{n}[ROWS];" for n in reduced]
        for n in spanned:
            lines += [f"af::Span e{n}[ROWS];", f"const float* f{n}[ROWS];"]
        grouped = [
            k for k, s in enumerate(self.region.stores) if s.value in self.brief and self.forms[k] not in ITEM_BYTES
        ]
        for k in grouped:
            lines += [f"af::GroupExtents q{k} = {{}};", f"af::Codings g{k}[ROWS];"]
        lines += ["const long T = af::rows_together(C);", "for (long b = r0; b < r1; b += T) {"]
        lines.append("const int rows = int(af::size_min(T, r1 - b));")
        if reduced or spanned:  # lanes are filled four rows at a time
            unused = [f"a{n}[k] = {'af::Shifted{}' if self._is_shifted(n) else 'af::zero()'};" for n in reduced] + [
                f"e{n}[k] = af::Span::none();" for n in spanned
            ]
            lines += ["for (int k = rows; k % 4 != 0; ++k) {", *unused, "}"]
        for stage in range(self.last + 2):
            lines += self._row_values(stage)
            if stage <= self.last:
                lines += self._stage(stage)
        if any(not self._is_full(s.value) for s in self.region.stores):
            stored = [s.value for s in self.region.stores if not self._is_full(s.value)]
            lines += self._each([*self._lanes(stored), *self._row_stores()])
        return [*lines, "}"]

    def _each(self, inside: list[str]) -> list[str]:
        """The lines for every one of the rows that go together."""
        head = ["for (int k = 0; k < rows; ++k) {", f"const long {self.body.row} = b + k;"]
        return [*head, *self._addresses(), *inside, "}"]

    def _row_values(self, stage: int) -> list[str]:
        """Values of one number per row that stand before this stage's loop: those of all rows in one vector."""
        now = [n for n in range(len(self.region.ops)) if self._is_carried(n) and self._ready(n) == stage]
        lines = []
        for number in now:
            op = self.region.ops[number]
            mean = mean_of(self.region, number) if number in self.shape.spread else None
            args = mean or (op.args if op.name not in LEAVES else ())
            lines += ["{", *self._lanes(args, whole=True)]
            lines += [f"p{number} = {self._row_value(number)};", "}"]
        return lines

    def _row_value(self, number: int) -> str:
        op = self.region.ops[number]
        if self.shape.reduces(self.region, number):
            shifted = self._is_shifted(number)
            return f"af::totals(a{number}, rows, C)" if shifted else f"af::{FINISH[op.name]}(a{number}, rows)"
        text = self.body.op_text(number, "0", "1")
        if op.name != "load":
            return text
        inside = " ".join([f"const long {self.body.row} = b + k;", *self.body.indices(), *self.body.pointers()])
        return f"af::each_row(rows, [&](int k) AF_LAMBDA {{ {inside} return {text}; }})"

    def _lanes(self, numbers: Iterable[int], whole: bool = False) -> list[str]:
        """Values of one number per row: of row k, or (``whole``) of all rows."""
        lines = []
        for number in sorted(set(numbers)):
            if self.region.ops[number].name in FIXED:
                lines.append(f"const af::vf v{number} = {self.body.op_text(number, '0', '1')};")
            elif self.shape.per_row[number]:
                lines.append(f"const af::vf v{number} = {f'p{number}' if whole else f'af::lane(p{number}, k)'};")
        return lines

    # ---- addresses
    def _addresses(self) -> list[str]:
        """Pointers of one row: what is loaded, stored and kept."""
        lines = [*self.body.indices(), *self.body.pointers(), *self._outputs()]
        rows = " * T + k" if self.together else ""
        for place, number in enumerate(self.whole):
            lines.append(f"float* const w{number} = (float*)t.scratch + ({place}{rows}) * af::round16(C);")
        before = f"{len(self.whole)} * T * af::round16(C)"
        for place, number in enumerate(self.brief):
            at = f"({place} * T + k) * af::part_pitch(C)"
            lines.append(f"float* const w{number} = (float*)t.scratch + {before} + {at};")
        return lines

    def _outputs(self) -> list[str]:
        lines = []
        for k, store in enumerate(self.region.stores):
            slot = self.body.slots[store.slot]
            kind = C_TYPE.get(slot.form, "char")
            place = f"t.p[{store.slot}] + {self.body.row} * {self.body.size(slot.row_bytes)}"
            lines.append(f"{kind}* const y{k} = ({kind}*)({place});")
        return [*lines, *(f"float* const w{number} = y{k};" for number, k in self.out.items())]

    def _place(self, value: int) -> str:
        """Where a kept value's current column lies."""
        return f"w{value} + (col - begin)" if value in self.brief else f"w{value} + col"

    # ---- a stage
    def _stage(self, stage: int) -> list[str]:
        """One stage of all rows."""
        reduced, kept, stored = self._targets(stage)
        if not (reduced or kept or stored):
            return []
        spans = [n for n in kept if self._is_spanned(n)]
        parts, codes = self._part_forms(stored)
        inside = [*self._lanes(self._needed(stage)), *self._loop(stage), *parts]
        last = [line for k, _ in stored for line in self._whole_form(k)]
        if self._is_parted(stage):
            begin = [f"for (int k = 0; k < rows; ++k) e{n}[k] = af::Span::none();" for n in spans]
            begin += ["for (long begin = 0; begin < C; begin += af::COLUMNS) {"]
            begin += ["const long end = af::size_min(C, begin + af::COLUMNS);"]
            whole = ["if (end == C) {", *last, "}"] if last else []
            lines = [*begin, *self._each([*inside, *whole]), *(self._each(codes) if codes else []), "}"]
        else:
            lines = ["{", "const long begin = 0, end = C;", *self._each([*inside, *last]), "}"]
        for n in spans:
            lines.append(f"const af::Codings c{n} = af::codings(e{n}, f{n}, rows, C);")
        codes = [f"af::write_u8t(w{value}, C, y{k}, c{value}[k]);" for k, value in stored if self.forms[k] == "u8t"]
        return [*lines, *(self._each(codes) if codes else [])]

    def _loop(self, stage: int) -> list[str]:
        """A stage's loop over columns [begin, end) of one row, and what it has reduced."""
        reduced, kept, stored = self._targets(stage)
        ops = self.region.ops
        shifted = [n for n in reduced if self._is_shifted(n)]
        spans = [n for n in kept if self._is_spanned(n)]
        lines = [line for n in shifted for line in self._first(n, stage)]
        lines += [f"af::vf m{n}[{CHAINS}] = {{{_start(ops[n].name)}}};" for n in reduced if n not in shifted]
        lines += [f"af::Span m{n}[{CHAINS}] = {{{_start('span')}}};" for n in spans]
        met = self._met_on_the_way(stored)
        if met is not None:
            group = group_of(self.forms[met])[0]
            lines.append(f"af::group_extents<{group}>(begin, end, q{met}, [&](long col) AF_LAMBDA {{")
            lines.append("constexpr int n = 16;")
        else:
            lines.append("af::chains(begin, end, [&](long col, int n, int i) AF_LAMBDA {")
        lines += self._values(self._needed(stage), self._early(stage))
        lines += [f"af::st({self._place(n)}, v{n}, n);" for n in kept if n not in self.out]
        lines += [f"m{n}[i].add(v{n}, n);" for n in spans]
        for n in shifted:
            lines.append(f"m{n}.add(i, v{ops[n].args[0]}, n);")
        for n in (n for n in reduced if n not in shifted):
            name, argument = ops[n].name, f"af::first(v{ops[n].args[0]}, n, {NEUTRAL[ops[n].name]})"
            lines.append(f"m{n}[i] = {ACCUMULATE[name].format(a=f'm{n}[i]', v=argument)};")
        lines += [f"af::st(y{k} + col, v{value}, n);" for k, value in stored if self.forms[k] in ITEM_BYTES]
        lines.append(f"return v{self.region.stores[met].value};" if met is not None else "(void)i;")
        lines.append("});")
        lines += [f"a{n}[k].take(m{n});" for n in shifted]
        lines += [f"a{n}[k] = {JOIN[ops[n].name]}(m{n});" for n in reduced if n not in shifted]
        for n in spans:
            joins = f"e{n}[k].join(af::joined(m{n}));" if self._is_parted(stage) else f"e{n}[k] = af::joined(m{n});"
            lines += [joins, f"f{n}[k] = w{n};"]
        return lines

    def _first(self, number: int, stage: int) -> list[str]:
        """The sums of distances from a row's first values begin."""
        value = self.region.ops[number].args[0]
        lines = [f"af::Shifted m{number} = {{}};", "AF_UNROLL for (int i = 0; i < af::starts(C); ++i) {"]
        lines.append("const long col = 16 * i; const int n = int(af::size_min(16, C - col)); (void)n;")
        return [*lines, *self._values([value], self._early(stage)), f"m{number}.start[i] = v{value};", "}"]

    def _values(self, needed: Sequence[int], early: Iterable[int]) -> list[str]:
        """The vectors of a loop's body: what it needs, less what is one per row."""
        waiting, lines = set(early), []
        for number in closure(self.region, needed, waiting):
            if self._is_full(number):
                text = f"af::ld(w{number} + col, n)" if number in waiting else self.body.op_text(number, "col", "n")
                lines.append(f"const af::vf v{number} = {text};")
        return lines

    # ---- stores
    def _part_forms(self, stored: Sequence[tuple[int, int]]) -> tuple[list[str], list[str]]:
        """Forms with scales per group, of columns [begin, end): the scales, then the codes."""
        first, then = [], []
        for k, value in stored:
            if value not in self.brief or self.forms[k] in ITEM_BYTES:
                continue
            group, rotation = group_of(self.forms[k])
            if rotation:
                first.append(f"af::rotate_blocks<{rotation}>(w{value}, end - begin, w{value});")
            if k != self._met_on_the_way(stored):
                first.append(f"af::group_extents<{group}>(w{value}, end - begin, q{k});")
            call = f"af::group_codings<{group}, {rotation}>"
            first.append(f"{call}(w{value}, end - begin, begin, C, y{k}, q{k}, g{k}[k]);")
            then.append(f"af::write_u8g<{group}>(w{value}, end - begin, y{k} + begin, g{k}[k]);")
        return first, then

    def _whole_form(self, k: int) -> list[str]:
        """What a store's form needs after the whole row is there, less what waits for all rows."""
        form, value = self.forms[k], self.region.stores[k].value
        if form in ITEM_BYTES:
            return self._zero_tail(k)
        if form == "u8t" or value in self.brief:
            return []
        return [f"af::{form_function(form)}(w{value}, C, y{k});"]

    def _zero_tail(self, k: int, count: str = "C") -> list[str]:
        slot = self.body.slots[self.region.stores[k].slot]
        return [f"af::zero_tail(y{k}, {count}, {self.body.size(slot.row_bytes)});"] if slot.form == "bf16" else []

    def _row_stores(self) -> list[str]:
        """Values of one number per row."""
        lines = []
        for k, store in enumerate(self.region.stores):
            if self._is_full(store.value):
                continue
            count = "1" if self._one_column(k) else "C"
            form = self.forms[k]
            if form in ITEM_BYTES:
                lines += [f"af::fill(y{k}, v{store.value}, {count});", *self._zero_tail(k, count)]
                continue
            lines.append(f"af::fill(w{store.value}, v{store.value}, {count});")
            lines.append(f"af::{form_function(form)}(w{store.value}, {count}, y{k});")
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
