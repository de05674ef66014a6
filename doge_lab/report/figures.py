"""Figure 1: the front among all candidates."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from doge_lab.report.axes import Axis, axis
from doge_lab.report.labels import model_label, number, objective_title, objective_value, seeds, spread
from doge_lab.report.panel import ACCENT, GREY, OUTLINE, SCALE, Panel, title_of
from doge_lab.report.table import confirmed_values, reported
from doge_lab.search.front import Candidate, Direction, Results, dominates
from doge_lab.stats import t_interval


@dataclass(frozen=True)
class _Plane:
    """What is drawn against what. `y_name` is an objective, `x_name` too unless there is only one."""

    x_name: str
    y_name: str
    x: Axis
    y: Axis


def front_panel(results: Results) -> Panel:
    """Every candidate, the front among them."""
    title = "The front" if len(results.objectives) > 1 else "The best candidate"
    if not results.candidates:
        return Panel("front", title, "No sound model is trained, so there is no front to draw.", None)
    plane = _plane(results)
    figure = go.Figure(layout_template="none")
    figure.add_trace(_dominated(results, plane))
    if len(results.objectives) > 1:
        figure.add_trace(_steps(results, plane))
    for trace in _flattered(results, plane):
        figure.add_trace(trace)
    figure.add_trace(_front(results, plane))
    guess = guess_bits(results, plane.y_name)
    if guess is not None:
        figure.add_hline(y=guess, line={"dash": "dot", "width": 1, "color": OUTLINE}, annotation_text="a guesser")
    figure.update_layout(xaxis=plane.x.layout, yaxis=plane.y.layout, height=500)
    return Panel("front", title, _front_caption(results, plane), figure)


def _plane(results: Results) -> _Plane:
    names = list(results.objectives)
    if len(names) == 1:
        names.insert(0, "params" if names[0] == "cache_bytes" else "cache_bytes")
    axes = []
    for name in names[:2]:
        values = [place for candidate in results.candidates for place in _span(candidate, name, results)]
        axes.append(axis(title_of(name, results), values, in_bytes=name == "cache_bytes"))
    return _Plane(names[0], names[1], *axes)


def _span(candidate: Candidate, name: str, results: Results) -> list[float]:
    """All that is drawn of a candidate on the axis `name`: what the search saw, and the ends of its interval."""
    values = confirmed_values(candidate, results.objectives).get(name)
    if not values:
        return [_value(candidate, name)]
    mean, half, _ = t_interval(values)
    return [_value(candidate, name), mean - (half or 0.0), mean + (half or 0.0)]


def _value(candidate: Candidate, name: str, objectives: Mapping[str, Direction] | None = None) -> float:
    """The value in the search or, given `objectives`, the one to quote; a cost where the figure needs one besides."""
    known = candidate.values if objectives is None else reported(candidate, objectives)
    return float({**candidate.trials[0].cost, **known}.get(name, 0))


def _place(
    candidates: Sequence[Candidate], plane: _Plane, objectives: Mapping[str, Direction] | None = None
) -> dict[str, list[float]]:
    return {
        "x": [plane.x.place(_value(candidate, plane.x_name, objectives)) for candidate in candidates],
        "y": [plane.y.place(_value(candidate, plane.y_name, objectives)) for candidate in candidates],
    }


def _dominated(results: Results, plane: _Plane) -> go.Scatter:
    best = {candidate.number for candidate in results.front}
    others = [candidate for candidate in results.candidates if candidate.number not in best]
    return go.Scatter(
        **_place(others, plane),
        mode="markers",
        marker={"size": 6, "color": GREY},
        name=f"dominated ({len(others)})",
        text=[hover(candidate, results) for candidate in others],
        hovertemplate="%{text}<extra></extra>",
    )


def _steps(results: Results, plane: _Plane) -> go.Scatter:
    """The edge of the front in the two drawn objectives; with three, or where test data say other, part lies off it."""
    drawn = {name: results.objectives[name] for name in (plane.x_name, plane.y_name)}
    values = {candidate.number: reported(candidate, results.objectives) for candidate in results.front}
    edge = [c for c in results.front if not any(dominates(other, values[c.number], drawn) for other in values.values())]
    edge.sort(key=lambda candidate: values[candidate.number][plane.x_name])
    return go.Scatter(
        **_place(edge, plane, results.objectives),
        mode="lines",
        line={"shape": "hv" if drawn[plane.x_name] == "minimize" else "vh", "width": 1.5, "color": ACCENT},
        name="front" if len(results.objectives) == 2 else "front of the two axes",
        hoverinfo="skip",
    )


def _front(results: Results, plane: _Plane) -> go.Scatter:
    marker: dict[str, Any] = {"size": 12, "color": ACCENT, "line": {"width": 1.5, "color": OUTLINE}}
    if _repeated(results):
        marker["symbol"] = ["circle" if candidate.confirmed else "circle-open" for candidate in results.front]
    if len(results.objectives) > 2:
        third = list(results.objectives)[2]
        bar = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom", "len": 0.6}
        bar |= {
            "thickness": 8,
            "outlinewidth": 0,
            "title": {"text": html.escape(title_of(third, results), quote=False), "side": "top"},
        }
        marker |= {"color": [reported(candidate, results.objectives)[third] for candidate in results.front]}
        marker |= {"colorscale": SCALE, "colorbar": bar, "showscale": True}
    place = _place(results.front, plane, results.objectives)
    return go.Scatter(
        **place,
        **_bars(results, plane),
        mode="markers+text",
        marker=marker,
        name=f"on the front ({len(results.front)})" + (", on test data" if _repeated(results) else ""),
        text=_numbers(results.front, place),
        textposition=_free_corner(results.objectives, plane),
        textfont={"size": 11},
        customdata=[[hover(candidate, results), candidate.number] for candidate in results.front],
        hovertemplate="%{customdata[0]}<extra></extra>",
        cliponaxis=False,
    )


def _numbers(candidates: Sequence[Candidate], place: Mapping[str, list[float]]) -> list[str]:
    """The trial beside each point, unless it would lie on one already written: the hover names every point."""
    scaled = [_scaled(place["x"]), _scaled(place["y"])]
    written: list[tuple[float, float]] = []
    texts = []
    for candidate, x, y in zip(candidates, *scaled, strict=True):
        free = all(abs(x - other_x) > 0.03 or abs(y - other_y) > 0.04 for other_x, other_y in written)
        texts.append(str(candidate.number) if free else "")
        written += [(x, y)] if free else []
    return texts


def _scaled(values: Sequence[float]) -> list[float]:
    """`values` as parts of the axis that they span."""
    logs = [math.log(value) if min(values) > 0 else value for value in values]
    extent = max(logs) - min(logs) or 1.0
    return [(value - min(logs)) / extent for value in logs]


def _free_corner(objectives: Mapping[str, Direction], plane: _Plane) -> str:
    """The side of a front point where nothing can lie: towards what nobody reached."""
    vertical = "top" if objectives[plane.y_name] == "maximize" else "bottom"
    return f"{vertical} {'right' if objectives.get(plane.x_name) == 'maximize' else 'left'}"


def _repeated(results: Results) -> list[Candidate]:
    return [candidate for candidate in results.front if confirmed_values(candidate, results.objectives)]


def _bars(results: Results, plane: _Plane) -> dict[str, Any]:
    """Half the t interval on test data of every front model, where there are several seeds."""
    bars = {}
    for coordinate, name in (("x", plane.x_name), ("y", plane.y_name)):
        fresh = [confirmed_values(candidate, results.objectives).get(name) for candidate in results.front]
        halves = [(t_interval(values).half if values else None) or 0.0 for values in fresh]
        if any(halves):
            bars[f"error_{coordinate}"] = {"array": halves, "color": OUTLINE, "thickness": 1}
    return bars


def _flattered(results: Results, plane: _Plane) -> list[go.Scatter]:
    """Where the search saw the front's models: each joined to its place on test data."""
    again = _repeated(results)
    if not again:
        return []
    seen, fresh = _place(again, plane), _place(again, plane, results.objectives)
    ends = {
        axis: [end for pair in zip(seen[axis], fresh[axis], strict=True) for end in (*pair, None)]
        for axis in ("x", "y")
    }
    trace = go.Scatter(
        **ends,
        mode="lines+markers",
        line={"width": 1, "dash": "dot", "color": OUTLINE},
        marker={"symbol": "diamond-open", "size": [7, 0, 0] * len(again), "color": OUTLINE},
        name="the same in the search",
        hoverinfo="skip",
    )
    return [trace]


