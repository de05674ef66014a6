"""Figure 2: what the front's models cache as the context grows."""

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from doge_lab.report.axes import Axis, axis
from doge_lab.report.labels import binary_bytes, model_label, objective_title, plural
from doge_lab.report.models import ModelFacts
from doge_lab.report.panel import OUTLINE, SCALE, Panel, cache_dtype
from doge_lab.search.front import Candidate, Results


def cache_panel(results: Results, facts: Mapping[int, ModelFacts]) -> Panel:
    """Cache bytes against context for the front's models; `facts` by trial number."""
    title = "Cache as the context grows"
    curves: dict[tuple[tuple[int, int], ...], list[Candidate]] = {}
    for candidate in results.front:
        curve = tuple(facts[candidate.number].cache_bytes.items())
        if curve:
            curves.setdefault(curve, []).append(candidate)
    if not curves:
        return Panel("cache", title, _why_no_curve(results, facts), None)
    every = [value for curve in curves for _, value in curve]
    y = axis(objective_title("cache_bytes", None, cache_dtype(results)), every, in_bytes=True, always_log=True)
    figure = go.Figure(layout_template="none")
    shades = sample_colorscale(SCALE, [0.25 + 0.55 * i / max(1, len(curves) - 1) for i in range(len(curves))])
    for index, (curve, models) in enumerate(curves.items()):
        figure.add_trace(_curve(curve, models, y, shades[index], index))
    figure.add_trace(_mark(results.context, [y.place(value) for value in every]))
    contexts = [tokens for tokens, _ in next(iter(curves))]
    figure.update_layout(xaxis=axis("context, tokens", contexts).layout, yaxis=y.layout, height=440)
    caption = (
        "Bytes of one sequence, counted from each model's declaration; the search compared them at "
        f"{results.context:,} {plural(results.context, 'token')} (dotted). Models with the same cache share a line."
    )
    return Panel("cache", title, caption, figure)


def _why_no_curve(results: Results, facts: Mapping[int, ModelFacts]) -> str:
    if not results.front:
        return "No sound model is trained, so there is none to count."
    problems = [facts[candidate.number].problem for candidate in results.front]
    return f"Could not be counted: {problems[0]}"


def _curve(
    curve: tuple[tuple[int, int], ...], models: Sequence[Candidate], y: Axis, colour: str, index: int
) -> go.Scatter:
    numbers = [str(model.number) for model in models]
    named = ", ".join(numbers[:4]) + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")
    name = f"{plural(len(models), 'trial')} {named}"
    labels = dict.fromkeys(html.escape(model_label(model.trials[0].config), quote=False) for model in models[:4])
    return go.Scatter(
        x=[tokens for tokens, _ in curve],
        y=[y.place(value) for _, value in curve],
        mode="lines",
        line={"color": colour, "width": 2, "dash": ("solid", "dash", "dot", "dashdot")[index % 4]},
        name=name,
        text=[
            f"<b>{name}</b><br>{'<br>'.join(labels)}<br>{tokens:,} {plural(tokens, 'token')}: {value:,} bytes "
            f"({binary_bytes(value)})"
            for tokens, value in curve
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _mark(context: int, heights: Sequence[float]) -> go.Scatter:
    return go.Scatter(
        x=[context, context],
        y=[min(heights), max(heights)],
        mode="lines",
        line={"dash": "dot", "width": 1, "color": OUTLINE},
        name=f"{context:,} {plural(context, 'token')}",
        showlegend=False,
        hoverinfo="skip",
    )
