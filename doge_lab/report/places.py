"""Where a challenger stands among its rivals, drawn: bits of each task against what the block costs."""

import html
import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import plotly.graph_objects as go

from doge_lab.report.axes import Axis, axis
from doge_lab.report.labels import number, task_title
from doge_lab.report.panel import ACCENT, GREY, OUTLINE, Panel

_COSTS = {
    "sequence": ("cache_bytes", "cache bytes per sequence"),
    "state": ("flops_per_token", "FLOPs per token"),
}
CHALLENGER = "#c4572b"
PLOT, LETTER, LINE = (900.0, 280.0), 6.5, 13.0
"""Pixels: of the plot on a wide screen, and of a label's letter and line."""
Box = tuple[float, float, float, float]
Row = Mapping[str, Any]


def places_panels(facts: Mapping[str, Any]) -> list[Panel]:
    """A figure per task: every block with its interval, the challenger in its own colour."""
    return [_panel(facts, task) for task in facts["tasks"]]


def _panel(facts: Mapping[str, Any], task: str) -> Panel:
    cost, title = _COSTS[facts["kind"]]
    rows = [row for row in facts["rows"] if row["tasks"][task]["bits"]]
    if not rows:
        return Panel(task, task_title(task), "Nothing was scored.", None)
    mine = [row for row in rows if row["name"] == facts["name"]]
    here = [row for row in rows if row["trained"] == "here" and row not in mine]
    groups = (
        (str(facts["name"]), CHALLENGER, mine),
        ("rivals, trained here", ACCENT, here),
        ("rivals, as stored", GREY, [row for row in rows if row not in mine and row not in here]),
    )
    x = axis(title, [row["cost"][cost] for row in rows], in_bytes=cost == "cache_bytes")
    figure = go.Figure(layout_template="none")
    labels = _labels([row for _, _, members in groups for row in members], task, cost, x)
    for name, colour, members in reversed(groups):  # the challenger is drawn last, above the others
        if members:
            figure.add_trace(_points(name, colour, members, task, cost, x, labels))
    figure.update_layout(
        xaxis=x.layout, yaxis={"title": "bits on test", "tickformat": ",", "zeroline": False}, height=420
    )
    caption = "Mean and 95 % t interval over seeds; names where there is room, the others by pointing at them."
    for row in mine:
        figure.add_hline(row["tasks"][task]["bits"]["mean"], line={"dash": "dot", "width": 1, "color": CHALLENGER})
        figure.add_vline(x.place(row["cost"][cost]), line={"dash": "dot", "width": 1, "color": CHALLENGER})
        caption += " Left of and above the dotted lines a rival costs less and holds more; right and below it loses."
    if guess := max((row["tasks"][task]["guess_bits"] or 0.0 for row in rows), default=0.0):
        figure.add_hline(guess, line={"dash": "dash", "width": 1, "color": OUTLINE})
        caption += f" Dashed: what a guesser who knows which answers occur earns, {number(guess)} bits."
    return Panel(task, task_title(task), caption, figure)


def _points(
    name: str, colour: str, rows: Sequence[Row], task: str, cost: str, x: Axis, labels: Mapping[str, str]
) -> go.Scatter:
    bits = [row["tasks"][task]["bits"] for row in rows]
    names = [html.escape(row["name"], quote=False) for row in rows]
    return go.Scatter(
        x=[x.place(row["cost"][cost]) for row in rows],
        y=[each["mean"] for each in bits],
        error_y={"type": "data", "array": [each["half"] or 0.0 for each in bits], "thickness": 1, "width": 3},
        mode="markers+text",
        marker={"size": 10 if colour == CHALLENGER else 7, "color": colour},
        name=html.escape(name, quote=False),
        text=[name if row["name"] in labels else "" for name, row in zip(names, rows, strict=True)],
        textposition=[labels.get(row["name"], "middle right") for row in rows],
        textfont={"size": 11},
        hovertext=[
            f"<b>{name}</b><br>{row['cost'][cost]:,}<br>{each['mean']:,.1f} bits"
            for name, row, each in zip(names, rows, bits, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _labels(rows: Sequence[Row], task: str, cost: str, x: Axis) -> dict[str, str]:
    """Name -> where it stands beside its point, for as many as do not cover each other; the first come first."""
    log = x.layout.get("type") == "log"
    across = [math.log10(place) if log else place for place in (x.place(row["cost"][cost]) for row in rows)]
    up = [row["tasks"][task]["bits"]["mean"] for row in rows]
    points = list(zip(_pixels(across, PLOT[0]), _pixels(up, PLOT[1]), strict=True))
    taken: list[Box] = [(px - 5, py - 5, px + 5, py + 5) for px, py in points]
    found = {}
    for row, (px, py) in zip(rows, points, strict=True):
        width = LETTER * len(row["name"])
        for across_, along in product(("right", "left", "center"), ("middle", "top", "bottom")):
            left = px + {"right": 6.0, "left": -6.0 - width, "center": -width / 2}[across_]
            low = py + {"middle": -LINE / 2, "top": 6.0, "bottom": -6.0 - LINE}[along]
            box = (left, low, left + width, low + LINE)
            if left >= 0 and box[2] <= PLOT[0] and not any(_overlap(box, other) for other in taken):
                found[row["name"]] = f"{along} {across_}"
                taken.append(box)
                break
    return found


def _pixels(values: Sequence[float], length: float) -> list[float]:
    """Where an axis of so many pixels puts them, with the margin that plotly leaves."""
    low, span = min(values), (max(values) - min(values)) or 1.0
    return [length * (0.06 + 0.88 * (value - low) / span) for value in values]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
