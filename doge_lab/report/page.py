"""The report as one HTML page that needs no network: plotly.js lies in it once, figures as JSON beside it."""

import html
from collections import Counter
from importlib.resources import files
from string import Template

import yaml
from plotly.offline import get_plotlyjs

from doge_lab.report.cards import card, escaped, fresh_line, html_table
from doge_lab.report.curves import cache_panel
from doge_lab.report.figures import front_panel
from doge_lab.report.labels import ARROWS, duration, is_exact, plain, plural, seeds
from doge_lab.report.models import model_facts
from doge_lab.report.panel import Panel, title_of
from doge_lab.report.study import study_panels
from doge_lab.report.table import front_rows
from doge_lab.search.front import Results

MOST_REASONS = 500


def page(results: Results) -> str:
    """The whole page."""
    facts = {candidate.number: model_facts(candidate.trials[0].config, results.context) for candidate in results.front}
    cards = [card(candidate, results, facts[candidate.number]) for candidate in results.front]
    template = Template(files("doge_lab.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        name=escaped(results.name),
        summary=_summary(results),
        counts=_counts(results),
        honesty="".join(f"<li>{line}</li>" for line in _honesty(results)),
        front=panel_html(front_panel(results)) + _front_table(results),
        figures="".join(panel_html(panel) for panel in (cache_panel(results, facts), *study_panels(results))),
        cards="".join(cards) or "<p>No trial is complete, so there is no model to show.</p>",
        reasons=_reasons(results),
        space=html.escape(yaml.safe_dump(plain(results.space), sort_keys=False, allow_unicode=True)),
        plotlyjs=get_plotlyjs(),
    )


def _summary(results: Results) -> str:
    early = f" The search ended early: {escaped(results.ended_early)}." if results.ended_early else ""
    return _reached(results) + early


def _reached(results: Results) -> str:
    names = [_heading(name, results) for name in results.objectives]
    if not results.front:
        return f"No trial is complete yet. Objectives: {' · '.join(names)}."
    if len(names) == 1:
        return f"The best of {len(results.candidates)} {plural(len(results.candidates), 'candidate')} by {names[0]}."
    best = f"{len(results.front)} of {len(results.candidates)} {plural(len(results.candidates), 'candidate')}"
    return f"{best} {'is' if len(results.front) == 1 else 'are'} on the front: {' · '.join(names)}."


def _heading(objective: str, results: Results) -> str:
    return f"{escaped(title_of(objective, results))}&nbsp;{ARROWS[results.objectives[objective]]}"


def _counts(results: Results) -> str:
    states = Counter(trial.state for trial in results.trials)
    unfinished = states["running"] + states["waiting"]
    seconds = sum(trial.seconds for trial in results.trials)
    shown = [
        ("trials complete", f"{states['complete']:,}"),
        ("rejected before training", f"{states['rejected']:,}"),
        ("failed", f"{states['failed']:,}"),
        *([("not finished", f"{unfinished:,}")] if unfinished else []),
        *([("tokens of context", f"{results.context:,}")] if results.context else []),
        ("training time, summed", duration(seconds)),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in shown)


def _honesty(results: Results) -> list[str]:
    """What a reader must know before believing a number."""
    if not results.front:
        return ["Nothing has been measured."]
    lines = [_seeds_line(results)]
    if any(not is_exact(name) for name in results.objectives):
        lines.append(
            "Measured values come from validation data, on which the front was also selected: the best of many noisy "
            "values is flattered. "
            + (
                "Values on fresh test data stand beside them."
                if _confirmed(results)
                else "None was repeated on test data."
            )
        )
    if _confirmed(results):
        lines.append(_confirmed_line(results))
    if any(is_exact(name) for name in results.objectives):
        lines.append("Costs (bytes, parameters, FLOPs) are counted, not measured: they are exact.")
    return lines


def _seeds_line(results: Results) -> str:
    counts = Counter(len(candidate.trials) for candidate in results.candidates)
    if set(counts) == {1}:
        return (
            "Every value of the search is from <b>one seed</b>: there is no interval, and neighbours may swap places "
            "with another seed."
        )
    parts = [f"{count} {plural(count, 'candidate')} with {seeds(number)}" for number, count in sorted(counts.items())]
    return f"Values are means over seeds: {', '.join(parts)}. ± is half a 95 % t interval; one seed has none."


def _confirmed(results: Results) -> bool:
    return any(candidate.confirmed for candidate in results.front)


def _confirmed_line(results: Results) -> str:
    counts = Counter(len(candidate.confirmed) for candidate in results.front)
    parts = [
        f"{count} {plural(count, 'model')} {'not repeated' if number == 0 else 'with ' + seeds(number)}"
        for number, count in sorted(counts.items())
    ]
    interval = "± is half a 95 % t interval" if max(counts) > 1 else "one seed gives no interval"
    return f"On fresh test data: {', '.join(parts)}; {interval}. These are the values to quote."


def _front_table(results: Results) -> str:
    rows = front_rows(results.front, results.objectives)
    if not rows:
        return ""
    header = ["trial", *(_heading(name, results) for name in results.objectives), "seeds", "model"]
    body = []
    for row in rows:
        fresh = [fresh_line(row.confirmed.get(name, "")) for name in results.objectives]
        values = [value + below for value, below in zip(row.values, fresh, strict=True)]
        number = f'<a href="#trial-{row.number}">{row.number}</a>'
        again = fresh_line(seeds(row.confirmed_seeds)) if row.confirmed_seeds else ""
        body.append([number, *values, seeds(row.seeds) + again, escaped(row.label)])
    return html_table(header, body, numeric=range(len(header) - 1))


def panel_html(panel: Panel) -> str:
    """A figure with its heading and caption; its data stand beside it as JSON."""
    heading = f'<figure class="panel" id="figure-{panel.name}"><h2>{escaped(panel.title)}</h2>'
    caption = f"<figcaption>{escaped(panel.caption)}</figcaption></figure>"
    if panel.figure is None:
        return heading + caption
    data = panel.figure.to_json()  # plotly writes `<` as an escape, so that no name closes the script element
    height = panel.figure.layout.height
    plot = f'<div class="plot" style="height: {height}px" role="img" aria-label="{escaped(panel.title)}"></div>'
    return f'{heading}{plot}<script type="application/json">{data}</script>{caption}'


def _reasons(results: Results) -> str:
    rows = [trial for trial in results.trials if trial.state in ("rejected", "failed")]
    if not rows:
        return "<p>No trial was rejected and none failed.</p>"
    body = [(str(trial.number), trial.state, escaped(trial.reason or "no reason recorded")) for trial in rows]
    table = html_table(("trial", "state", "reason"), body[:MOST_REASONS], numeric=(0,))
    if len(rows) > MOST_REASONS:
        table += f"<p>The first {MOST_REASONS} of {len(rows):,}; trials.csv has all.</p>"
    states = Counter(trial.state for trial in rows)
    said = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))
    opened = "" if results.front else " open"
    return f"<details{opened}><summary>Rejected and failed trials: {said}</summary>{table}</details>"
