"""A finished search in a wider space: further choices, wider ranges, everything else as it was.

Optuna ties the name of a draw to its values for good, so the trials of the study are written again under the wider
ones. A trial keeps its number, state, values and attributes.
"""

import copy
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from doge_lab.search.space import Hole, Scalar, fill, is_hole, parse_hole


def difference(before: Any, after: Any, path: str = "") -> str:
    """Where `after` is more than a wider `before`; empty when every draw from `before` is one from `after`."""
    where = path or "the file"
    if is_hole(before) and is_hole(after):
        return (
            "" if _contains(parse_hole(before, path), parse_hole(after, path)) else f"{where} no longer holds the old"
        )
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        if changed := sorted(before.keys() ^ after.keys()):
            return f"{'.'.join(filter(None, (path, changed[0])))} was added or taken out"
        return _first(difference(before[key], after[key], f"{path}.{key}" if path else str(key)) for key in before)
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        parts = enumerate(zip(before, after, strict=True))
        return _first(difference(*pair, f"{path}.{index}") for index, pair in parts)
    return "" if before == after and type(before) is type(after) else f"{where} has changed"


def _first(found: Any) -> str:
    return next((where for where in found if where), "")


def _contains(before: Hole, after: Hole) -> bool:
    if before.kind != after.kind or (before.step, before.log) != (after.step, after.log):
        return False
    if before.kind != "choice":
        aligned = before.kind == "float" or (before.low - after.low) % after.step == 0
        return aligned and after.low <= before.low <= before.high <= after.high
    old, new = (dict(zip(hole.labels, hole.choices, strict=True)) for hole in (before, after))
    return all(label in new and not difference(choice, new[label]) for label, choice in old.items())


def moved(trial: FrozenTrial, space: Mapping[str, Any]) -> FrozenTrial:
    """`trial` with the distributions that its draws have in the wider `space`."""
    met: dict[str, BaseDistribution] = {}

    def draw(name: str, hole: Hole) -> Scalar:
        met[name] = distribution(hole)
        return trial.params.get(name, hole.labels[0] if hole.kind == "choice" else hole.low)

    fill(space, draw)
    again = copy.deepcopy(trial)
    again.distributions = {name: met.get(name, old) for name, old in trial.distributions.items()}
    return again


def distribution(hole: Hole) -> BaseDistribution:
    """What Optuna draws from."""
    if hole.kind == "choice":
        return CategoricalDistribution(hole.labels)
    if hole.kind == "int":
        return IntDistribution(int(hole.low), int(hole.high), log=hole.log, step=hole.step)
    return FloatDistribution(hole.low, hole.high, log=hole.log)
