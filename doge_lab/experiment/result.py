"""An experiment's result as plain data: what every arm costs and came to, seed by seed, and what that amounts to.

result.json
name, protocol, tasks, code
arms[]: name, model, cost {params, embedding_params, active_params, flops_per_token, cache_bytes, context}
tasks{label}: train       the chosen setting {lr, weight_decay}, `at_edge`, and the grid it was chosen from
bits        {mean, half, n} on test: bits, half the 95 % t interval over seeds, seeds
accuracy    likewise
seconds, cpu_seconds   of a run, mean: on the wall clock, and of the processor
diverged, failed, saturated   numbers of seeds
seeds[]     {seed, metrics | failed, seconds, cpu_seconds}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from doge_lab.experiment.config import Arm, Experiment
from doge_lab.experiment.plan import Cell, Outcome
from doge_lab.files import write_text_atomically
from doge_lab.run import code_version
from doge_lab.stats import compare, t_interval

RESULT = "result.json"
CEILING = 0.99
"""Models that hold more than this share of what a task asks count as equal on it: it asks too little to tell."""
COSTS = ("params", "embedding_params", "active_params", "flops_per_token", "cache_bytes", "context", "cache_dtype")


def result_of(experiment: Experiment, cells: Sequence[Cell]) -> dict[str, Any]:
    """What is known so far; an arm that is not finished has fewer seeds than the protocol asks for."""
    arms = list(dict.fromkeys(cell.arm.name for cell in cells))
    tasks = list(dict.fromkeys(cell.task.label for cell in cells))
    return {
        "name": experiment.name,
        "code": code_version(),
        "protocol": experiment.protocol.model_dump(mode="json"),
        "tasks": tasks,
        "pairs": [pair for task in tasks for pair in _pairs([cell for cell in cells if cell.task.label == task])],
        "arms": [_arm([cell for cell in cells if cell.arm.name == name]) for name in arms],
    }


def write_result(experiment: Experiment, cells: Sequence[Cell], directory: Path) -> Path:
    """Put `result.json` into the experiment's folder, whole."""
    path = directory / RESULT
    write_text_atomically(path, json.dumps(result_of(experiment, cells), indent=1, allow_nan=False) + "\n")
    return path


def by_seed(cell: Mapping[str, Any]) -> dict[int, float]:
    """Bits of each seed of an arm's task in a result; a training that diverged holds none."""
    return {
        seed["seed"]: seed["metrics"]["bits"] if seed["metrics"] else 0.0
        for seed in cell["seeds"]
        if seed["metrics"] or seed["diverged"]
    }


def costs(arm: Arm) -> dict[str, Any]:
    """What the arm's model costs at the longest sequence that any of its tasks scores."""
    cost = arm.run.cost().dump()
    return {name: cost[name] for name in COSTS}


def _pairs(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Neighbours in the order by mean bits: whether that order is more than chance."""
    bits = {cell.arm.name: _bits(cell) for cell in cells if _bits(cell)}
    order = sorted(bits, key=lambda name: -fmean(bits[name].values()))
    return [_pair(cells[0].task.label, *names, bits) for names in pairwise(order)]


def _pair(task: str, first: str, second: str, bits: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    found = compare(bits[first], bits[second])
    return {
        "task": task,
        "first": first,
        "second": second,
        "bits": found.difference._asdict() if found.difference else None,
        "probability": found.probability,
        "seeds_needed": found.seeds_needed,
        "told_apart": found.told_apart,
    }


def _bits(cell: Cell) -> dict[int, float]:
    return {outcome.seed: outcome.bits for outcome in cell.reported if outcome.bits is not None}


def _arm(cells: Sequence[Cell]) -> dict[str, Any]:
    arm = cells[0].arm
    return {
        "name": arm.name,
        "model": arm.run.model.model_dump(mode="json"),
        "cost": costs(arm),
        "tasks": {cell.task.label: _cell(cell) for cell in cells},
    }


def _cell(cell: Cell) -> dict[str, Any]:
    scored = [outcome for outcome in cell.reported if outcome.metrics is not None]
    bits = [outcome.bits for outcome in cell.reported if outcome.bits is not None]
    return {
        "task": cell.task.model_dump(mode="json"),
        "train": {**cell.chosen.dump(), "at_edge": cell.at_edge} if cell.chosen else None,
        "grid": [
            {**setting.dump(), "bits": [outcome.bits for outcome in outcomes], "failed": _reasons(outcomes)}
            for setting in cell.grid
            if (outcomes := cell.tuned.get(setting))
        ],
        "bits": t_interval(bits)._asdict() if bits else None,
        "accuracy": t_interval([o.metrics["accuracy"] for o in scored if o.metrics])._asdict() if scored else None,
        "seconds": _mean([outcome.seconds for outcome in scored]),
        "cpu_seconds": _mean([outcome.cpu_seconds for outcome in scored]),
        "diverged": sum(outcome.diverged for outcome in cell.reported),
        "failed": sum(outcome.bits is None for outcome in cell.reported),
        "saturated": sum(bool(outcome.metrics and outcome.metrics.get("saturated")) for outcome in scored),
        "seeds": [_brief(outcome) for outcome in cell.reported],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _brief(outcome: Outcome) -> dict[str, Any]:
    """Without slices, which the run's own record keeps."""
    metrics = outcome.metrics and {name: value for name, value in outcome.metrics.items() if name != "slices"}
    return {**asdict(outcome), "metrics": metrics}


def _reasons(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.failed for outcome in outcomes if outcome.failed]
