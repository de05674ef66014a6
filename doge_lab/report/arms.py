"""The table of an experiment, and what in it may be chance: both from `result.json` alone."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from doge_lab.report import labels
from doge_lab.report.labels import plural, printable
from doge_lab.report.pairs import doubt
from doge_lab.stats import Comparison, Interval


def arms_table(result: Mapping[str, Any]) -> Table:
    """An arm a row: what it costs, and bits on every task with half the 95 % t interval."""
    seeds = result["protocol"]["seeds"]
    shown = Table(title=escape(f"{result['name']}: bits on test"), caption=_caption(result["protocol"]))
    shown.add_column("arm")
    for name in ("cache bytes", "parameters", "of them embedding", "active", *result["tasks"]):
        shown.add_column(escape(name), justify="right")
    for arm in result["arms"]:
        cost = arm["cost"]
        costs = [f"{cost[key]:,}" for key in ("cache_bytes", "params", "embedding_params", "active_params")]
        shown.add_row(
            escape(printable(arm["name"])), *costs, *(bits_text(arm["tasks"][task], seeds) for task in result["tasks"])
        )
    return shown


def _caption(protocol: Mapping[str, Any]) -> str:
    spread = (
        f"± half the 95 % t interval over {protocol['seeds']} seeds"
        if protocol["seeds"] > 1
        else "one seed: no interval, and the order may be chance"
    )
    return f"{spread}; learning rates {rates(protocol)}"


def rates(protocol: Mapping[str, Any]) -> str:
    """How the learning rates were found: by one seed each, an unlucky rate can look like a bad architecture."""
    if len(protocol["lr"]) == 1:
        return "the same for all, tuned for none"
    return f"tuned on validation data by {labels.seeds(protocol.get('tuning_seeds', 1))} each"


def doubts(result: Mapping[str, Any]) -> list[str]:
    """A line for every two neighbours whose order may be chance."""
    return [
        doubt(
            pair["task"],
            repr(pair["first"]),
            repr(pair["second"]),
            Comparison(Interval(**pair["bits"]), pair["probability"], False, pair["seeds_needed"]),
        )
        for pair in result["pairs"]
        if pair["bits"] and not pair["told_apart"]
    ]


def bits_text(cell: Mapping[str, Any], seeds: int) -> str:
    """`4.31 ± 0.20`, with what a hurried reader must not miss."""
    if cell["bits"] is None:
        return "failed" if cell["failed"] or any(tried["failed"] for tried in cell.get("grid", ())) else "unfinished"
    mean, half, n = (cell["bits"][key] for key in ("mean", "half", "n"))
    digits = 0 if abs(mean) >= 1000 else 2
    remarks = [f"{n} of {seeds} seeds"] if n < seeds else []
    remarks += [f"{cell[key]} {key}" for key in ("diverged", "failed", "saturated") if cell[key]]
    if broken := sum(None in tried["bits"] for tried in cell.get("grid", ())):
        remarks.append(f"{broken} {plural(broken, 'setting')} failed")
    if cell["train"]["at_edge"]:
        remarks.append(f"lr {cell['train']['lr']:g} is at the edge")
    spread = f" ± {half:,.{digits}f}" if half is not None else " (one seed)"
    return f"{mean:,.{digits}f}{spread}" + (f" ({', '.join(remarks)})" if remarks else "")
