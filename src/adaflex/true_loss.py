"""The measured loss of whole plans: as one was built and found wanting, else of its repaired tensors in the reference.

In: plans of a table. Out: losses on held-out calls; each is measured once and kept between runs.
"""

from __future__ import annotations

import hashlib
import json

from adaflex.passes.calibration import Samples
from adaflex.passes.decision import Decision
from adaflex.passes.menu import Machine
from adaflex.passes.score import Scores, name_of
from adaflex.passes.score_cache import ScoreCache, inputs_digest
from adaflex.runtime.verdict import Verdict
from adaflex.solver.plan import Plan
from adaflex.solver.table import CostTable
from adaflex.verifying import decision_of


class TrueLoss:
    """Called with a table and a plan of it."""

    def __init__(self, scores: Scores, cache: ScoreCache | None, data: Samples, here: Machine) -> None:
        self.scores, self.cache, self.here = scores, cache, here
        self.held = inputs_digest(data.held or data.fit)
        self.known: dict[str, float] = {}
        self.excess = self._get(self._excess_name()) or 1.0  # the most that a built plan lost over the reference

    def __call__(self, table: CostTable, plan: Plan) -> float:
        decision = decision_of(table, plan)
        reference = self._reference(decision)
        built = self._get(self._name("built", decision))
        return self.excess * reference if built is None else built

    def learn(self, table: CostTable, plan: Plan, verdict: Verdict) -> None:
        """Take a built plan's loss as its own; what it lost over the reference is expected of the others too."""
        (measured,) = (promise.measured for promise in verdict.promises if promise.name == "loss")
        if measured:
            decision = decision_of(table, plan)
            self._put(self._name("built", decision), measured)
            self.excess = max(self.excess, measured / (self._reference(decision) or measured))
            self._put(self._excess_name(), self.excess)

    def _reference(self, decision: Decision) -> float:
        name = self._name("plan", decision)
        found = self._get(name)
        if found is None:
            found = self.scores.plan_loss(decision.encodings, decision.skipped)
            self._put(name, found)
        return found

    def _name(self, kind: str, decision: Decision) -> str:
        """What a loss is kept under: the data and the decision; as it was built, the instructions too."""
        stored = [name_of(site, encoding) for site, encoding in sorted(decision.encodings.items())]
        where = [self.here.isa, self.here.device] if kind == "built" else []
        return _named(kind, self.held, stored, sorted(decision.skipped), *where)

    def _excess_name(self) -> str:
        """Kept too, so that the same question asked again starts from what is known and gets the same plan."""
        return _named("excess", self.held, self.here.isa, self.here.device)

    def _get(self, name: str) -> float | None:
        found = self.known.get(name)
        return found if found is not None or self.cache is None else self.cache.get(name)

    def _put(self, name: str, loss: float) -> None:
        self.known[name] = loss
        if self.cache is not None:
            self.cache.put(name, loss)


def _named(kind: str, *parts: object) -> str:
    return f"{kind} {hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}"
