"""Program and packer brought to agree: what the cuts promise must also find offsets.

In: a ``CostTable``, a ``Budget``, the buffers that a plan makes live. Out: a plan whose buffers are packed within
what the budget leaves beside the resident weights, with both numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adaflex.solver.allocate import allocate
from adaflex.solver.check import totals
from adaflex.solver.pack.packing import Packing
from adaflex.solver.pack.search import pack
from adaflex.solver.plan import Plan
from adaflex.solver.table import Budget, Buffer, CostTable
from adaflex.solver.table_json import digest

ROUNDS = 4


@dataclass(frozen=True)
class Agreement:
    """A plan and its packing. ``fragmentation`` bytes of the budget were set aside for what packing wastes."""

    plan: Plan
    packing: Packing | None
    fragmentation: int
    rounds: int
    live_bytes: int  # what the cuts counted
    packed_bytes: int  # what the offsets need


def agree(
    table: CostTable,
    budget: Budget,
    buffers_of: Callable[[Plan], Sequence[Buffer]],
    *,
    alignment: int = 64,
    time_limit_s: float = 60.0,
) -> Agreement:
    """Allocate and pack until both fit ``budget``; at most four rounds, the bound stays that of the first solve.

    ``buffers_of`` gives the activations and workspaces that a plan makes live. What packing needs beyond the live
    bytes is set aside in every cut and the table is solved again; the plan found is valid but optimal only up to that.
    """
    plan = allocate(table, budget, time_limit_s=time_limit_s / 2)
    bound = plan.bound
    fragmentation, packing = 0, None
    for number in range(1, ROUNDS + 1):
        if plan.totals is None:
            break
        made = totals(table, plan.choices)  # of the table as it is, nothing set aside
        plan = replace(plan, totals=made, table_digest=digest(table))
        room = None if budget.memory_bytes is None else budget.memory_bytes - made.size_bytes - made.ring_bytes
        packing = pack(buffers_of(plan), capacity=room, alignment=alignment, time_limit_s=time_limit_s / 10)
        live = made.peak_bytes - made.size_bytes - made.ring_bytes
        if packing.status in ("fits", "optimal", "packed"):
            return Agreement(_with_bound(plan, bound), packing, fragmentation, number, live, packing.height)
        needed = max(packing.height, packing.bound)
        fragmentation += max(1, needed - (room or 0))
        if number < ROUNDS:
            cuts = tuple(replace(cut, base_bytes=cut.base_bytes + fragmentation) for cut in table.cuts)
            fixed = table.fixed if cuts else replace(table.fixed, size_bytes=table.fixed.size_bytes + fragmentation)
            padded = replace(table, cuts=cuts, fixed=fixed)
            plan = allocate(padded, budget, time_limit_s=time_limit_s / 10)
    return Agreement(plan, packing, fragmentation, ROUNDS, 0, packing.height if packing else 0)


def _with_bound(plan: Plan, bound: float | None) -> Plan:
    """The plan beside the bound of the user's own problem: no fragmentation set aside."""
    if plan.value is None or bound is None:
        return plan
    gap = (plan.value - bound) / max(abs(plan.value), 1e-300)
    return replace(plan, bound=bound, gap=gap, status="optimal" if gap <= 1e-9 else "feasible")
