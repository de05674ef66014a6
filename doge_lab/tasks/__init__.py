"""Tasks: what a trained model is asked, scored in bits. A task's name is its file, found lazily, as for blocks."""

import importlib
import pkgutil
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, WithJsonSchema

from doge_lab.errors import UserError, did_you_mean, shortened
from doge_lab.strict import validate
from doge_lab.tasks.base import Batch, Metrics, Predict, ScoredOn, Task, TaskData

__all__ = ["AnyTask", "Batch", "Metrics", "Predict", "ScoredOn", "Task", "TaskData", "get", "names", "parse", "rungs"]


_SHARED = {"base", "mad", "mad_pairs", "memorised", "prose", "sampled", "tokenisers"}
"""Modules of this package that hold no task but what tasks share."""


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)


def get(name: str) -> type[Task]:
    """The task class called `name`. Raises `UserError` with a suggestion."""
    if name not in names():
        raise UserError(f"no task is named {shortened(name)}{did_you_mean(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    )


def parse(written: Any) -> Task:
    """Read `capacity` or `{type: capacity, n_entities: 1000}`."""
    if isinstance(written, Task):
        return written
    options = {"type": written} if isinstance(written, str) else written
    if not isinstance(options, dict) or not isinstance(options.get("type"), str):
        raise UserError(f"a task is a name or a mapping with `type`, not {shortened(written)}")
    try:
        task = get(options["type"])
    except UserError as error:
        raise error.under("type") from None
    return validate(task, options)


def rungs(task: Task) -> list[Task]:
    """`task`, and it again for every rung of its ladder: one option changed, and called by it."""
    changes = [(option, value) for option, values in task.ladder.items() for value in values]
    return [
        task,
        *(
            validate(type(task), {**task.model_dump(), option: value, "name": f"{task.label} {option}={_shown(value)}"})
            for option, value in changes
            if getattr(task, option) != value
        ),
    ]


def _shown(value: Any) -> str:
    """An option's value in a name: several are joined, as in `2+3`."""
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


AnyTask = Annotated[SerializeAsAny[Task], BeforeValidator(parse), WithJsonSchema({"x-task": True})]
