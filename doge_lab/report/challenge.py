"""Where a challenger stands, in words, as a table and as a page: from `challenge.json` alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from doge_lab.report.arms import bits_text, rates
from doge_lab.report.cards import escaped, html_table
from doge_lab.report.frame import framed, panel_html
from doge_lab.report.labels import chance, number, plural, printable, seeds, task_title
from doge_lab.report.places import places_panels
from doge_lab.stats import MOST_SEEDS

Facts = Mapping[str, Any]
RULE = (
    "no more cache bytes, FLOPs no more than 5 % above, and with probability 0.95 more bits on every task, "
    "but for those that both know by heart"
)
_BOTH = {"full": "both over 99 %", "guess": "both guess"}
_COSTS = {
    "cache_bytes": "cache bytes",
    "flops_per_token": "FLOPs per token",
    "params": "parameters",
    "embedding_params": "of them embedding",
    "active_params": "active",
}


def table(facts: Facts) -> Table:
    """For the terminal: a block a row, the challenger first; what is matched is in the caption and on the page."""
    params, embedding = (_mine(facts)["cost"][name] for name in ("params", "embedding_params"))
    shown = Table(
        title=escape(f"{facts['name']} among the {facts['kind']} blocks: bits on test"),
        caption=f"{_caption(facts)} About {params:,} parameters each, of them embedding {embedding:,}.",
    )
    header, rows = _cells(facts, ("cache_bytes", "flops_per_token"))
    shown.add_column(header[0])
    for name in header[1:]:
        shown.add_column(escape(name), justify="right")
    for row, cells in zip(_ordered(facts), rows, strict=True):
        shown.add_row(*map(escape, cells), style="bold" if row["name"] == facts["name"] else None)
    return shown


def page(facts: Facts) -> str:
    """The whole page as HTML."""
    header, rows = _cells(facts, tuple(_COSTS))
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
<section><h2>Against each rival</h2>{_rivals_table(facts)}</section>
<section><h2>Every block</h2>{html_table([escaped(name) for name in header], body, numeric=range(2, len(header)))}
<p class="small">{escaped(_caption(facts))}</p></section>""",
    )


def summary(facts: Facts) -> list[str]:
    """What a reader in a hurry should take away, and what not."""
    return [printable(line) for line in (*verdict_lines(facts), *caveats(facts))]


def verdict_lines(facts: Facts) -> list[str]:
    """What it replaces, what replaces it, and where it stands on each task."""
    name, said, count = facts["name"], facts["verdict"], len(facts["rivals"])
    ranks = [_rank(facts, task) for task in facts["tasks"]]
    if any(cell["bits"] is None for cell in _mine(facts)["tasks"].values()):
        return [f"{name} could not be trained on every task: it replaces nothing.", *ranks]
    if not count:
        return [f"{name} met no rival.", *ranks]
    nothing = f"none of {count} {plural(count, 'rival')}"
    lines = [f"{name} replaces {_list(said['replaces']) or nothing} ({RULE})."]
    if said["may_replace"]:
        lines.append(
            f"Open: whether it replaces {_list(said['may_replace'], 'or')}. It costs no more and is not shown to be "
            f"worse on any task, but {_seeds(facts)} do not show it better on every one, or neither learned one."
        )
    lines.append(f"{_list(said['replaced_by']) or 'No rival'} would replace it by the same rule.")
    return lines + ranks


def _rank(facts: Facts, task: str) -> str:
    cell = _mine(facts)["tasks"][task]
    said = f"{task_title(task)}, bits: {bits_text(cell, facts['frame']['protocol']['seeds'])}"
    if cell["bits"] is None:
        reason = next((reason for tried in cell["grid"] for reason in tried["failed"]), "")
        return f"{said}; not compared" + (f". {reason}" if reason else ".")
    found = [rival["tasks"][task] for rival in facts["rivals"]]
    better = sum(each["told_apart"] and each["bits"]["mean"] > 0 for each in found)
    worse = sum(each["told_apart"] and each["bits"]["mean"] < 0 for each in found)
    guess = cell["guess_bits"]
    line = f"{said}."
    if found:
        line = (
            f"{said}; more than {better} of {len(found)} {plural(len(found), 'rival')}, less than {worse}, "
            f"not told apart from {len(found) - better - worse}."
        )
    if guess and cell["bits"]["mean"] <= guess:
        line += f" That is no more than a guesser who knows which answers occur earns ({number(guess)}): not learned."
    return line


