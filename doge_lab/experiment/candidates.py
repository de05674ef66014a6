"""What is compared: the arms of an experiment's file, or models of a search's front, as runs that are yet unsized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_lab import config as runs
from doge_lab.errors import UserError
from doge_lab.experiment import config as experiments
from doge_lab.experiment.config import Experiment, Protocol, treated
from doge_lab.identity import fingerprint
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
    return _of_search(source, _protocol(overrides), most)


def _protocol(overrides: Sequence[str]) -> Protocol:
    """The protocol of a search's models: the default one, or what was set on the command line."""
    try:
        content = with_overrides({"protocol": Protocol().model_dump(mode="json")}, overrides)
        if set(content) != {"protocol"}:
            raise UserError("of a search's models only the protocol can be set, as in protocol.seeds=5")
        return validate(Protocol, content["protocol"])
    except UserError as error:
        raise error.under("--set") from None


def _of_experiment(experiment: Experiment) -> Candidates:
    written = {name: with_values(experiment.base, changes.items()) for name, changes in experiment.arms.items()}
    return Candidates(str(experiment.name), written, experiment.protocol)


def _of_search(directory: Path, protocol: Protocol, most: int) -> Candidates:
    if not (directory / STUDY).exists():
        raise UserError(f"{directory} holds no {STUDY}; name the folder of a search, or an experiment's file")
    results = read_results(directory)
    if not results.front:
        raise UserError("this search has no front yet; let it train some candidates first", str(directory))
    different: dict[str, Candidate] = {}  # models that differ only in what the protocol tunes are one model under it
    for candidate in results.front:
        run = treated(runs.parse(candidate.trials[0].config), protocol)
        different.setdefault(fingerprint(run), candidate)
    chosen = spread(list(different.values()), most)
    written = {f"trial {candidate.number}": _as_drawn(results.space, candidate) for candidate in chosen}
    return Candidates(results.name, written, protocol, directory)


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
