"""What a row region keeps from stage to stage, and how each stage is walked.

In: a region's ``Body``. Out: ``Waiting``: which values wait in rows of scratch, which of them only part by part of the
columns, what each stage's loop is for. No text is made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adaflex.codegen.cpp_region import Body
from adaflex.runtime.program import ITEM_BYTES
from adaflex.runtime.region import LEAVES, Region

CHEAP = ("load", "column")  # computed again in a later stage rather than kept in scratch
LIGHT = ("add", "sub", "mul", "neg")  # the same where all but one operand are one per row, a few in a row
MOST_LIGHT = 2
FIXED = ("const", "width", "depth")
PART = 512  # columns that are gone through at a time (driver.h: COLUMNS)


def rows_together(columns: int) -> int:
    """Rows that go through the stages together (driver.h says the same to the compiler)."""
    if columns > 8192:
        return 1
    return 8 if columns * 4 * 8 <= 16 << 10 else 4


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


def group_of(form: str) -> tuple[int, int]:
    """Group and rotation of a form with scales per group: "u8g64-h128" -> 64, 128."""
    base, _, rotation = form.partition("-h")
    return int(base[3:]), int(rotation or 0)


class Waiting:
    """Of one row region."""

    def __init__(self, body: Body) -> None:
        self.body, self.region, self.shape = body, body.region, body.shape
        self.forms = [body.slots[s.slot].form for s in self.region.stores]
        self.formed = {
            s.value for s, form in zip(self.region.stores, self.forms, strict=True) if form not in ITEM_BYTES
        }
        self.last = max(self.shape.stage, default=0)
        waits = self.formed or any(self.shape.reduces(self.region, n) for n in range(len(self.region.ops)))
        self.together = bool(waits) and self.region.inner == 1
        self.kept = self._kept()
        plain = {s.value: k for k, s in enumerate(self.region.stores) if self.forms[k] == "f32"}
        # what goes out as it is can be read from there
        self.out = {n: plain[n] for n in self.kept if n in plain and self._is_full(n) and self.region.inner == 1}
        self.brief = [n for n in self.kept if self._is_brief(n)]
        self.whole = [n for n in self.kept if n not in self.out and n not in self.brief]

    def scratch(self, columns: int) -> int:
        """Bytes of scratch that one thread needs for rows of ``columns``."""
        rows = rows_together(columns) if self.together else 1
        padded = -(-columns // 16) * 16
        return 4 * rows * (len(self.whole) * padded + len(self.brief) * min(padded, PART))

    def _kept(self) -> list[int]:
        """Values that wait in a row of their own: used in a later stage, or stored in an activation form."""
        return sorted(self.formed | self._late())

    def _late(self) -> set[int]:
        late: set[int] = set()
        for number, op in enumerate(self.region.ops):
            for a in op.args if op.name != "load" else ():
                if self.shape.stage[number] > self.shape.stage[a]:
                    late |= self._sources(a)
        return late

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

    def _is_brief(self, number: int) -> bool:
        """Does the value wait only for the scales of groups, part by part of the columns?"""
        forms = self._forms_of(number)
        parted = len(forms) == 1 and forms[0].startswith("u8g") and self._is_parted(self.shape.stage[number])
        return parted and self._is_full(number) and number not in self._late() | set(self.out)

    def _forms_of(self, value: int) -> list[str]:
        """The activation forms that a value is stored in."""
        stored = zip(self.region.stores, self.forms, strict=True)
        return [form for s, form in stored if s.value == value and form not in ITEM_BYTES]

    def _is_parted(self, stage: int) -> bool:
        """Does the stage go through the columns in parts?"""
        if any(self._reduces_in(n, stage) for n in range(len(self.region.ops))):
            return False
        values = [s.value for s in self.region.stores if self.shape.stage[s.value] == stage and self._is_full(s.value)]
        forms = [form for value in values for form in self._forms_of(value)]
        if any(form != "u8t" and not form.startswith("u8g") for form in forms):
            return False  # a form of the whole row
        return any(form.startswith("u8g") for form in forms) or any(map(self._is_shared, self._needed(stage)))

    def _is_shared(self, number: int) -> bool:
        """Is it a load of columns that are the same for every row?"""
        op = self.region.ops[number]
        load = self.region.loads[op.args[0]] if op.name == "load" else None
        return load is not None and load.column != 0 and load.gather < 0 and all(s == 0 for s in load.strides)

    def _is_spanned(self, value: int) -> bool:
        """Is the value's extent over the row what a form of it needs first?"""
        return "u8t" in self._forms_of(value)

    def _is_full(self, value: int) -> bool:
        return not self.shape.per_row[value]

    def _is_shifted(self, number: int) -> bool:
        """Is it a sum whose pass also meets the squares?"""
        return number in self.shape.spread.values()

    def _reduces_in(self, number: int, stage: int) -> bool:
        return self.shape.reduces(self.region, number) and self.shape.stage[number] == stage

    def _ready(self, number: int) -> int:
        """The stage from which a value can be used: a reduction's after that of its loop."""
        return self.shape.stage[number] + self.shape.reduces(self.region, number)

    def _is_carried(self, number: int) -> bool:
        """Is the value one per row, and to be worked out?"""
        return self.shape.per_row[number] and self.region.ops[number].name not in FIXED

    def _targets(self, stage: int) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        """What a stage's loop is for: values it reduces, keeps, stores (with the store's number)."""
        ops, shape = self.region.ops, self.shape
        reduced = [n for n in range(len(ops)) if self._reduces_in(n, stage)]
        kept = [n for n in self.kept if shape.stage[n] == stage and self._is_full(n)]
        stores = enumerate(self.region.stores)
        stored = [(k, s.value) for k, s in stores if shape.stage[s.value] == stage and self._is_full(s.value)]
        return reduced, kept, stored

    def _needed(self, stage: int) -> list[int]:
        """All values that a stage's loop needs."""
        reduced, kept, stored = self._targets(stage)
        targets = [*(self.region.ops[n].args[0] for n in reduced), *kept, *(value for _, value in stored)]
        return closure(self.region, targets, self._early(stage))

    def _early(self, stage: int) -> list[int]:
        """Values that are there before a stage's loop."""
        ops, shape = self.region.ops, self.shape
        return [n for n in range(len(ops)) if shape.per_row[n] or (shape.stage[n] < stage and n in self.kept)]

    def _met_on_the_way(self, stored: Sequence[tuple[int, int]]) -> int | None:
        """The store whose groups' extents the stage's loop itself meets."""
        formed = [(k, value) for k, value in stored if self.forms[k] not in ITEM_BYTES]
        alone = len(formed) == 1 and formed[0][1] in self.brief and not group_of(self.forms[formed[0][0]])[1]
        return formed[0][0] if alone else None
