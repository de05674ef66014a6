"""The report of a search as one HTML page."""

import html
from collections import Counter

from doge_lab.report.audits import struck_section
from doge_lab.report.cards import both, card, command, escaped, html_table, warned
from doge_lab.report.curves import cache_panel
from doge_lab.report.figures import front_panel
from doge_lab.report.files import space_yaml
from doge_lab.report.frame import framed, panel_html, template
from doge_lab.report.honesty import honesty
from doge_lab.report.labels import (
    ARROWS,
    chance,
    duration,
    is_exact,
    objective_title,
    plural,
    plus_minus,
    seeds,
    sentence,
)
from doge_lab.report.models import model_facts
from doge_lab.report.pairs import SEEDS, Pair, dominated, more_seeds, pairs, undecided, unmeasured, way_to_tell
from doge_lab.report.panel import title_of
from doge_lab.report.study import study_panels
from doge_lab.report.table import front_rows
from doge_lab.search.front import Results

MOST_REASONS = 500


def page(results: Results) -> str:
    """The whole page."""
    facts = {candidate.number: model_facts(candidate.trials[0].config, results.context) for candidate in results.front}
    cards = [card(candidate, results, facts[candidate.number]) for candidate in results.front]
    body = template("page.html").substitute(
        name=escaped(results.name),
        summary=_summary(results),
        counts=_counts(results),
        honesty="".join(f"<li>{line}</li>" for line in honesty(results)),
        front=panel_html(front_panel(results)) + _front_table(results),
        struck=struck_section(results),
        apart=_apart(results) if results.front else "",
        figures="".join(panel_html(panel) for panel in (cache_panel(results, facts), *study_panels(results))),
        cards="".join(cards) or f"<p>{_nobody(results)} There is no model to show.</p>",
        reasons=_reasons(results),
        space=html.escape(space_yaml(results)),
    )
    return framed(f"{results.name}: the front", body)


def _summary(results: Results) -> str:
    early = f" The search ended early: {escaped(results.ended_early)}." if results.ended_early else ""
    return _reached(results) + early


def _reached(results: Results) -> str:
    names = " · ".join(_heading(name, results) for name in results.objectives)
    if not results.front:
        return f"{_nobody(results)} Objectives: {names}."
    everyone = f"{len(results.candidates)} {plural(len(results.candidates), 'candidate')}"
    if len(results.objectives) == 1:
        return f"The best of {everyone}, chosen on validation data: {names}."
    kept = f"{len(results.front)} of {everyone} {'is' if len(results.front) == 1 else 'are'} on the front"
    return f"{kept}, chosen on validation data: {names}."


def _nobody(results: Results) -> str:
    """Why the front is empty."""
    return "Every candidate was struck." if results.struck else "No trial is complete yet."


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


def _front_table(results: Results) -> str:
    rows = front_rows(results.front, results.objectives)
    if not rows:
        return ""
    header = ["trial", *(_heading(name, results) for name in results.objectives), "seeds", "model"]
    body = []
    for row, candidate in zip(rows, results.front, strict=True):
        values = [
            value if is_exact(name) else both(value, row.confirmed.get(name, ""))
            for name, value in zip(results.objectives, row.values, strict=True)
        ]
        number = f'<a href="#trial-{row.number}">{row.number}</a>'
        counts = both(seeds(row.seeds), seeds(row.confirmed_seeds) if row.confirmed_seeds else "")
        model = escaped(row.label) + warned(sentence(dominated(candidate, results)))
        body.append([number, *values, counts, model])
    return html_table(header, body, numeric=range(len(header) - 1))


def _apart(results: Results) -> str:
    """The section on what may be chance."""
    found = pairs(results)
    none = undecided(results, found)
    more = more_seeds(results, ".", str(SEEDS) if none else "N")
    way_out = f"{command(more)}<p class='small'>In this report's folder; trains the front's models, and no other.</p>"
    if none:
        body = f"<p><b>{escaped(none)}</b> {SEEDS} seeds give intervals:</p>{way_out}"
    elif not found:
        body = "<p>There are no two models with values on fresh test data to compare.</p>"
    else:
        rows = [_apart_row(pair) for pair in found]
        header = ("objective", "better by its mean", "next", "difference", "probability of this order", "told apart")
        body = f"{html_table(header, rows, numeric=(3, 4))}<p class='small'>{_APART}</p>"
        if not all(pair.compared.told_apart for pair in found):
            body += f"<p class='small'>More seeds, in place of N:</p>{way_out}"
    missing = (
        [] if none else [f"Trial {candidate.number} has no value on test data." for candidate in unmeasured(results)]
    )
    return (
        f'<section id="apart"><h2>Which of these can be told apart?</h2>{body}{"".join(map(warned, missing))}</section>'
    )


_APART = (
    "Neighbours of the front by the means on fresh test data, compared seed by seed: difference ± half its 95 % t "
    "interval. They are told apart where that holds no zero. Of twenty pairs of equals one is expected to look "
    "different: the tests are not corrected for their number. Seeds are those at which a 5 % t test tells with power "
    "0.8, if mean and spread are what these few seeds show: a rough guess. The probability is that of Student's t, "
    "without prior; that one model dominates another is the product over objectives, as if they erred independently."
)


def _apart_row(pair: Pair) -> list[str]:
    first, second = (f'<a href="#trial-{c.number}">trial {c.number}</a>' for c in (pair.first, pair.second))
    title, found = escaped(objective_title(pair.objective)), pair.compared
    difference = plus_minus(found.difference) if found.difference else "no seed in common"
    likely = "none" if found.probability is None else chance(found.probability)
    apart = "yes" if found.told_apart else f'<b class="fault">no</b>; {way_to_tell(found)}'
    return [title, first, second, difference, likely, apart]


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
