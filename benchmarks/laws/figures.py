"""The figures of docs/laws.md: each experiment's result.json drawn beside it, as NAME.svg. Needs the extra `plots`.

python benchmarks/laws/figures.py benchmarks/laws/results/*.json

Filled marks are means and bars 95 % t intervals over seeds, cut at the frame; small open marks are the seeds. Grey is
what was published, or what a task allows.
"""

import hashlib
import re
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from measured import Arm, Cost, Law, read

BLUE, GREY = "#1b6ca8", "#666666"
FAMILIES = ((BLUE, -5, 5), ("#d1495b", 5, 5), ("#2e8b57", 5, -10), ("#8a5fbf", -5, 5), ("#c77f00", 5, -10))
"""Colours, and where the labels of a family's marks stand: points to the right and up."""
STYLE: dict[Any, Any] = {"svg.hashsalt": "laws", "svg.fonttype": "none", "font.size": 8.5, "axes.axisbelow": True}
UNITS: dict[Cost | None, str] = {
    None: "bits",
    "params": "bits per parameter",
    "active_params": "bits per active parameter",
    "cache_bytes": "bytes of cache",
}


class Band(NamedTuple):
    """Something to compare with, from `low` to `high`; a line where they are equal."""

    label: str
    low: float
    high: float


class Panel(NamedTuple):
    """Bits, or bits per something, of every arm.

    Each arm has a row of its own, or its place is its cost `x`, where `split` makes a family and a label of its name.
    """

    per: Cost | None
    bands: tuple[Band, ...] = ()
    x: Cost | None = None
    split: Callable[[str], tuple[str, str]] = lambda name: (name, "")


def panels(law: Law) -> list[Panel]:
    """What is drawn of a law."""
    return PANELS[law.name](law)


def _recall(law: Law) -> list[Panel]:
    return [Panel(None, _limits(law), "cache_bytes", _before_a_number)]


def _sizes(law: Law) -> list[Panel]:
    published = (Band("published at 1000 exposures", 2, 2), Band("published at 100", 1, 1))
    return [Panel("params", published, "params", lambda name: (name.split(", ")[1], name.split(", ")[0]))]


def _experts(law: Law) -> list[Panel]:
    most = law.arms["mlp"].bits("params").mean / 1.5
    return [Panel("params", (Band("none, published: at most", most, most),)), Panel("active_params")]


def _same_total(law: Law) -> list[Panel]:
    dense = law.arms["mlp, same total"].bits("params").mean
    return [Panel("params", (Band("moe, published", dense / 1.5, dense / 1.3),)), Panel("active_params")]


PANELS: dict[str, Callable[[Law], list[Panel]]] = {
    "recall_vs_state": _recall,
    "capacity_vs_size": _sizes,
    "experts": _experts,
    "experts_same_total": _same_total,
    "cdmoe": lambda law: [Panel("params"), Panel("active_params")],
    "inner_func_attn": lambda law: [Panel(None, _limits(law))],
    "inner_func_attn_32_pairs": lambda law: [Panel(None, _limits(law))],
}


def _limits(law: Law) -> tuple[Band, Band]:
    """All there is to recall, and what a reader earns who only knows which values occurred."""
    guess = next(iter(law.arms.values())).guess
    return Band("all", law.asked, law.asked), Band("guess among the values", guess, guess)


def _before_a_number(name: str) -> tuple[str, str]:
    """'delta rule, 4 heads' -> 'delta rule', '4 heads'."""
    found = re.fullmatch(r"(.+?),? (\d.*)", name)
    return (found[1], found[2]) if found else (name, "")


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        draw(read(path), path.with_suffix(".svg"))


