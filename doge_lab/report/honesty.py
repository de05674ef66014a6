"""What a reader must know before believing a number: the list at the head of the page."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from doge_lab.report.audits import audit_line
from doge_lab.report.cards import escaped
from doge_lab.report.figures import guess_bits
from doge_lab.report.labels import is_exact, number, plural, rough, seeds, task_title
from doge_lab.report.scale import scale_lines
from doge_lab.report.table import reported
from doge_lab.search.front import Candidate, Results
from doge_lab.search.space import is_hole


def honesty(results: Results) -> list[str]:
    """The lines as HTML, the gravest first."""
    if not results.front:
        return ["No model stands on the front."]
    lines = [*map(escaped, outdated_lines(results)), audit_line(results), _seeds_line(results)]
    if any(not is_exact(name) for name in results.objectives):
        lines += [_validation_line(results), *_confirmed_lines(results), *_saturated_lines(results)]
        lines += [*_guessed_lines(results), _rate_line(results), *map(escaped, at_scale(results))]
    if any(is_exact(name) for name in results.objectives):
        lines.append(
            f"Costs (bytes, parameters, FLOPs) are counted, not measured: they are exact{_at_context(results)}."
        )
    return lines


def outdated_lines(results: Results) -> list[str]:
    """Whether the code has changed since the trials were computed; none when it has not."""
    from doge_lab.search.renewing import outdated  # imports torch, which no other page needs

    complete = [trial for trial in results.trials if trial.state == "complete"]
    found = outdated((trial.number, trial.config, trial.sources) for trial in complete)
    if not found:
        return []
    return [
        f"{len(found)} of {len(complete)} finished trials were computed by other code than is here now: this code may "
        "give other values. The same search with --resume trains them again."
    ]


def _seeds_line(results: Results) -> str:
    counts = Counter(len(candidate.trials) for candidate in results.candidates)
    if set(counts) == {1}:
        return (
            "Every value of the search is from <b>one seed</b>: there is no interval, and neighbours may swap places "
            "with another seed."
        )
    parts = [f"{count} {plural(count, 'candidate')} with {seeds(number)}" for number, count in sorted(counts.items())]
    return f"Values are means over seeds: {', '.join(parts)}. ± is half a 95 % t interval; ≈ marks one seed, without."


def _validation_line(results: Results) -> str:
    said = (
        "Values of the search come from validation data, on which the front was also selected: the best of many noisy "
        "values is flattered. "
    )
    if not any(candidate.confirmed for candidate in results.front):
        return f"{said}None was repeated on test data."
    return f"{said}Only the front was repeated on fresh test data: a model that missed it by bad luck is not on it."


def _confirmed_lines(results: Results) -> list[str]:
    counts = Counter(len(candidate.confirmed) for candidate in results.front)
    if not max(counts):
        return []
    parts = [
        f"{count} {plural(count, 'model')} {'not repeated' if number == 0 else 'with ' + seeds(number)}"
        for number, count in sorted(counts.items())
    ]
    interval = "± is half a 95 % t interval" if max(counts) > 1 else "one seed gives no interval"
    return [f"On fresh test data: {', '.join(parts)}; {interval}. These are the values to quote."]


def _saturated_lines(results: Results) -> list[str]:
    """A full table is a floor: who filled it may know any amount more."""
    full = Counter(task for candidate in results.front for task in _full_tables(candidate))
    return [
        f"<b>{escaped(task_title(task))} is saturated</b> in {count} of "
        f"{len(results.front)} {plural(len(results.front), 'model')} of the front: they may hold more than the table "
        "asks, and cannot be ranked by it."
        for task, count in full.items()
    ]


def _full_tables(candidate: Candidate) -> set[str]:
    return {task for trial in candidate.trials for task, found in trial.metrics.items() if found.get("saturated")}


def _guessed_lines(results: Results) -> list[str]:
    """Bits that show nothing: no more than chance, or than a guesser who knows which answers occur."""
    lines = []
    for name in results.objectives:
        if not name.endswith(".bits"):
            continue
        floor = guess_bits(results, name) or 0.0
        low = sum(reported(candidate, results.objectives)[name] <= floor for candidate in results.front)
        who = f"a guesser who knows which answers occur ({number(floor)} bits)" if floor else "chance (0 bits)"
        if low:
            lines.append(
                f"{low} of {len(results.front)} {plural(len(results.front), 'model')} of the front earned no more bits "
                f"of {escaped(task_title(name.rpartition('.')[0]))} than {who}: no sign that they learned it."
            )
    return lines


def _rate_line(results: Results) -> str:
    tuned = f"(doge-lab compare {escaped(results.directory)} tunes it for each model of the front)"
    if any(is_hole(rate) for rate in _written(results.space, "lr")):
        return f"Learning rates were drawn with the architectures: differences may be the rate's {tuned}."
    return f"One learning rate served all architectures: small differences may be the rate's {tuned}."


def _written(node: Any, key: str) -> Iterable[Any]:
    """Every value that stands under `key`, however deep."""
    if isinstance(node, Mapping):
        yield from (value for name, value in node.items() if name == key)
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    for child in children:
        yield from _written(child, key)


def at_scale(results: Results) -> list[str]:
    """Whether the order holds in larger models: a line per task where that was measured, else that it was not."""
    from doge_lab.scale.agreement import SCALE  # needs torch, which reading a front does not

    measured = _read_scale(Path(results.directory) / SCALE)
    if measured:
        return [f"In larger models: {line}" for line in measured]
    params = [candidate.trials[0].cost["params"] for candidate in results.front if "params" in candidate.trials[0].cost]
    size = f"These are proxies of about {rough(median(params))} parameters. " if params else ""
    return [
        f"{size}Whether their order holds in larger models has not been measured: doge-lab scale {results.directory}"
    ]


def _read_scale(path: Path) -> list[str]:
    """The lines of a `scale.json`; none where it is missing, torn or says something else."""
    try:
        return scale_lines(json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return []


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no figure")


def _at_context(results: Results) -> str:
    if not results.context:
        return ""
    return (
        f", at {results.context:,} {plural(results.context, 'token')} of context. At another length the order by cache "
        'may differ: <a href="#figure-cache">the curves</a>'
    )
