"""The same candidate at another size: parameters times a factor, width times its square root, tables times the factor.

    factor 4     26,000 parameters -> 104,000      d_model 32 -> 64      1,000 facts -> 4,000, 320 steps -> 1,280

A memorised table keeps its bits per parameter and its exposures, so its steps grow with it, and the cost of a run with
the square of the factor. Sampled tasks keep their data and their steps. What a match is to solve stays open; where a
file writes all widths, those of the state blocks are opened, or d_model where there is no state block.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from doge_lab import config as runs
from doge_lab import registry
from doge_lab.config import RunConfig
from doge_lab.errors import UserError
from doge_lab.experiment.candidates import Candidates
from doge_lab.experiment.config import Experiment
from doge_lab.scale.agreement import arm_name, size_name
from doge_lab.tasks import Task

HEADS = 8
"""Widths stay multiples of this where they were: they must divide into heads."""


def at_size(written: Mapping[str, Any], factor: float) -> RunConfig:
    """The resolved run at `factor` times its size. Raises `UserError` when no width of it has that size."""
    run = runs.parse(written)
    small = run.resolved()
    if factor == 1:
        return small
    large = runs.parse({**run.dump(), **_grown(run, small, factor)}).resolved()
    pairs = zip(small.tasks, large.tasks, strict=True)
    tasks = tuple(_as_often(before, after, small.train_config(before).steps) for before, after in pairs)
    return large.model_copy(update={"tasks": tasks})


def _grown(run: RunConfig, small: RunConfig, factor: float) -> dict[str, Any]:
    """Model, match and tasks of `run` as a file would write them larger."""
    model = run.model.model_dump(mode="json")
    if run.match is None:
        match: dict[str, Any] = {"params": small.cost().params}
        for layer in model["layers"]:
            if width := registry.get("state", layer["state"]["type"]).width_option:
                layer["state"][width] = None
    else:
        match = run.match.model_dump(mode="json", exclude_none=True)
    ((target, value),) = ((name, match[name]) for name in ("params", "active_params", "cache_bytes") if name in match)
    if target == "cache_bytes":
        raise UserError("a match of cache_bytes does not say how parameters grow; match params", "match")
    step = math.gcd(HEADS, run.model.d_model)
    model["d_model"] = step * max(1, round(run.model.d_model * math.sqrt(factor) / step))
    return {
        "model": model,
        "match": {**match, target: round(value * factor)},
        "tasks": [task.grown(factor).model_dump(mode="json") for task in run.tasks],
    }


def _as_often(before: Task, after: Task, steps: int) -> Task:
    """`after` with so many steps that each row of it is shown as often as each row of `before` is in `steps`."""
    if before.n_rows is None or after.n_rows is None:
        return after
    return after.model_copy(
        update={"train": {**after.train, "steps": round(steps * after.n_rows / before.n_rows), "exposures": None}}
    )


def experiment_of(candidates: Candidates, factors: Sequence[float]) -> Experiment:
    """Every candidate at every size, as arms of one experiment. Raises `UserError` for one that has no such size."""
    arms: dict[str, dict[str, Any]] = {}
    for name, written in candidates.runs.items():
        for factor in factors:
            try:
                run = at_size(written, factor)
            except UserError as error:
                raise error.under(f"{name} at {factor:g} times its size") from None
            kept = {key: value for key, value in run.dump().items() if key not in ("seed", "name")}
            arms[arm_name(name, size_name(factor))] = kept
    return replace(candidates, name=f"{candidates.name}-scale", runs=arms).experiment()
