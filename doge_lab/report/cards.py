"""A card per front model: what it is, what it reached, what it costs, how to build it again."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from doge_lab.report.files import rebuild_command, run_file
from doge_lab.report.labels import (
    METRICS,
    binary_bytes,
    is_exact,
    layers_of,
    model_label,
    model_of,
    model_options,
    number,
    objective_title,
    objective_value,
    printable,
    seeds,
    sentence,
    spread,
)
from doge_lab.report.models import ModelFacts
from doge_lab.report.pairs import dominated
from doge_lab.report.panel import title_of
from doge_lab.report.table import confirmed_values
from doge_lab.search.front import Candidate, Results

_SHARES = ("accuracy", "saturation")
_GIVEN = ("guess_bits", "exposures")
"""What follows from the task and its data, whatever the model."""
_OF_A_TABLE = ("bits_per_param", "bits_per_active_param", "exposures")
"""Metrics that mean something only where the weights learn a table by heart."""


def card(candidate: Candidate, results: Results, facts: ModelFacts) -> str:
    """The whole card as HTML."""
    return f"""<article class="card" id="trial-{candidate.number}">
<h3><span class="number">trial {candidate.number}</span> {escaped(model_label(candidate.trials[0].config))}</h3>
{_faults(facts)}{warned(sentence(dominated(candidate, results)))}
<div class="columns">
<div>{_objectives(candidate, results)}{_layers(candidate)}</div>
<div>{_details(_cost_rows(candidate, results) + _audit_rows(candidate))}{_tasks(candidate)}</div>
</div>
{command(rebuild_command(candidate))}
<p class="small">In this report's folder; the run is <a href="{run_file(candidate)}">{run_file(candidate)}</a>.</p>
</article>"""


def escaped(text: object) -> str:
    return html.escape(printable(text))


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[int] = ()) -> str:
    """A table of ready HTML cells that scrolls sideways where the screen is narrow; `numeric` columns align right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="n">{cell}</{tag}>' if column in numeric else f"<{tag}>{cell}</{tag}>"
            for column, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{line("th", header)}</tr></thead><tbody>{body}</tbody></table></div>'


def command(line: str) -> str:
    """A command with a button that copies it."""
    copy = '<button type="button" class="copy">copy</button>'
    return f'<div class="command"><code>{html.escape(line)}</code>{copy}</div>'


def _faults(facts: ModelFacts) -> str:
    return "".join(
        f'<p class="fault">Known fault, check <b>{escaped(check)}</b>: {escaped(reason)}</p>'
        for check, reason in facts.faults.items()
    )


def both(search: str, test: str) -> str:
    """A cell: what to quote, on fresh test data, above what the search saw and chose by."""
    fresh = f'<div class="fresh">test {test}</div>' if test else ""
    return f'{fresh}<div class="seen">search {search}</div>'


def warned(line: str) -> str:
    return f'<p class="fault">{escaped(line)}</p>' if line else ""


def _objectives(candidate: Candidate, results: Results) -> str:
    fresh = confirmed_values(candidate, results.objectives)
    rows = []
    for name in results.objectives:
        value = objective_value(name, [trial.values[name] for trial in candidate.trials])
        cell = value if is_exact(name) else both(value, spread(fresh[name]) if name in fresh else "")
        rows.append((escaped(title_of(name, results)), cell))
    table = html_table(("objective", "value"), rows, numeric=(1,))
    said = f"In the search: {_seeds(len(candidate.trials))}."
    if fresh:
        said += f" Test, on fresh data: {_seeds(len(candidate.confirmed))}."
    failed = [f"Not measured on fresh data from seed {seed}: {why}." for seed, why in candidate.unconfirmed.items()]
    return f'{table}<p class="small">{said}</p>{"".join(map(warned, failed))}'


def _seeds(count: int) -> str:
    return "one seed, no interval" if count == 1 else f"{seeds(count)}, 95 % t interval"


def _layers(candidate: Candidate) -> str:
    config = candidate.trials[0].config
    rows = [(str(repeat), escaped(sequence), escaped(state)) for repeat, sequence, state in layers_of(config)]
    others = model_options(config)
    width = f"d_model {escaped(model_of(config).get('d_model'))}" + (f", {escaped(others)}" if others else "")
    table = html_table(("layers", "sequence block", "state block"), rows, numeric=(0,))
    return f'{table}<p class="small">{width}; options that are not named have their defaults.</p>'


def _cost_rows(candidate: Candidate, results: Results) -> list[tuple[str, str]]:
    cost = candidate.trials[0].cost
    names = ("params", "embedding_params", "active_params", "flops_per_token", "cache_bytes")
    rows = [(escaped(title_of(name, results)), number(cost[name])) for name in names if name in cost]
    if "cache_bytes" in cost:
        title, value = rows[-1]
        rows[-1] = (title, f"{value} ({binary_bytes(cost['cache_bytes'])})" if cost["cache_bytes"] >= 1024 else value)
    return rows


def _audit_rows(candidate: Candidate) -> list[tuple[str, str]]:
    """What the second look at the trained model measured."""
    found = next((each for each in candidate.audits.values() if each.get("tasks")), None)
    if found is None:
        return []
    cache = escaped(candidate.trials[0].cost.get("cache_dtype", "its own type"))
    rows = [("bytes that a live cache holds", number(found["cache_bytes_held"]))]
    for task, bits in found["tasks"].items():
        lost = bits["bits"] - bits["bits_through_held_cache"]
        rows.append((f"{escaped(task)} bits lost through a cache in {cache}", f"{lost:.2g}"))
    return rows + [("not asked", escaped(each)) for each in found["not_asked"]]


def _tasks(candidate: Candidate) -> str:
    tasks = candidate.trials[0].metrics
    told = f'<p class="small">In the search, on validation data ({_seeds(len(candidate.trials))}):</p>'
    rows = "".join(_details(_task_rows(candidate, task)) + _saturated(candidate, task) for task in tasks)
    return told + rows if rows else ""


def _task_rows(candidate: Candidate, task: str) -> list[tuple[str, str]]:
    memorised = "saturation" in candidate.trials[0].metrics[task]
    measured = {
        metric: _measured(candidate, task, metric) for metric in METRICS if memorised or metric not in _OF_A_TABLE
    }
    return [
        (escaped(objective_title(f"{task}.{metric}")), _written(metric, values))
        for metric, values in measured.items()
        if values
    ]


def _measured(candidate: Candidate, task: str, metric: str) -> list[float]:
    """The metric by seed; empty unless every seed has it as a finite number."""
    found: list[Any] = [trial.metrics.get(task, {}).get(metric) for trial in candidate.trials]
    fine = all(isinstance(value, int | float) and math.isfinite(value) for value in found)
    return [float(value) for value in found] if fine else []


def _written(metric: str, values: Sequence[float]) -> str:
    if metric in _GIVEN:
        return number(values[0])
    return f"{spread([100 * value for value in values])} %" if metric in _SHARES else spread(values)


def _saturated(candidate: Candidate, task: str) -> str:
    metrics: Mapping[str, Any] = candidate.trials[0].metrics.get(task, {})
    if not metrics.get("saturated"):
        return ""
    return f'<p class="fault">{escaped(task)} is saturated: the model may hold more than it was asked for.</p>'


def _details(rows: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows) + "</dl>"
