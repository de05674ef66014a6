"""What `doge-lab scale` compares: the arms of an experiment, or the front of a search, as runs that are yet unsized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_lab.errors import UserError
from doge_lab.experiment import config as experiments
from doge_lab.experiment.config import Protocol
from doge_lab.search.front import Candidate
from doge_lab.search.space import fill
from doge_lab.search.study import STUDY, read_results
from doge_lab.yamlfile import with_values


@dataclass(frozen=True)
class Candidates:
    """name -> a run as a file would write it, widths left open where its author left them; and how to treat them."""

    name: str
    runs: Mapping[str, Mapping[str, Any]]
    protocol: Protocol
    directory: Path | None = None
    """The search that they come from."""


def load(source: Path, overrides: Sequence[str] = (), *, most: int) -> Candidates:
    """Read an experiment's file or a search's folder. Raises `UserError` when there are not two to put in order."""
    found = _of_search(source, most) if source.is_dir() else _of_experiment(source, overrides)
    if overrides and source.is_dir():
        raise UserError("a search's candidates are what they are; leave --set out", "--set")
    if len(found.runs) < 2:
        raise UserError(f"holds {len(found.runs)} candidate; an order takes two", str(source))
    return found


def _of_experiment(path: Path, overrides: Sequence[str]) -> Candidates:
    experiment = experiments.load(path, overrides)
    runs = {name: with_values(experiment.base, changes.items()) for name, changes in experiment.arms.items()}
    return Candidates(str(experiment.name), runs, experiment.protocol)


def _of_search(directory: Path, most: int) -> Candidates:
    if not (directory / STUDY).exists():
        raise UserError(f"{directory} holds no {STUDY}; name the folder of a search, or an experiment's file")
    results = read_results(directory)
    chosen = spread(results.front, most)
    runs = {f"trial {candidate.number}": _as_drawn(results.space, candidate) for candidate in chosen}
    return Candidates(results.name, runs, Protocol(), directory)


def spread(front: Sequence[Candidate], most: int) -> list[Candidate]:
    """At most so many of the front, evenly over its first objective, both ends among them."""
    if len(front) <= most:
        return list(front)
    return [front[round(index * (len(front) - 1) / (most - 1))] for index in range(most)]


def _as_drawn(space: Mapping[str, Any], candidate: Candidate) -> dict[str, Any]:
    """The space as this candidate filled it: what a match is to solve is open again."""
    drawn = candidate.trials[0].params
    filled = fill(space, lambda name, hole: drawn[name])
    return {key: value for key, value in filled.items() if key not in ("search", "name", "seed")}
