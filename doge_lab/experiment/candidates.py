"""What is compared: the arms of an experiment's file, or models of a search's front, as runs that are yet unsized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from doge_lab.errors import UserError
from doge_lab.experiment import config as experiments
from doge_lab.experiment.config import Experiment, Protocol
from doge_lab.search.front import Candidate
from doge_lab.search.space import fill
from doge_lab.search.study import STUDY, read_results
from doge_lab.strict import validate
from doge_lab.yamlfile import with_overrides, with_values


@dataclass(frozen=True)
class Candidates:
    """name -> a run as a file would write it, widths left open where its author left them; and how to treat them."""

    name: str
    runs: Mapping[str, dict[str, Any]]
    protocol: Protocol
    directory: Path | None = None
    """The search that they come from."""

    def experiment(self) -> Experiment:
        """The runs as arms."""
        return Experiment(name=self.name, base={}, arms=dict(self.runs), protocol=self.protocol)


def load(source: Path, overrides: Sequence[str] = (), *, most: int) -> Candidates:
    """Read an experiment's file, or at most so many models of a search's folder. Raises `UserError`."""
    if not source.is_dir():
        return _of_experiment(experiments.load(source, overrides))
    found = _of_search(source, most)
    try:
        content = with_overrides({"protocol": found.protocol.model_dump(mode="json")}, overrides)
        if set(content) != {"protocol"}:
            raise UserError("of a search's models only the protocol can be set, as in protocol.seeds=5")
        protocol = validate(Protocol, content["protocol"])
    except UserError as error:
        raise error.under("--set") from None
    return replace(found, protocol=protocol)


def _of_experiment(experiment: Experiment) -> Candidates:
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