def digest(law: Law) -> str:
    """Names what is drawn of a law, so that a figure can be told to be an old one."""
    values = [(panel.per, panel.bands, [(arm.name, arm.held(panel.per)) for arm in law.arms.values()])
              for panel in panels(law)]  # fmt: skip
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def draw(law: Law, path: Path) -> None:
    """Write the figure as SVG; the same law gives the same bytes."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    shown = panels(law)
    rows = shown[0].x is None
    with mpl.rc_context(STYLE):
        size = (7.6, 0.27 * len(law.arms) + 1.0 if rows else 3.6)
        figure, axes = plt.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False, layout="constrained")
        for panel, axis in zip(shown, axes[0], strict=True):
            (_draw_rows if rows else _draw_plane)(axis, panel, law)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(color="#e6e6e6", linewidth=0.6)
        figure.savefig(path, metadata={"Date": None, "Creator": None, "Identifier": digest(law)})
        plt.close(figure)


def _draw_rows(axis: Any, panel: Panel, law: Law) -> None:
    """A row for each arm, the first on top; bits to the right."""
    arms = list(law.arms.values())
    for row, arm in enumerate(arms):
        mean, half, _ = arm.bits(panel.per)
        axis.errorbar(mean, row, xerr=half, fmt="o", color=BLUE, ms=5, capsize=2.5, linewidth=1.2)
        axis.plot(list(arm.held(panel.per).values()), [row] * len(arm.seeds), "o", mfc="white", mec="black", ms=3,
                  mew=0.7, zorder=3)  # fmt: skip
    for band in panel.bands:
        axis.axvspan(band.low, band.high, color=GREY, alpha=0.25 if band.high > band.low else 0.8, linewidth=0.8)
        axis.annotate(band.label, ((band.low + band.high) / 2, 1), xycoords=("data", "axes fraction"), color=GREY,
                      xytext=(0, 3), textcoords="offset points", ha="center", fontsize=7.5)  # fmt: skip
    axis.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_xlim(0, 1.04 * _highest(law, panel))
    axis.set_xlabel(UNITS[panel.per])


def _draw_plane(axis: Any, panel: Panel, law: Law) -> None:
    """Bits against a cost, on a logarithmic scale; a line joins a family."""
    place = panel.x
    assert place
    families: dict[str, list[Arm]] = {}
    for arm in law.arms.values():
        families.setdefault(panel.split(arm.name)[0], []).append(arm)
    for family, (colour, right, up) in zip(families, cycle(FAMILIES), strict=False):
        members = sorted(families[family], key=lambda arm: arm.cost[place])
        x, found = [arm.cost[place] for arm in members], [arm.bits(panel.per) for arm in members]
        axis.errorbar(x, [interval.mean for interval in found], [interval.half or 0 for interval in found], fmt="o-",
                      color=colour, label=family, ms=4.5, capsize=2.5, linewidth=1)  # fmt: skip
        for arm, at, (mean, *_) in zip(members, x, found, strict=True):
            axis.annotate(panel.split(arm.name)[1], (at, mean), xytext=(right, up), textcoords="offset points",
                          ha="left" if right > 0 else "right", color=colour, fontsize=7.5)  # fmt: skip
    for band in panel.bands:
        axis.axhspan(band.low, band.high, color=GREY, alpha=0.8, linewidth=0.8)
        axis.annotate(band.label, (0.01, band.high), xycoords=("axes fraction", "data"), color=GREY,
                      xytext=(0, 2), textcoords="offset points", fontsize=7.5)  # fmt: skip
    axis.set_xscale("log", subs=(2, 3, 5))
    for which in ("major", "minor"):
        getattr(axis.xaxis, f"set_{which}_formatter")("{x:,.0f}")
    axis.set_xlabel(UNITS[panel.x] if panel.x == "cache_bytes" else "parameters")
    axis.set_ylabel(UNITS[panel.per])
    axis.margins(x=0.12, y=0.1)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _highest(law: Law, panel: Panel) -> float:
    """Where the frame ends: beyond every bar, but not beyond all that there is to recall."""
    ends = [interval.mean + (interval.half or 0) for interval in (arm.bits(panel.per) for arm in law.arms.values())]
    return max(min(max(ends), law.asked) if panel.per is None else max(ends), *(band.high for band in panel.bands), 0)


if __name__ == "__main__":
    main()
