"""The text report of a plan: what each layer got and why, what was promised and what was measured, and the proof.

In: ``Planned``. Out: text.
"""

from __future__ import annotations

import io
import math

from rich.console import Console
from rich.table import Table

from adaflex.errors import OptionError
from adaflex.planning import Planned
from adaflex.solver.plan import Plan
from adaflex.solver.table import Choice, CostTable

WIDTH = 118


def mib(count: float) -> str:
    """Bytes as MiB."""
    return f"{count / 2**20:.2f}"


def loss_text(table: CostTable, loss: float) -> str:
    """A loss as people read it: the root where it is stored squared."""
    return f"{math.sqrt(max(loss, 0.0)):.4f}" if table.loss_kind == "squared relative error" else f"{loss:.4g}"


def proof(plan: Plan) -> str:
    """What the bound says, in one sentence."""
    if plan.value is None or plan.bound is None:
        return "no bound is known"
    gap = 0.0 if plan.gap is None else plan.gap
    kind = "optimal" if plan.status == "optimal" else f"within {gap:.2%} of the best possible"
    limit = f" (stopped by the {plan.limit} limit)" if plan.limit else ""
    return f"{kind} among all plans of the cost table, by the table's own figures{limit}"


def _chosen(planned: Planned) -> list[tuple[str, Choice]]:
    by_id = {choice.id: choice for choice in planned.table.choices}
    return [(site, by_id[choice]) for site, choice in planned.plan.choices]


WAYS = {"direct": "direct reads", "uncached": "uncached reads", "dropped": "buffered reads, dropped from the cache"}
COLUMNS = ("layer", "choice", "MiB", "loss", "time us", "runner-up", "its price")
WORDS = ("layer", "choice", "runner-up")  # columns of text


def layer_rows(planned: Planned) -> list[tuple[str, ...]]:
    """A row per site: choice, bytes, loss, time, runner-up and its price; a choice's cost stands on its first site."""
    others = {entry.site: entry for entry in planned.plan.runners_up}
    unit = 1000 if planned.plan.objective == "latency" else 1
    rows: list[tuple[str, ...]] = []
    for site, choice in _chosen(planned):
        other = others.get(site)
        label = other.choice.partition("|")[2] if other else ""
        price = "" if other is None else "tie" if other.tie else f"{other.price / unit:+.4g}"
        rows.append((site, named(choice), *_cost_cells(planned.table, choice, site), label, price))
    return rows


def named(choice: Choice) -> str:
    """A choice's label; where it covers siblings, how many."""
    shared = choice.encoding is not None and len(choice.sites) > 1
    return f"{choice.label} (1 of {len(choice.sites)})" if shared else choice.label


def _cost_cells(table: CostTable, choice: Choice, site: str) -> tuple[str, str, str]:
    """Bytes, loss, time; empty where another site's row has them."""
    if site != choice.sites[0]:
        return "", "", ""
    cost = choice.cost
    guessed = "~" if cost.loss_source == "estimated" else ""
    return mib(cost.size_bytes), guessed + loss_text(table, cost.loss), f"{cost.time_ns[0] / 1000:.1f}"


def layers_table(planned: Planned) -> Table:
    """``layer_rows`` for a terminal."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in WORDS else "right")
    for row in layer_rows(planned):
        table.add_row(*row)
    return table


def summary(planned: Planned) -> list[str]:
    """Promised against measured, the proof, and how well the table's sums matched."""
    plan, table = planned.plan, planned.table
    guessed = {choice.id for _, choice in _chosen(planned) if choice.cost.loss_source == "estimated"}
    assert plan.totals is not None
    lines = [f"objective: {plan.objective}; {proof(plan)}"]
    lines += list(plan.reasons)
    lines += [promise.sentence() for promise in planned.verdict.promises]
    lines += streaming(planned)
    if guessed:
        lines.append(f"~: estimated, not measured, as are the losses of {len(guessed)} of the plan's choices")
    measured = {promise.name: promise.measured for promise in planned.verdict.promises}
    loss = measured["loss"]
    if loss is not None and plan.totals.loss > 0:
        lines.append(
            f"additivity: the table's losses sum to {loss_text(table, plan.totals.loss)}, the plan measured "
            f"{loss_text(table, loss)} on {'the same' if planned.verdict.same_data else 'held-out'} data"
        )
    lines.append(
        f"unchanged model: {mib(table.baseline_bytes)} MiB planned the same way, "
        f"eager {table.baseline_ns[0] / 1e6:.2f} ms"
    )
    if planned.uniform.totals is not None:
        totals = planned.uniform.totals
        true = planned.uniform_loss
        lines.append(
            f"best uniform plan by the table: {mib(totals.peak_bytes)} MiB, {totals.time_ns[0] / 1e6:.2f} ms, "
            f"loss {loss_text(table, totals.loss)}" + ("" if true is None else f", measured {loss_text(table, true)}")
        )
    lines.append(f"planned in {planned.seconds:.1f} s")
    return lines


def streaming(planned: Planned) -> list[str]:
    """What is read from disk at every call, and the ring it passes through."""
    staging, totals = planned.executor.staging, planned.plan.totals
    if staging is None or totals is None:
        return []
    held = sum(size for _, size in totals.tier_bytes)
    return [
        f"read from disk at every call: {mib(held)} MiB through a ring of {mib(totals.ring_bytes)} MiB "
        f"({WAYS[staging.stream.way]}); stall is the wait for it with nothing cached"
    ]


def text_report(planned: Planned) -> str:
    """The whole report as text."""
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, highlight=False)
    console.print(layers_table(planned))
    for line in summary(planned):
        console.print(line, markup=False)
    return stream.getvalue()


def explain_site(planned: Planned, name: str) -> str:
    """Every column of one site with its cost, and what taking it would mean."""
    sites = [site.id for site in planned.table.sites]
    if name not in sites:
        import difflib

        near = difflib.get_close_matches(name, sites, 1)
        raise OptionError(f"no layer is called '{name}'; did you mean '{near[0] if near else sites[0]}'?")
    taken = planned.plan.choice_of(name)
    lines = [f"{name}: {taken.partition('|')[2]} was chosen"]
    for choice in planned.table.choices:
        if name in choice.sites:
            cost = choice.cost
            mark = "*" if choice.id == taken else " "
            lines.append(
                f"{mark} {choice.label:24} {mib(cost.size_bytes):>9} MiB  {cost.time_ns[0] / 1000:9.1f} us  "
                f"loss {loss_text(planned.table, cost.loss)}  ({_sources(choice)})" + _covering(choice, name)
            )
    for site, reason in planned.table.notes:
        if site == name:
            lines.append(f"  {reason}")
    return "\n".join(lines)


def _covering(choice: Choice, name: str) -> str:
    """With which siblings an encoding is shared: its figures are those of all of them."""
    others = [site for site in choice.sites if site != name]
    return f"  together with {', '.join(others)}" if others and choice.encoding is not None else ""


def _sources(choice: Choice) -> str:
    """Where a choice's figures are from: in one word where it is one."""
    time, loss = choice.cost.source, choice.cost.loss_source
    return time if time == loss else f"time {time}, loss {loss}"
