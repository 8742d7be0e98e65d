"""The solver is not taken on trust: what breaks a rule is forbidden and solved again, what is not whole is no plan."""

from collections.abc import Mapping

import numpy as np
import pytest

from adaflex.solver import decide as deciding
from adaflex.solver.check import Fault, faults
from adaflex.solver.decide import Limits, Outcome, columns_in, decide
from adaflex.solver.generate import Shape, budgets_of, realistic
from adaflex.solver.objective import resolve
from adaflex.solver.solve import Answer
from adaflex.solver.table import Budget, CostTable

TABLE = realistic(Shape(blocks=2, cuts=2))
WISH = resolve(TABLE, budgets_of(TABLE, 0.35))


def planted(monkeypatch: pytest.MonkeyPatch, refused: list[dict[str, str]], times: int) -> None:
    """The checker refuses the first ``times`` different plans that it would accept."""

    def strict(table: CostTable, budget: Budget, choices: Mapping[str, str]) -> tuple[Fault, ...]:
        found = faults(table, budget, choices)
        if not found and dict(choices) not in refused and len(refused) < times:
            refused.append(dict(choices))
        return (Fault("budget", "memory is over", 1, "memory"),) if dict(choices) in refused else found

    monkeypatch.setattr(deciding, "faults", strict)
    monkeypatch.setattr(deciding, "uniform_choices", lambda *_, **__: None)
    monkeypatch.setattr("adaflex.solver.lagrange.faults", lambda *_: (Fault("cover", "none"),))


def test_a_plan_that_breaks_a_row_is_forbidden_and_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    base = decide(TABLE, WISH, Limits(ties=()))
    refused: list[dict[str, str]] = []
    planted(monkeypatch, refused, 3)
    out = decide(TABLE, WISH, Limits(ties=()))
    assert len(refused) == 3 and refused[0] == base.choices
    assert out.choices is not None and out.choices not in refused
    assert out.value is not None and base.value is not None and out.value >= base.value
    assert out.bound is not None and out.bound <= base.value * (1 + 1e-9)  # of the first solve, nothing lowered
    assert sum("forbidden" in note for note in out.notes) == 3


def test_after_five_rounds_it_gives_up_without_a_wrong_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, [], 1000)
    out = decide(TABLE, WISH, Limits(ties=()))
    assert out.choices is None and out.value is None and out.status == "unknown"
    assert sum("forbidden" in note for note in out.notes) == deciding.ROUNDS + 1


def test_values_that_are_not_whole_are_no_plan() -> None:
    values = np.array([1.0, 0.5, 0.0])
    assert columns_in(Answer("feasible", values, 1.0, 1.0), 3) is None
    assert columns_in(Answer("feasible", np.array([1.0 - 1e-7, 1e-7, 0.0]), 1.0, 1.0), 3) == [0]


def test_only_better_plans_are_kept() -> None:
    out = Outcome()
    assert not out.offer(None, 1.0) and not out.offer({"a": "b"}, None)
    assert out.offer({"a": "b"}, 2.0) and not out.offer({"a": "c"}, 2.0) and out.choices == {"a": "b"}


def test_a_known_plan_is_a_candidate_unless_excluded() -> None:
    base = decide(TABLE, WISH, Limits(ties=()))
    assert base.choices is not None
    again = decide(TABLE, WISH, Limits(ties=(), solver=False), known=base.choices)
    assert again.value == base.value
    taken = next(iter(base.choices.values()))
    without = decide(TABLE, WISH, Limits(ties=(), solver=False), excluded={taken}, known=base.choices)
    assert without.choices is None or taken not in without.choices.values()


def test_a_deep_ring_that_cannot_be_proven_impossible_says_stalls() -> None:
    from dataclasses import replace

    deep = replace(realistic(Shape(blocks=4, cuts=1, tiers=True), 2), ring_depth=3)
    found = decide(deep, resolve(deep, budgets_of(deep, 0.001, 0.6)), Limits(time_s=3, ties=()))
    assert found.status == "infeasible"
    tight = decide(deep, resolve(deep, budgets_of(deep, 0.12, 0.2)), Limits(time_s=3, ties=()))
    assert tight.status in ("infeasible", "unknown", "feasible") and (tight.status != "unknown" or tight.limit)
