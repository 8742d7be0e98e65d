"""The report as one self-contained HTML page: the tables of the text report, memory over time, the loss-size curve.

In: ``Planned``. Out: HTML text that loads nothing from anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from adaflex import __version__
from adaflex.planning import Planned
from adaflex.report import layer_rows, proof, summary
from adaflex.runtime.arena import Piece
from adaflex.solver.draw import packing_svg
from adaflex.solver.pareto import pareto
from adaflex.solver.plan import Plan
from adaflex.solver.table import Buffer, CostTable
from adaflex.solver.uniform import kind_of
from adaflex.solver.units import show_bytes
from adaflex.solver.wishes import shown_loss

POINTS = 9  # of the curve
CURVE_SECONDS = 5.0
WIDE, HIGH, EDGE = 960, 420, 64


def page(planned: Planned) -> str:
    """The whole page."""
    template = files("adaflex").joinpath("report.html.j2").read_text()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(**content(planned))


def content(planned: Planned) -> dict[str, Any]:
    """What the template shows."""
    curve = points_of(planned)
    shown = ("objective:", *(f"{promise.name}:" for promise in planned.verdict.promises))  # in tables of their own
    return {
        "version": __version__,
        "machine": planned.verdict.machine,
        "held": planned.verdict.held,
        "same_data": planned.verdict.same_data,
        "proof": proof(planned.plan),
        "objective": planned.plan.objective,
        "promises": [promise.as_read() for promise in planned.verdict.promises],
        "layers": layer_rows(planned),
        "summary": [line for line in summary(planned) if not line.startswith(shown)],
        "notes": [(site, text) for site, text in planned.table.notes],
        "memory": memory_maps(planned),
        "curve": curve_svg(curve, planned.table) if curve else "",
        "curve_rows": curve,
    }


# ---- memory over time ----


@dataclass(frozen=True)
class Map:
    """One picture of memory."""

    title: str
    svg: str


def memory_maps(planned: Planned) -> list[Map]:
    """The arena over time: what threads share, and what each has of its own, for the call that was timed."""
    layout = planned.executor.shape(planned.model.timed).layout
    found = []
    for title, pieces, height in (
        ("shared by all threads", layout.shared_pieces, layout.shared_bytes),
        ("of each thread", layout.thread_pieces, layout.thread_bytes),
    ):
        if pieces:
            buffers = _buffers(planned, pieces)
            offsets = {each.id: layout.offsets[slot] for each, (slot, _) in zip(buffers, pieces, strict=True)}
            svg = packing_svg(buffers, offsets, title=f"arena {title}")
            found.append(Map(f"{title}: {show_bytes(height)}, {len(pieces)} slots", svg))
    return found


def _buffers(planned: Planned, pieces: Sequence[tuple[int, Piece]]) -> list[Buffer]:
    slots = planned.assembled.program.slots
    return [
        Buffer(f"slot {slot} ({slots[slot].form})", piece.size_bytes, piece.first, piece.end) for slot, piece in pieces
    ]


# ---- loss against size ----


@dataclass(frozen=True)
class Point:
    """A plan on the curve."""

    label: str
    kind: str  # "curve", "uniform" or "this"
    peak_bytes: int
    loss: float  # as people read it


def points_of(planned: Planned) -> list[Point]:
    """Plans of least loss at several memory budgets, within the other budgets; the best uniform plan; this plan."""
    table, plan = planned.table, planned.plan
    budget = replace(plan.budget, memory_bytes=None, loss=None, implied_loss=False, objective="")
    swept = pareto(table, budget, "memory", POINTS, objective="loss", time_limit_s=CURVE_SECONDS)
    found = [_point(table, each, "curve", "least loss") for each in swept if each.totals is not None]
    if planned.uniform.totals is not None:
        found.append(_point(table, planned.uniform, "uniform", "best uniform plan"))
    return [*found, _point(table, plan, "this", "this plan")]


def _point(table: CostTable, plan: Plan, kind: str, label: str) -> Point:
    assert plan.totals is not None
    by_id = {choice.id: choice for choice in table.choices}
    names = sorted({kind_of(by_id[choice]).removesuffix("@memory") for _, choice in plan.choices})
    text = f"{label}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
    return Point(text, kind, plan.totals.peak_bytes, shown_loss(table, plan.totals.loss))


COLOURS = {"curve": "#4e79a7", "uniform": "#f28e2b", "this": "#e15759"}


def curve_svg(points: Sequence[Point], table: CostTable) -> str:
    """Loss (up) over planned memory (right): a line through the plans of least loss, and marks for the others."""
    right, top = max(each.peak_bytes for each in points) or 1, max(each.loss for each in points) or 1.0

    def place(each: Point) -> tuple[float, float]:
        across, up = each.peak_bytes / right, each.loss / top
        return EDGE + across * (WIDE - EDGE - 20), HIGH - EDGE - up * (HIGH - EDGE - 40)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(each) for each in points if each.kind == "curve"))
    body = [f'<polyline fill="none" stroke="{COLOURS["curve"]}" stroke-width="1.5" points="{line}"/>']
    for each in points:
        x, y = place(each)
        note = escape(f"{each.label}: {show_bytes(each.peak_bytes)}, loss {each.loss:.4g}")
        size = 3 if each.kind == "curve" else 6
        mark = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{COLOURS[each.kind]}">'
        body.append(f"{mark}<title>{note}</title></circle>")
    bottom, kind = HIGH - EDGE, "relative error" if table.loss_kind.startswith("squared") else table.loss_kind
    body += [
        f'<path d="M{EDGE} 30V{bottom}H{WIDE - 20}" fill="none" stroke="#888"/>',
        f'<text x="{EDGE}" y="{bottom + 20}">0</text>',
        f'<text x="{WIDE - 20}" y="{bottom + 20}" text-anchor="end">planned memory, to {show_bytes(right)}</text>',
        f'<text x="{EDGE}" y="22">{escape(kind)}, to {top:.4g}</text>',
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" '
    return "\n".join([head + 'font-family="sans-serif" font-size="12">', *body, "</svg>"])
