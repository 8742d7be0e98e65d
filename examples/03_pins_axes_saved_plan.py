"""Steer a plan: pin and forbid choices by name, choose the axes, save the plan, and use its table for other budgets.

A plan is decided once and applied anywhere: with ``plan=`` nothing is scored again. Its cost table answers any other
budget in moments, without the model.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import adaflex
from adaflex.saved import read
from adaflex.solver.units import show_bytes
from adaflex.solver.wishes import budget_of, shown_loss

FIRST = r"re:.*\.layer\.0\..*"  # a regular expression; shell patterns like "*.value" work as well


def subject() -> tuple[Any, Any, Any]:
    """The model, one call and calibration of the example before this."""
    found: tuple[Any, Any, Any] = importlib.import_module("02_offline_artifact").subject()
    return found


def steer(path: Path, model: Any, call: Any, calibration: Any, loss: float) -> Any:
    """A plan in which the first layer stays in bf16 and nothing is stored in four bits."""
    made = adaflex.plan(
        model,
        call,
        calibration=calibration,
        loss=loss,
        axes=["precision"],
        pin=[(FIRST, "bf16")],
        forbid=[("*", "re:w4.*")],
        save_plan=path,
    )
    print(made.report())
    pinned = next(site for site, choice in made.planned.plan.choices if choice.endswith("|bf16"))
    print(made.explain(pinned))
    return made


def from_disk(model: Any, call: Any, calibration: Any, loss: float) -> Any:
    """The same, the first layer left on disk: the report states how long a call waits for it, stated and measured."""
    made = adaflex.plan(
        model,
        call,
        calibration=calibration,
        loss=loss,
        axes=["precision", "placement"],
        pin=[(FIRST, "bf16@disk")],
        forbid=[("*", "re:w4.*")],
    )
    print(next(line for line in made.report().splitlines() if line.startswith("stall")))
    return made.compile()


def without_first(model: Any, call: Any, calibration: Any) -> Any:
    """What leaving out the first layer would cost: a pinned skip, its loss as it was measured."""
    made = adaflex.plan(
        model, call, calibration=calibration, objective="loss", axes=["skip"], pin=[(FIRST, "skip*")], on_broken="warn"
    )
    print(next(line for line in made.report().splitlines() if " skip " in line))
    return made


def other_budgets(path: Path) -> list[float]:
    """The saved table under other memory budgets: seconds, no model, no torch."""
    table = read(path).table
    losses = []
    for share in ("0.6x", "0.5x", "0.4x"):
        plan = adaflex.allocate(table, budget_of(table, memory=share, objective="loss"))
        if plan.totals is None:
            print(f"memory {share}: {plan.status}; {'; '.join(plan.reasons)}")
            continue
        losses.append(shown_loss(table, plan.totals.loss))
        print(f"memory {share}: {show_bytes(plan.totals.peak_bytes)}, loss {losses[-1]:.4f}, {plan.status}")
    return losses


def main(loss: float = 0.02) -> list[float]:
    """Steer, save, apply, ask for other budgets."""
    model, call, calibration = subject()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "plan.json"
        first = steer(path, model, call, calibration, loss)
        again = adaflex.plan(model, call, calibration=calibration, plan=path)
        print(f"applied again without scoring in {again.planned.seconds:.1f} s")
        assert again.planned.plan.choices == first.planned.plan.choices
        from_disk(model, call, calibration, loss)
        without_first(model, call, calibration)
        return other_budgets(path)


if __name__ == "__main__":
    main()