def caveats(facts: Facts) -> list[str]:
    """What a reader must know before believing it."""
    comparisons, params = len(facts["rivals"]) * len(facts["tasks"]), _mine(facts)["cost"]["params"]
    lines = [
        f"{_seeds(facts).capitalize()} on test data, steps fixed; learning rates of each block and task "
        f"{rates(facts['frame']['protocol'])}.",
        f"{comparisons} comparisons by 95 % t intervals, not corrected for their number: about one in twenty equals "
        "looks different by chance.",
        f"Models of {params:,} parameters: whether the order holds in larger ones is not measured here "
        "(doge-lab scale does that for an experiment or a search).",
    ]
    stored = sum(row["trained"] == "stored" for row in facts["rows"])
    if stored:
        code = facts["stored_code"]
        version = " ".join([code["doge_lab"], *([code["commit"][:7]] if "commit" in code else [])])
        lines.append(
            f"{stored} {plural(stored, 'rival')} as stored (doge-lab {version}), with the same data and seeds. "
            f"{_agreement(facts)}"
        )
    return lines


def _seeds(facts: Facts) -> str:
    return seeds(facts["frame"]["protocol"]["seeds"])


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
    clock = "CPU seconds of one run, of stored rows scaled to this machine"
    if not facts["device"].startswith("cpu"):
        clock = f"seconds of one run on {facts['device']}"
    return f"Cache and FLOPs at {context} tokens; ± half the 95 % t interval over seeds; training in {clock}."


def _cells(facts: Facts, costs: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    tasks, count = facts["tasks"], facts["frame"]["protocol"]["seeds"]
    header = ["block", "trained", *(_COSTS[name] for name in costs)]
    header += [f"{task_title(task)}, {what}" for what in ("bits", "training s") for task in tasks]
    rows = [
        [
            printable(row["name"]),
            row["trained"],
            *(f"{row['cost'][name]:,}" for name in costs),
            *(bits_text(row["tasks"][task], count) for task in tasks),
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
    header = ["rival", *(f"{task_title(task)}, bits more" for task in facts["tasks"])]
    header += ["costs no more", "replaced", "replaces it"]
    rows = [
        [
            escaped(rival["name"]),
            *(escaped(_difference(rival["tasks"][task])) for task in facts["tasks"]),
            "yes" if rival["costs_no_more"] else "no",
            *("unknown" if rival[key] is None else chance(rival[key]) for key in ("replaces", "replaced_by")),
        ]
        for rival in sorted(facts["rivals"], key=lambda rival: -(rival["replaces"] or 0.0))
    ]
    note = (
        "Bits of the challenger minus the rival's, seed by seed; in brackets how many seeds would tell two apart, if "
        "mean and spread are what they look like. Replaced, replaces it: probabilities that the challenger, or the "
        "rival, costs no more and is better on every task, as if tasks erred independently. On a task of which both "
        "know over 99 % they are equal; one at which both earn no more than a guesser says nothing of either, so that "
        "neither replaces the other."
    )
    found = html_table([escaped(name) for name in header], rows, numeric=range(1, len(header)))
    return f'{found}<p class="small">{note}</p>'


def _difference(compared: Mapping[str, Any]) -> str:
    """`+4,025 ± 1,514`, and in brackets why that is not all there is to say."""
    if compared["bits"] is None:
        return "not compared"
    mean, half = compared["bits"]["mean"], compared["bits"]["half"]
    digits = 0 if max(abs(mean), half or 0.0) >= 100 else 2
    said = f"{mean:+,.{digits}f}" + (f" ± {half:,.{digits}f}" if half is not None else "")
    if compared["both"]:
        return f"{said} ({_BOTH[compared['both']]})"
    return said if compared["told_apart"] else f"{said} ({_seeds_needed(compared)})"


def _seeds_needed(compared: Mapping[str, Any]) -> str:
    if compared["probability"] is None:
        return "one seed"
    if not compared["bits"]["mean"]:
        return "equal"
    needed = compared["seeds_needed"]
    return f"{needed} seeds" if needed else f"over {MOST_SEEDS:,} seeds"


def _list(names: Iterable[str], last: str = "and") -> str:
    known: Sequence[str] = list(names)
    return known[0] if len(known) == 1 else f"{', '.join(known[:-1])} {last} {known[-1]}" if known else ""
