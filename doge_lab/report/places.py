"""Where a challenger stands among its rivals, drawn: bits of each task against what the block costs."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from doge_lab.report.axes import Axis, axis
from doge_lab.report.labels import task_title
from doge_lab.report.panel import ACCENT, GREY, Panel

_COSTS = {
    "sequence": ("cache_bytes", "cache bytes per sequence"),
    "state": ("flops_per_token", "FLOPs per token"),
}
CHALLENGER = "#c4572b"


def places_panels(facts: Mapping[str, Any]) -> list[Panel]:
    """A figure per task: every block with its interval, the challenger in its own colour."""
    return [_panel(facts, task) for task in facts["tasks"]]


def _panel(facts: Mapping[str, Any], task: str) -> Panel:
    cost, title = _COSTS[facts["kind"]]
    rows = [row for row in facts["rows"] if row["tasks"][task]["bits"]]
    x = axis(title, [row["cost"][cost] for row in rows], in_bytes=cost == "cache_bytes")
    figure = go.Figure(layout_template="none")
    groups = (
        ("rivals, as stored", GREY, [row for row in rows if row["trained"] == "stored"]),
        (
            "rivals, trained here",
            ACCENT,
            [row for row in rows if row["trained"] == "here" and row["name"] != facts["name"]],
        ),
        (str(facts["name"]), CHALLENGER, [row for row in rows if row["name"] == facts["name"]]),
    )
    for name, colour, members in groups:
        if members:
            figure.add_trace(_points(name, colour, members, task, cost, x))
    figure.update_layout(
        xaxis=x.layout, yaxis={"title": "bits on test", "tickformat": ",", "zeroline": False}, height=420
    )
    caption = "Mean and 95 % t interval over seeds. Further left costs less, further up holds more; hover for names."
    return Panel(task, task_title(task), caption, figure)


def _points(name: str, colour: str, rows: Sequence[Mapping[str, Any]], task: str, cost: str, x: Axis) -> go.Scatter:
    bits = [row["tasks"][task]["bits"] for row in rows]
    return go.Scatter(
        x=[x.place(row["cost"][cost]) for row in rows],
        y=[each["mean"] for each in bits],
        error_y={"type": "data", "array": [each["half"] or 0.0 for each in bits], "thickness": 1, "width": 3},
        mode="markers",
        marker={"size": 10 if colour == CHALLENGER else 7, "color": colour},
        name=html.escape(name, quote=False),
        text=[
            f"<b>{html.escape(row['name'], quote=False)}</b><br>{row['cost'][cost]:,}<br>{each['mean']:,.1f} bits"
            for row, each in zip(rows, bits, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
    )
