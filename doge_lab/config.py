"""RunConfig: a model, tasks, training and a seed, as one YAML file declares them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from doge_lab.cost import Cost, cost_of
from doge_lab.errors import UserError, in_file, shortened
from doge_lab.match import MatchConfig, solve
from doge_lab.model import ModelConfig
from doge_lab.optim import TrainConfig
from doge_lab.strict import Strict, validate
from doge_lab.tasks import AnyTask, Task
from doge_lab.yamlfile import read_mapping, with_overrides


def checked_name(name: str) -> str:
    """A name that can be a folder's. Raises `UserError` for one that leads elsewhere."""
    if name in ("", ".", "..") or any(mark in name for mark in "/\\:\0") or len(name) > 100:
        raise UserError(f"{shortened(name)} cannot be a folder's name: no / \\ : and at most 100 characters", "name")
    return name


class RunConfig(Strict):
    """Everything that decides a run's result."""

    name: str | None = None
    """What it is called; the file's stem when left out."""
    model: ModelConfig
    """The architecture."""
    tasks: tuple[AnyTask, ...] = ()
    """What it is trained on and asked; each task trains its own copy of the model from scratch."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """How it is trained; a task may differ in its own `train`."""
    match: MatchConfig | None = None
    """A cost to meet by solving one free width."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Initialisation, data and order."""

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.name is not None:
            checked_name(self.name)
        labels = [checked_name(task.label) for task in self.tasks]
        for label in labels:
            if labels.count(label) > 1:
                raise UserError(f"two tasks are called {label!r}; give one of them a `name`", "tasks")
        for index, task in enumerate(self.tasks):
            try:
                self.train_config(task)
            except UserError as error:
                raise error.under(f"tasks.{index}.train") from None
        self.check_context(self.context)
        needed = max((task.vocab_size for task in self.tasks), default=0)
        if self.model.vocab_size is not None and self.model.vocab_size < needed:
            raise UserError(
                f"{self.model.vocab_size} is smaller than the {needed} tokens that the tasks need; "
                "leave it out or raise it",
                "model.vocab_size",
            )
        return self

    @property
    def context(self) -> int:
        """Tokens at which a search counts cache bytes: the longest sequence that a task scores."""
        return max((task.context for task in self.tasks), default=1)

    def check_context(self, context: int) -> None:
        """Raise `UserError` when learned positions do not reach so far."""
        if self.model.positions == "learned" and context > self.model.max_positions:
            raise UserError(f"{self.model.max_positions} is less than {context} tokens", "model.max_positions")

    def train_config(self, task: Task) -> TrainConfig:
        """The training options of one task: the run's, with the task's own on top."""
        return validate(TrainConfig, {**self.train.model_dump(mode="json"), **task.train})

    def cost(self, context: int | None = None) -> Cost:
        """What the (resolved) model costs; raises `UserError` when it cannot be built."""
        if context:
            self.check_context(context)
        try:
            return cost_of(self.model, context or self.context)
        except UserError as error:
            raise error.under("model") from None

    def resolved(self) -> "RunConfig":
        """The same run with nothing left open: vocabulary, matched width and table sizes filled in.

        Raises `UserError` when no width meets the match or the model cannot be built.
        """
        vocab_size = self.model.vocab_size or max((task.vocab_size for task in self.tasks), default=None)
        model = self.model.model_copy(update={"vocab_size": vocab_size})
        if self.match is not None:
            try:
                model = solve(model, self.match, context=self.context)
            except UserError as error:
                raise (error if error.path.startswith("match") else error.under("model")) from None
        run = self.model_copy(update={"model": model, "match": None})
        params = run.cost().params
        return run.model_copy(update={"tasks": tuple(run._settled(task, params) for task in run.tasks)})

    def _settled(self, task: Task, params: int) -> Task:
        """`task` sized for the model, its exposures turned into steps."""
        task = task.sized_for(params)
        train = self.train_config(task)
        if train.exposures is None or task.n_rows is None:
            return task
        steps = math.ceil(train.exposures * task.n_rows / train.batch_size)
        return task.model_copy(update={"train": {**task.train, "steps": steps, "exposures": None}})

    def dump(self) -> dict[str, Any]:
        """Plain data: what is left out of a file is written here."""
        return self.model_dump(mode="json", exclude_none=False)


def parse(written: Mapping[str, Any]) -> RunConfig:
    """Validate plain data. Raises `UserError` with the path inside it."""
    return validate(RunConfig, dict(written))


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run from a YAML or JSON file, with `path.to.key=value` overrides. Raises `UserError`."""
    content = with_overrides(read_mapping(path), overrides)
    content.setdefault("name", path.stem)
    with in_file(path):
        if "search" in content:
            raise UserError("this file is a search space (it has `search:`); run it with `doge-lab search`")
        if "arms" in content:
            raise UserError("this file is an experiment (it has `arms:`); run it with `doge-lab compare`")
        return parse(content)
