"""Pictures of plans as SVG text: memory over time, and curves of two quantities.

In: buffers with offsets, or points. Out: one self-contained SVG. No library needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from adaflex.solver.table import Buffer
from adaflex.solver.units import show_bytes

WIDE, HIGH, EDGE = 960, 480, 60
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#9c755f")


def _frame(title: str, body: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" font-family="sans-serif" font-size="11">'
    )
    text = f'<text x="{EDGE}" y="18" font-size="14">{escape(title)}</text>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', text, *body, "</svg>\n"])


def _line(y: float, text: str, colour: str) -> str:
    mark = f'<line x1="{EDGE}" x2="{WIDE - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-dasharray="6 3"/>'
    return mark + f'<text x="{EDGE + 4}" y="{y - 3:.1f}" fill="{colour}">{escape(text)}</text>'


def packing_svg(
    buffers: Sequence[Buffer],
    offsets: Mapping[str, int],
    *,
    bound: int = 0,
    capacity: int | None = None,
    title: str = "memory",
) -> str:
    """Address (up) over time (right), one rectangle per buffer, with the peak, the bound and the capacity as lines."""
    shown = [b for b in buffers if b.id in offsets and b.size_bytes and b.end > b.first]
    peak = max((offsets[b.id] + b.size_bytes for b in shown), default=1)
    top = max(peak, bound, capacity or 0, 1)
    begin, end = min((b.first for b in shown), default=0), max((b.end for b in shown), default=1)
    across, up = (WIDE - EDGE - 10) / max(1, end - begin), (HIGH - EDGE - 30) / top
    body = []
    for number, b in enumerate(shown):
        x, y = EDGE + (b.first - begin) * across, HIGH - EDGE - (offsets[b.id] + b.size_bytes) * up
        note = f"{b.id}: {b.size_bytes} bytes at {offsets[b.id]}, steps {b.first} to {b.end}"
        body.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{(b.end - b.first) * across:.2f}" height="{b.size_bytes * up:.2f}" '
            f'fill="{COLOURS[number % len(COLOURS)]}" fill-opacity="0.8" stroke="white" stroke-width="0.3">'
            f"<title>{escape(note)}</title></rect>"
        )
    body.append(_line(HIGH - EDGE - peak * up, f"peak {show_bytes(peak)}", "#222"))
    if bound:
        body.append(_line(HIGH - EDGE - bound * up, f"bound {show_bytes(bound)}", "#59a14f"))
    if capacity is not None:
        body.append(_line(HIGH - EDGE - capacity * up, f"capacity {show_bytes(capacity)}", "#e15759"))
    body.append(f'<text x="{EDGE}" y="{HIGH - EDGE + 20}">step {begin}</text>')
    body.append(f'<text x="{WIDE - 70}" y="{HIGH - EDGE + 20}">{end}</text>')
    return _frame(title, body)


def curve_svg(points: Sequence[tuple[float, float]], *, across: str, up: str, title: str) -> str:
    """A curve through points (ascending in x), axes from 0."""
    right, top = max((x for x, _ in points), default=1) or 1, max((y for _, y in points), default=1) or 1
    places = [(EDGE + x / right * (WIDE - EDGE - 20), HIGH - EDGE - y / top * (HIGH - EDGE - 40)) for x, y in points]
    body = [f'<polyline fill="none" stroke="#4e79a7" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>']
    for (x, y), (a, b) in zip(places, points, strict=True):
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#4e79a7"><title>{a:g}, {b:g}</title></circle>')
    body.append(f'<text x="{WIDE // 2}" y="{HIGH - 20}">{escape(across)} (to {right:g})</text>')
    body.append(f'<text x="10" y="36">{escape(up)} (to {top:g})</text>')
    return _frame(title, body)
