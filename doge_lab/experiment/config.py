"""An experiment as a file declares it: a run, named arms that differ from it, and the protocol that treats all alike.

base:       {model: ..., tasks: [...], train: {...}, match: {...}}
arms:
attention:   {}
window 8:    {model.layers.1.sequence.window: 8}
protocol:   {lr: [0.003, 0.01, 0.03], seeds: 3}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from doge_lab import config as runs
from doge_lab.config import RunConfig
from doge_lab.errors import UserError, in_file
from doge_lab.identity import fingerprint
from doge_lab.strict import Strict, validate
from doge_lab.tasks import Task
from doge_lab.yamlfile import read_mapping, with_overrides, with_values


class Protocol(Strict):
    """What every arm gets alike. The grid is tried on validation data; the best setting is scored on test data."""

    lr: tuple[PositiveFloat, ...] = Field(default=(0.003, 0.01, 0.03), min_length=1)
    """Learning rates to try, for every arm and every task."""
    weight_decay: tuple[NonNegativeFloat, ...] = ()
    """Weight decays to try with each learning rate; left out: the one that the run trains with."""
    tuning_seeds: int = Field(default=1, ge=1, le=1000)
    """Seeds per setting of the grid. Where seeds differ much, as in recall below saturation, one chooses by luck."""
    seeds: int = Field(default=3, ge=1, le=1000)
    """Seeds of what is reported: each its own initialisation, data and order, the same ones for every arm."""

    @field_validator("lr", "weight_decay")
    @classmethod
    def _different(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise UserError("a value is written twice")
        return tuple(sorted(values))


class Experiment(Strict):
    """Everything that decides an experiment's result."""

    name: str | None = None
    """What it is called; the file's stem when left out."""
    base: dict[str, Any]
    """The run that all arms start from."""
    arms: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name -> what differs from `base`: path.to.0.key -> value."""
    protocol: Protocol = Field(default_factory=Protocol)
    """How every arm is treated."""

    @model_validator(mode="after")
    def _sound(self) -> "Experiment":
        if self.name is not None:
            runs.checked_name(self.name)
        for key in ("seed", "name"):
            if key in self.base:
                raise UserError("the protocol sets the seeds and the arms the names; leave it out", f"base.{key}")
        return self


@dataclass(frozen=True)
class Arm:
    """One architecture: `run` is resolved over all of its tasks."""

    name: str
    run: RunConfig

    def job(self, task: Task, *, seed: int, train: Mapping[str, float] | None = None) -> RunConfig:
        """The run of one task, with training options on top."""
        own = task.model_copy(update={"train": {**task.train, **(train or {})}})
        return self.run.model_copy(update={"tasks": (own,), "seed": seed, "name": None})


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment from a YAML or JSON file. Raises `UserError` with the path inside it."""
    content = with_overrides(read_mapping(path), overrides)
    content.setdefault("name", path.stem)
    with in_file(path):
        if "arms" not in content:
            raise UserError(
                "an experiment needs `arms:`; a single run is for `doge-lab train`, a space for `doge-lab search`"
            )
        experiment = validate(Experiment, content)
        arms_of(experiment)
        return experiment


def treated(run: RunConfig, protocol: Protocol) -> RunConfig:
    """The run with what the protocol tunes set to one value: runs that differ in nothing else are one to it."""
    tuned: dict[str, float] = {"lr": protocol.lr[0]}
    if protocol.weight_decay:
        tuned["weight_decay"] = protocol.weight_decay[0]
    tasks = tuple(task.model_copy(update={"train": {**task.train, **tuned}}) for task in run.tasks)
    return run.model_copy(update={"train": run.train.model_copy(update=tuned), "tasks": tasks})


def arms_of(experiment: Experiment) -> list[Arm]:
    """The arms, matched and sized: all are read before the first is solved, which takes seconds.

    Raises `UserError` for one that cannot be built, or that is another one again.
    """
    read = {name: _run_of(experiment, name) for name in experiment.arms}
    _check_different(read, experiment.protocol)
    solved = {name: _resolved(name, run) for name, run in read.items()}
    _check_different(solved, experiment.protocol)
    return [Arm(name, run) for name, run in solved.items()]


def _run_of(experiment: Experiment, name: str) -> RunConfig:
    try:
        run = runs.parse(with_values(experiment.base, experiment.arms[name].items()))
        if not run.tasks:
            raise UserError("an experiment needs at least one task", "tasks")
    except UserError as error:
        raise error.under(f"arms.{name}") from None
    return run


def _resolved(name: str, run: RunConfig) -> RunConfig:
    try:
        return run.resolved()
    except UserError as error:
        raise error.under(f"arms.{name}") from None


def _check_different(arms: Mapping[str, RunConfig], protocol: Protocol) -> None:
    seen: dict[str, str] = {}
    for name, run in arms.items():
        same = seen.setdefault(fingerprint(treated(run, protocol)), name)
        if same != name:
            raise UserError(
                f"{name!r} is the same run as {same!r} (the protocol sets what it tunes); take one of them out",
                f"arms.{name}",
            )
