"""The front as rows of text, for the terminal and the page alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich import box
from rich.table import Table
from rich.text import Text

from doge_lab.report.labels import ARROWS, is_exact, model_label, objective_title, objective_value, spread
from doge_lab.search.front import Candidate, Direction, Results

_HEADING_WIDTH = 11
"""Columns of the screen for an objective, unless its values need more: headings wrap, for the model's name to fit."""


@dataclass(frozen=True)
class FrontRow:
    """One model of the front; `values` and `confirmed` (on fresh test data, by objective) are written out."""

    number: int
    label: str
    values: tuple[str, ...]
    seeds: int
    confirmed: Mapping[str, str]
    confirmed_seeds: int


def front_rows(front: Sequence[Candidate], objectives: Mapping[str, Direction]) -> list[FrontRow]:
    """Each model of the front with its objectives, mean and t interval over its seeds."""
    return [
        FrontRow(
            number=candidate.number,
            label=model_label(candidate.trials[0].config),
            values=tuple(
                objective_value(name, [trial.values[name] for trial in candidate.trials]) for name in objectives
            ),
            seeds=len(candidate.trials),
            confirmed={name: spread(values) for name, values in confirmed_values(candidate, objectives).items()},
            confirmed_seeds=len(candidate.confirmed),
        )
        for candidate in front
    ]


def confirmed_values(candidate: Candidate, objectives: Mapping[str, Direction]) -> dict[str, list[float]]:
    """What was measured on fresh test data, by objective; nothing for what is exact."""
    found = {name: list(candidate.fresh(name).values()) for name in objectives if not is_exact(name)}
    return {name: values for name, values in found.items() if values}


def reported(candidate: Candidate, objectives: Mapping[str, Direction]) -> dict[str, float]:
    """What to quote: means on fresh test data, and where there are none what the search saw."""
    again = confirmed_values(candidate, objectives)
    return {**candidate.values, **{name: fmean(values) for name, values in again.items()}}


def front_table(results: Results) -> Table:
    """The front, for a last look in the terminal: values on test data, and below them those by which it was chosen."""
    rows = front_rows(results.front, results.objectives)
    table = _table(results.objectives, rows, context=results.context or None)
    repeated = any(row.confirmed for row in rows)
    table.caption = (
        f"{_ON_TEST if repeated else 'Of the search, on validation data'}; ± half the 95 % t interval, ≈ one seed"
    )
    table.caption_justify = "left"
    for row in rows:
        shown = [row.confirmed.get(name, value) for name, value in zip(results.objectives, row.values, strict=True)]
        counted = row.confirmed_seeds if row.confirmed else row.seeds
        table.add_row(*(Text(cell) for cell in (str(row.number), *shown, str(counted), row.label)))
        if row.confirmed:
            search = [row.values[i] if name in row.confirmed else "" for i, name in enumerate(results.objectives)]
            table.add_row("", *search, str(row.seeds), "in the search", style="dim")
        elif repeated:
            table.add_row(*[""] * (len(results.objectives) + 2), "only in the search, not on test data", style="dim")
    return table


_ON_TEST = "On fresh test data; below, as the search saw them on validation data and chose by"


def rows_table(rows: Sequence[FrontRow], objectives: Mapping[str, Direction], limit: int | None = None) -> Table:
    """The given rows, a line each, cut to `limit` lines, the last of which says how many there are more."""
    table = _table(objectives, rows, wrap=False)
    shown = rows if limit is None or len(rows) <= limit else rows[: max(1, limit - 1)]
    for row in shown:
        table.add_row(*_cells(row))
    if len(shown) < len(rows):
        table.add_row(*[""] * (len(objectives) + 2), Text(f"and {len(rows) - len(shown)} more", style="dim"))
    return table


def _table(
    objectives: Mapping[str, Direction], rows: Sequence[FrontRow], *, context: int | None = None, wrap: bool = True
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right", no_wrap=True)
    for index, (name, direction) in enumerate(objectives.items()):
        title = Text(f"{objective_title(name, context)} {ARROWS[direction]}")
        cells = [cell for row in rows for cell in (row.values[index], row.confirmed.get(name, ""))]
        table.add_column(title, justify="right", max_width=max([_HEADING_WIDTH, *map(len, cells)]))
    table.add_column("seeds", justify="right", no_wrap=True)
    table.add_column("model", overflow="fold" if wrap else "ellipsis", no_wrap=not wrap)
    return table


def _cells(row: FrontRow) -> list[Text]:
    # As Text, because a name from a file may hold what rich would read as markup.
    return [Text(cell) for cell in (str(row.number), *row.values, str(row.seeds), row.label)]
