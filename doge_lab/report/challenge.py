"""Where a challenger stands, in words, as a table and as a page: from `challenge.json` alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from doge_lab.report.arms import bits_text
from doge_lab.report.cards import escaped, html_table
from doge_lab.report.frame import framed, panel_html
from doge_lab.report.labels import plural, task_title
from doge_lab.report.places import places_panels

Facts = Mapping[str, Any]
RULE = "no more cache bytes, FLOPs no more than 5 % above, and better on every task with probability 0.95"


def table(facts: Facts) -> Table:
    """For the terminal: a block a row, the challenger first."""
    shown = Table(title=f"{facts['name']} among the {facts['kind']} blocks: bits on test", caption=_caption(facts))
    header, rows = _cells(facts)
    shown.add_column(header[0])
    for name in header[1:]:
        shown.add_column(name, justify="right")
    for row, cells in zip(_ordered(facts), rows, strict=True):
        shown.add_row(*cells, style="bold" if row["name"] == facts["name"] else None)
    return shown


def page(facts: Facts) -> str:
    """The whole page as HTML."""
    header, rows = _cells(facts)
    body = [[escaped(cell) for cell in cells] for cells in rows]
    body[0] = [f"<b>{cell}</b>" for cell in body[0]]
    lines = "".join(f"<li>{escaped(line)}</li>" for line in caveats(facts))
    verdict = "".join(f"<p>{escaped(line)}</p>" for line in verdict_lines(facts))
    return framed(
        f"{facts['name']} against the shelf",
        f"""<header><h1>{escaped(facts["name"])} among the {facts["kind"]} blocks</h1>
