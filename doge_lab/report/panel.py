"""What every figure of the page shares: its frame, its colours, its units."""

from dataclasses import dataclass

import plotly.graph_objects as go

from doge_lab.report.labels import objective_title
from doge_lab.search.front import Results

# Middle tones, legible on white and on black, so that one figure serves the light and the dark page.
GREY = "rgba(128,128,128,0.55)"
OUTLINE = "rgba(128,128,128,0.9)"
ACCENT = "#3a7ca5"
SCALE = "Viridis"


@dataclass(frozen=True)
class Panel:
    """One figure of the page; `figure` is None where it could not be drawn, and `caption` says why."""

    name: str
    title: str
    caption: str
    figure: go.Figure | None


def cache_dtype(results: Results) -> str | None:
    """The type of cached entries, where all candidates have the same."""
    found = {str(trial.cost["cache_dtype"]) for trial in results.trials if "cache_dtype" in trial.cost}
    return found.pop() if len(found) == 1 else None


def title_of(name: str, results: Results) -> str:
    return objective_title(name, results.context or None, cache_dtype(results))
