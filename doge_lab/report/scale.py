"""What `doge-lab scale` found, in words: from `scale.json` alone."""

from collections.abc import Mapping
from typing import Any

from doge_lab.report.labels import task_title


def scale_lines(facts: Mapping[str, Any]) -> list[str]:
    """A line per task: how far the order at the smallest size is that at the largest.

    Raises LookupError, TypeError or ValueError for what `doge-lab scale` does not write.
    """
    small, large = facts["sizes"][0], facts["sizes"][-1]
    sizes = f"{int(small['params']):,} and {int(large['params']):,} parameters"
    return [f"{task_title(str(task))}, {sizes}: {_tau(found)}" for task, found in facts["tasks"].items()]


def _tau(found: Mapping[str, Any]) -> str:
    if found["tau"] is None:
        return f"no order to compare, {int(found['n'])} candidates were scored at every size."
    said = f"Kendall's tau {float(found['tau']):.2f} over {int(found['n'])} candidates"
    if found["low"] is None:
        said += " (one seed, no interval)"
    else:
        said += f" (95 % interval over seeds {float(found['low']):.2f} to {float(found['high']):.2f})"
    if found["chance"] is None:
        return f"{said}; all are equal."
    return f"{said}; unrelated orders agree as well with probability {float(found['chance']):.2g}. 1 is the same order."