<div class="lead">{verdict}</div>
<div class="honest"><ul>{lines}</ul></div></header>
{"".join(panel_html(panel) for panel in places_panels(facts))}
<section><h2>Every block</h2>{html_table(header, body, numeric=range(1, len(header)))}
<p class="small">{escaped(_caption(facts))}</p></section>
<section><h2>Against each rival</h2>{_rivals_table(facts)}</section>""",
    )


def summary(facts: Facts) -> list[str]:
    """What a reader in a hurry should take away, and what not."""
    return [*verdict_lines(facts), *caveats(facts)]


def verdict_lines(facts: Facts) -> list[str]:
    """What it replaces, what replaces it, and where it stands on each task."""
    name, said, count = facts["name"], facts["verdict"], len(facts["rivals"])
    if not count:
        return [f"{name} met no rival."]
    nothing = f"none of {count} {plural(count, 'rival')}"
    lines = [f"{name} replaces {_list(said['replaces']) or nothing} ({RULE})."]
    if said["may_replace"]:
        lines.append(f"It may replace {_list(said['may_replace'])}: it costs no more, and no task tells it worse.")
    lines.append(f"{_list(said['replaced_by']) or 'No rival'} would replace it by the same rule.")
    return lines + [_rank(facts, task) for task in facts["tasks"]]


def _rank(facts: Facts, task: str) -> str:
    found = [rival["tasks"][task] for rival in facts["rivals"]]
    better = sum(each["told_apart"] and each["bits"]["mean"] > 0 for each in found)
    worse = sum(each["told_apart"] and each["bits"]["mean"] < 0 for each in found)
    said = bits_text(_mine(facts)["tasks"][task], facts["frame"]["protocol"]["seeds"])
    return (
        f"{task_title(task)}: {said} bits, more than {better} of {len(found)} {plural(len(found), 'rival')}, "
        f"less than {worse}, not told apart from {len(found) - better - worse}."
    )


def caveats(facts: Facts) -> list[str]:
    """What a reader must know before believing it."""
    seeds, comparisons = facts["frame"]["protocol"]["seeds"], len(facts["rivals"]) * len(facts["tasks"])
    params = _mine(facts)["cost"]["params"]
    lines = [
        f"{seeds} seeds on test data; learning rates tuned per block and task on validation data, steps fixed.",
        f"{comparisons} comparisons by 95 % t intervals, not corrected for their number: about one in twenty equals "
        "looks different by chance.",
        f"Models of {params:,} parameters: whether the order holds in larger ones is not measured here "
        "(doge-lab scale does that for an experiment or a search).",
    ]
    stored = sum(row["trained"] == "stored" for row in facts["rows"])
    return lines + ([f"{stored} rivals as stored, with the same data and seeds. {_agreement(facts)}"] if stored else [])


def _agreement(facts: Facts) -> str:
    checked = facts["agreement"]
    if not checked:
        return "None of them was trained here, so whether the records hold on this machine is not known."
    fine = sum(each["agrees"] for each in checked)
    said = f"Of {len(checked)} stored figures trained anew here {fine} came out within the wider of the two intervals"
    off = {f"{each['name']} on {each['task']}" for each in checked if not each["agrees"]}
    return f"{said}; not {_list(sorted(off))}: distrust the stored rows." if off else f"{said}."


def _caption(facts: Facts) -> str:
    context = _mine(facts)["cost"]["context"]
    return (
        f"Cache and FLOPs at {context} tokens; ± half the 95 % t interval over seeds; training in CPU seconds of one "
        "run (wall seconds include waiting), of stored rows scaled to this machine."
    )


def _cells(facts: Facts) -> tuple[list[str], list[list[str]]]:
    tasks = facts["tasks"]
    header = ["block", "trained", "cache bytes", "FLOPs per token", "parameters", "of them embedding", "active"]
    header += [*(f"{task_title(task)}, bits" for task in tasks), *(f"{task_title(task)}, CPU s" for task in tasks)]
    costs = ("cache_bytes", "flops_per_token", "params", "embedding_params", "active_params")
    seeds = facts["frame"]["protocol"]["seeds"]
    rows = [
        [
            row["name"],
            row["trained"],
            *(f"{row['cost'][name]:,}" for name in costs),
            *(bits_text(row["tasks"][task], seeds) for task in tasks),
            *(_spent(row["tasks"][task]["seconds"]) for task in tasks),
        ]
        for row in _ordered(facts)
    ]
    return header, rows


def _ordered(facts: Facts) -> list[Mapping[str, Any]]:
    """The challenger, then by cache and FLOPs."""
    return sorted(
        facts["rows"],
        key=lambda row: (row["name"] != facts["name"], row["cost"]["cache_bytes"], row["cost"]["flops_per_token"]),
    )


def _mine(facts: Facts) -> Mapping[str, Any]:
    return next(row for row in facts["rows"] if row["name"] == facts["name"])


def _spent(seconds: Mapping[str, Any] | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{seconds['mean']:.1f}" + (f" ± {seconds['half']:.1f}" if seconds["half"] is not None else " (one seed)")


def _rivals_table(facts: Facts) -> str:
    header = ["rival", *(f"{task_title(task)}, bits more" for task in facts["tasks"]), "costs no more", "replaced"]
    rows = [
        [
            escaped(rival["name"]),
            *(escaped(_difference(rival["tasks"][task])) for task in facts["tasks"]),
            "yes" if rival["costs_no_more"] else "no",
            "unknown" if rival["replaces"] is None else f"{rival['replaces']:.2f}",
        ]
        for rival in sorted(facts["rivals"], key=lambda rival: -(rival["replaces"] or 0.0))
    ]
    note = (
        "Bits of the challenger minus the rival's, seed by seed. The last column: probability that the challenger "
        "costs no more and is better on every task, as if tasks erred independently; a task of which both hold over "
        "99 % does not decide."
    )
    return html_table(header, rows, numeric=range(1, len(header))) + f'<p class="small">{note}</p>'


def _difference(compared: Mapping[str, Any]) -> str:
    if compared["bits"] is None:
        return "unknown"
    mean, half = compared["bits"]["mean"], compared["bits"]["half"]
    digits = 0 if abs(mean) >= 1000 else 1
    said = f"{mean:+,.{digits}f}" + (f" ± {half:,.{digits}f}" if half is not None else " (one seed)")
    return said if compared["told_apart"] else f"{said}, not told apart"


def _list(names: Iterable[str]) -> str:
    known: Sequence[str] = list(names)
    return known[0] if len(known) == 1 else f"{', '.join(known[:-1])} and {known[-1]}" if known else ""
