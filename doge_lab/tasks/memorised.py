"""What tasks share whose training data are what is scored: a table, shown epoch after epoch in a new order."""

import abc
import math
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import BeforeValidator, PositiveInt

from doge_lab.errors import UserError, shortened
from doge_lab.strict import validate
from doge_lab.tasks.base import Batch, Epochs, Task, TaskData, Tokens, sha256

AUTO_BITS_PER_PARAM = 2.8
"""An `auto` table asks for this many bits per parameter: more than any published model holds (at most 2.3).

Proxies trained for 300 exposures came to 2.5 (docs/laws.md), and were flagged as saturated.
"""
SATURATED = 0.9
"""A model that holds more than this share of the table was not asked for all it can hold."""


def _whole_or_auto(written: Any) -> Any:
    if written == "auto" or (type(written) is int and written > 0):
        return written
    raise UserError(f"must be a whole number above 0, or `auto`, not {shortened(written)}")


Size = Annotated[PositiveInt | Literal["auto"], BeforeValidator(_whole_or_auto)]
"""How many entries a table has."""


class MemorisedTask(Task):
    """A task whose answers are in the weights or nowhere."""

    memorised: ClassVar[bool] = True

    @property
    @abc.abstractmethod
    def n_rows(self) -> int:
        """Training sequences of an epoch. Not before the table is sized."""


class TableTask(MemorisedTask):
    """A table whose entries are worth the same; its size is an option, which may be `auto`."""

    size_option: ClassVar[str]
    """The option that says how many entries there are."""

    @property
    @abc.abstractmethod
    def bits_per_entry(self) -> float:
        """What there is to know of one entry."""

    @property
    def table_size(self) -> int:
        size = getattr(self, self.size_option)
        if size == "auto":
            raise UserError(
                f"{self.size_option} is auto, which needs a model's parameter count: use Task.sized_for first"
            )
        return int(size)

    def sized_for(self, params: int) -> Self:
        if getattr(self, self.size_option) != "auto":
            return self
        return self._with_size(math.ceil(AUTO_BITS_PER_PARAM * params / self.bits_per_entry))

    def grown(self, factor: float) -> Self:
        if getattr(self, self.size_option) == "auto":
            return self
        return self._with_size(round(self.table_size * factor))

    def _with_size(self, size: int) -> Self:
        return validate(type(self), {**self.model_dump(), self.size_option: size})


class MemorisedData(TaskData):
    """The rows of one run. A subclass tells what each looks like in an epoch.

    inputs, targets [B, T]: what is scored.
    """

    task: MemorisedTask
    seed: int
    inputs: Tokens
    targets: Tokens

    def __init__(self, task: MemorisedTask, *, seed: int) -> None:
        self.task, self.seed, self.n_rows = task, seed, task.n_rows
        self._epochs = Epochs(self.n_rows, task.type, seed)

    @abc.abstractmethod
    def rows(self, index: Tokens, epoch: int) -> tuple[Tokens, Tokens]:
        """Inputs and targets [B, T] of the rows `index` [B], as they are shown in `epoch`."""

    def batch(self, step: int, size: int) -> Batch:
        epoch, row = self._epochs.rows(step, size)
        shown = [self.rows(row[epoch == e], int(e)) for e in np.unique(epoch)]
        inputs, targets = (torch.from_numpy(np.concatenate(part)) for part in zip(*shown, strict=True))
        return Batch(inputs, targets)

    def exposures(self, sequences: int) -> float:
        return sequences / self.n_rows

    def data_hash(self) -> str:
        return sha256(self.inputs, self.targets)


def saturation(bits: float, max_bits: float) -> dict[str, float | bool]:
    """The share of the table that is held, and whether that is so much that the table was the limit."""
    return {"saturation": bits / max_bits, "saturated": bits > SATURATED * max_bits}
