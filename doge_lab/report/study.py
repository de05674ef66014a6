"""Figures 3 and 4, Optuna's own of the study: how the front grew, and which choices mattered."""

import html
import warnings
from collections.abc import Mapping
from pathlib import Path

import optuna
import plotly.graph_objects as go
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import plot_hypervolume_history, plot_optimization_history

from doge_lab.report.labels import printable
from doge_lab.report.panel import ACCENT, Panel, title_of
from doge_lab.search.front import Results
from doge_lab.search.storage import close_storage, the_study

FEWEST_TRIALS = 10
"""Below this, the best tenth of the trials is a single one, and no importance can be read off it."""
STEADY_TRIALS = 50
"""Optuna asks for five trials in the best tenth."""
MOST_PARAMS = 12


def study_panels(results: Results) -> list[Panel]:
    """Figures 3 and 4: history, then importances for each objective. A study that cannot be read is said to be so."""
    history = "How the front grew" if len(results.objectives) > 1 else "How the best value improved"
    if not Path(results.study_path).is_file():
        return [Panel("history", history, f"The study file {results.study_path} is missing.", None)]
    study, storage = the_study(Path(results.study_path))
    try:
        return [_history(study, results, history), *_importances(study, results)]
    finally:
        close_storage(storage)


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _history(study: optuna.Study, results: Results, title: str) -> Panel:
    trials = _complete(study)
    if not trials:
        return Panel("history", title, "No trial is complete.", None)
    if len(results.objectives) == 1:
        name = next(iter(results.objectives))
        figure = plot_optimization_history(study, target_name=html.escape(title_of(name, results), quote=False))
        return Panel("history", title, "Every complete trial, and the best so far.", _plain(figure, "trial"))
    reference = [results.reference[name] for name in results.objectives]
    signs = [1 if direction == "maximize" else -1 for direction in results.objectives.values()]
    if not any(
        all(sign * (value - limit) >= 0 for sign, value, limit in zip(signs, trial.values, reference, strict=True))
        for trial in trials
    ):
        return Panel("history", title, "No complete trial reaches the reference point, so the volume is zero.", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        figure = plot_hypervolume_history(study, reference)
    where = "; ".join(f"{title_of(name, results)} = {results.reference[name]:,.0f}" for name in results.objectives)
    caption = f"Hypervolume between the front and the reference point ({where}); only more of it is progress."
    return Panel("history", title, caption, _plain(figure, "trial", "hypervolume"))


def _importances(study: optuna.Study, results: Results) -> list[Panel]:
    trials = _complete(study)
    if len(trials) < FEWEST_TRIALS:
        there = f"there {'is' if len(trials) == 1 else 'are'} {len(trials)}"
        caption = f"Which choices mattered needs {FEWEST_TRIALS} complete trials to tell; {there}."
        return [Panel("importance", "What decided", caption, None)]
    return [_importance(study, results, index, name) for index, name in enumerate(results.objectives)]


def _importance(study: optuna.Study, results: Results, index: int, name: str) -> Panel:
    panel, title = f"importance-{index}", f"What decided {title_of(name, results)}"
    # Optuna's evaluator takes the lowest values for the best, whatever the study's direction.
    sign = -1.0 if results.objectives[name] == "maximize" else 1.0

    def target(trial: FrozenTrial) -> float:
        return sign * trial.values[index]

    trials = _complete(study)
    if len({target(trial) for trial in trials}) == 1:
        return Panel(panel, title, "All trials have the same value, so nothing decided it.", None)
    with warnings.catch_warnings():
        # That few trials make it shaky is said in the caption, that low values count as best is seen to above.
        warnings.filterwarnings("ignore", message="(Some regimes|Target and region|PedAnova)", category=UserWarning)
        try:
            importances = PedAnovaImportanceEvaluator().evaluate(study, target=target)
        except (ValueError, RuntimeError) as error:
            return Panel(panel, title, f"Optuna cannot tell: {error}", None)
    if not any(importances.values()):
        return Panel(panel, title, "Optuna finds no choice that sets the best trials apart.", None)
    return Panel(panel, title, _importance_caption(len(trials), len(importances)), _bars(importances))


def _importance_caption(trials: int, params: int) -> str:
    best = -(-trials // 10)
    shaky = f" Steady from about {STEADY_TRIALS} trials on: read it as a hint." if trials < STEADY_TRIALS else ""
    cut = f" The {MOST_PARAMS} largest of {params}." if params > MOST_PARAMS else ""
    return f"Share of what sets the best tenth ({best} of {trials} trials) apart (PED-ANOVA).{cut}{shaky}"


def _bars(importances: Mapping[str, float]) -> go.Figure:
    """Shares of the whole, the largest on top; Optuna's own figure copies every trial once per parameter."""
    whole = sum(importances.values())
    largest = sorted(importances.items(), key=lambda item: item[1])[-MOST_PARAMS:]
    shares = [value / whole for _, value in largest]
    bars = go.Bar(
        x=shares,
        y=[html.escape(printable(name), quote=False) for name, _ in largest],
        text=[f"{share:.2f}" if share >= 0.01 else "<0.01" for share in shares],
        textposition="outside",
        orientation="h",
        marker={"color": ACCENT},
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    figure = go.Figure(bars, layout_template="none")
    room = 1.15 * max(shares)  # for the figure written beside the longest bar
    figure.update_layout(xaxis={"title": "share of importance", "range": [0, room]}, yaxis={"type": "category"})
    return figure.update_layout(height=90 + 26 * len(shares))


def _plain(figure: go.Figure, x: str, y: str | None = None) -> go.Figure:
    """Optuna's figure without its title and colours: the page has its own."""
    figure.update_layout(template="none", title=None, xaxis_title=x, height=320)
    if y is not None:
        figure.update_layout(yaxis={"title": y, "exponentformat": "power"})
    figure.update_traces(line_color=ACCENT, selector={"type": "scatter"})
    figure.update_traces(marker={"size": 5, "color": ACCENT}, selector={"type": "scatter"})
    return figure