def hover(candidate: Candidate, results: Results) -> str:
    """What a point says: plotly reads a little HTML here, so names are escaped."""
    label = html.escape(model_label(candidate.trials[0].config), quote=False)
    lines = [f"<b>trial {candidate.number}</b>, {seeds(len(candidate.trials))}", label.replace(" | ", " |<br>   ")]
    for name in results.objectives:
        mean = objective_value(name, [trial.values[name] for trial in candidate.trials])
        lines.append(f"{html.escape(title_of(name, results), quote=False)}: {mean}")
    fresh = confirmed_values(candidate, results.objectives)
    for name, values in fresh.items():
        title = html.escape(objective_title(name), quote=False)
        lines.append(f"on fresh test data, {title}: {spread(values)} ({seeds(len(values))})")
    return "<br>".join(lines)


def guess_bits(results: Results, objective: str) -> float | None:
    """Bits that a guesser who knows which answers occur earns, for an objective `recall.bits`; None where unknown."""
    task, _, metric = objective.rpartition(".")
    if metric != "bits":
        return None
    found = (trial.metrics.get(task, {}).get("guess_bits") for trial in results.trials)
    return next((float(guess) for guess in found if guess is not None), None)


def _front_caption(results: Results, plane: _Plane) -> str:
    names = list(results.objectives)
    parts = ["Each point is one candidate; the number is the trial that names it, and leads to its card."]
    if _repeated(results):
        several = any(len(candidate.confirmed) > 1 for candidate in results.front)
        parts.append(
            "Full points are the front on fresh test data, "
            + ("means with 95 % t intervals" if several else "one seed each, so without intervals")
            + "; diamonds are what the search saw and chose by, as are all grey points."
        )
    if len(names) == 1:
        parts.append(f"There is one objective, {title_of(names[0], results)}; the other axis is only for orientation.")
    if len(names) > 2:
        parts.append(
            f"Colour is {title_of(names[2], results)}. The line is the front of the two axes alone: a model off it is "
            "on the front for its other objectives."
        )
    if len(names) > 3:
        parts.append(f"Not drawn: {', '.join(title_of(name, results) for name in names[3:])}.")
    if plane.x.zero is not None or plane.y.zero is not None:
        parts.append("Logarithmic axis, with zero set apart at its end.")
    for name in names:
        guess = guess_bits(results, name)
        if guess is not None:
            task = objective_title(name).rpartition(",")[0]
            parts.append(
                f"A guesser who knows which answers occur earns {number(guess)} bits of {task}, recalling nothing."
            )
    return " ".join(parts)
