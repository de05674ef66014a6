"""What names a result: what was asked for, and the source that computed it.

identity   one task, the model, and the training options that differ from their defaults. What a file leaves out, what
           it calls things and what has no effect changes nothing; the training budget stands apart.
source     every module that the blocks, the task and training reach (`doge_lab.digest`): after an edit of one of them
           a stored result is another program's, and is never taken for this one's.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from doge_lab import digest, registry
from doge_lab.config import RunConfig
from doge_lab.model import BlockRef, LayerConfig
from doge_lab.optim import TrainConfig
from doge_lab.tasks import Task

BUDGET = frozenset({"steps", "exposures"})
TRAINING = "doge_lab.train"
"""The module that trains, with all that it reaches."""


def identity(run: RunConfig, task: Task) -> str:
    """Twelve hex digits that name what the resolved `run` asks of one task, whatever its seed and budget."""
    return _hashed(_asked(run, task))


def fingerprint(run: RunConfig) -> str:
    """Twelve hex digits that name a resolved run, whatever its seed and name: the same candidate, the same digits."""
    budgets = [_budget(run.train_config(task), task) for task in run.tasks]
    asked = [_asked(run, task) for task in run.tasks] or [_of_model(run)]
    return _hashed([asked, budgets])


def place(run: RunConfig, task: Task) -> str:
    """Twelve hex digits for where `run` keeps one of its tasks: no other candidate's, but the same for every budget.

    Two candidates may ask the same of this task and differ in another: at once in one folder they would collide.
    """
    others = [_budget(run.train_config(other), other) for other in run.tasks if other.label != task.label]
    return _hashed([[_asked(run, each) for each in run.tasks], others])


def _asked(run: RunConfig, task: Task) -> dict[str, Any]:
    written = task.model_dump(mode="json", exclude_defaults=True, exclude={"type", "name", "train"})
    train = run.train_config(task)
    return {"model": _of_model(run), "task": {"type": task.type, **written}, "train": _of_training(train)}


def _of_model(run: RunConfig) -> dict[str, Any]:
    model = run.model
    unused = {"layers"} | ({"max_positions"} if model.positions == "none" else set())
    written = model.model_dump(mode="json", exclude_defaults=True, exclude=unused)
    return {**written, "layers": [_of_layer(layer) for _, layer in model.expanded()]}


def _of_layer(layer: LayerConfig) -> list[Any]:
    return [_of_block(ref) for ref in (layer.sequence, layer.state)]


def _of_block(ref: BlockRef) -> dict[str, Any]:
    return {"type": ref.type, **ref.options.model_dump(mode="json", exclude_defaults=True)}


def _of_training(train: TrainConfig) -> dict[str, Any]:
    unused = BUDGET | ({"final_lr"} if train.schedule == "constant" else set())
    unused |= set() if train.warmup_steps is None else {"warmup"}
    return train.model_dump(mode="json", exclude_defaults=True, exclude=set(unused))


def _budget(train: TrainConfig, task: Task) -> list[float | None]:
    return [train.steps, train.exposures if task.memorised else None]


def _hashed(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Source:
    """What computes a result. modules: name -> 12 hex digits of its code, comments and docstrings left out."""

    modules: Mapping[str, str]

    @property
    def name(self) -> str:
        """Twelve hex digits."""
        return _hashed(dict(self.modules))

    def changed(self, before: Mapping[str, str]) -> list[str]:
        """Modules that differ from those of an earlier result."""
        return sorted(name for name in {*self.modules, *before} if self.modules.get(name) != before.get(name))


COSTS = ("doge_lab.cost", "doge_lab.match")
"""Modules that count what a candidate costs, with all that they reach."""


def sources(run: RunConfig) -> dict[str, str]:
    """Task label -> name of the source of its result, and `(cost)` -> that of the candidate's costs."""
    found = {task.label: source(run, task).name for task in run.tasks}
    return {**found, "(cost)": Source(digest.as_loaded(COSTS)).name}


def source(run: RunConfig, task: Task) -> Source:
    """The source that trains and scores `run` on `task`, as this process has loaded it."""
    refs = [ref for _, layer in run.model.expanded() for ref in (layer.sequence, layer.state)]
    blocks = {registry.get(ref.kind, ref.type).__module__ for ref in refs}
    return Source(digest.as_loaded((TRAINING, type(task).__module__, *sorted(blocks))))
