"""Axes for sizes that span decades and may be zero: a logarithm has no place for zero, so it gets one of its own."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from doge_lab.report.labels import binary_bytes, number

WIDE = 8
"""Largest over smallest positive value from which an axis is logarithmic."""
_MOST_TICKS = 7


@dataclass(frozen=True)
class Axis:
    """`place` maps a value to where it is drawn; `layout` are plotly's settings; `zero` is where zero stands."""

    place: Callable[[float], float]
    layout: dict[str, Any]
    zero: float | None = None


def axis(title: str, values: Sequence[float], *, in_bytes: bool = False, always_log: bool = False) -> Axis:
    """An axis for `values`: logarithmic when none is negative and they span a factor of `WIDE`, else linear."""
    title = html.escape(title, quote=False)  # plotly reads a little HTML in titles
    positive = [value for value in values if value > 0]
    wide = bool(positive) and min(values) >= 0 and max(positive) >= WIDE * min(positive)
    if not wide and not (always_log and positive):
        layout = {"title": title, "tickformat": ",", "zeroline": False}
        return Axis(lambda value: value, layout | ({"rangemode": "nonnegative"} if min(values) >= 0 else {}))
    low, high = math.log2(min(positive)), math.log2(max(positive))
    margin = max(0.5, 0.06 * (high - low))
    zero = 2 ** (low - max(1.0, 0.12 * (high - low))) if min(values) == 0 else None
    ticks = _ticks(low, high)
    text = [binary_bytes(tick) if in_bytes else number(tick) for tick in ticks]
    start = low if zero is None else math.log2(zero)
    layout = {
        "title": title,
        "type": "log",
        "tickvals": ticks if zero is None else [zero, *ticks],
        "ticktext": text if zero is None else ["0", *text],
        "range": [math.log10(2) * (start - margin), math.log10(2) * (high + margin)],
        "zeroline": False,
    }
    return Axis(lambda value: value if value > 0 or zero is None else zero, layout, zero)


def _ticks(low: float, high: float) -> list[float]:
    """Powers of two, evenly spaced, from at or above 2**low to at or below 2**high."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    step = max(1, math.ceil((last - first + 1) / _MOST_TICKS))
    return [2.0**exponent for exponent in range(first, last + 1, step)]
