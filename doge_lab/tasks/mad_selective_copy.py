"""MAD's selective copying: a few tokens stand scattered among blanks; at the marks they are copied in their order.

    inputs   _ 5 _ _ 9 _ 2 _ | m m m
    targets  . . . . . . . . | 5 9 2

    bits per sequence = copied·log2(values) − Σ −log2 p(token)

All marks are alike, so a reader has to count them. The vocabulary holds the blank and the mark.

Source: Poli et al. 2024, https://arxiv.org/abs/2403.17844 (selective copying).

Shape letters: B sequence, T token, N copied token.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from doge_lab.errors import UserError
from doge_lab.tasks.base import IGNORE, Answers, ScoredOn, Split, Tokens
from doge_lab.tasks.mad import SMALLER_SETS, MadData, MadTask
from doge_lab.tasks.sampled import octave

BLANK, MARK, FIRST = 0, 1, 2


class MadSelectiveCopy(MadTask):
    """Scattered tokens, copied in order."""

    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n_tokens": (32, 64, 128),
        "length": (512, 1024),
        "n_train": SMALLER_SETS,
        "n_copy": (32, 64, 96),
    }
    type: Literal["mad_selective_copy"] = "mad_selective_copy"
    n_tokens: int = Field(default=16, ge=4)
    """Vocabulary: a blank, a mark, and tokens to copy (the paper: 16)."""
    length: int = Field(default=256, ge=2)
    """Tokens of a sequence, marks included (the paper: 256)."""
    n_copy: PositiveInt = 16
    """Tokens to copy (the paper: 16)."""

    @model_validator(mode="after")
    def _fits(self) -> "MadSelectiveCopy":
        if 2 * self.n_copy > self.length:
            raise UserError(
                f"{self.n_copy} tokens and as many marks need a length of at least {2 * self.n_copy}, "
                f"not {self.length}",
                "n_copy",
            )
        return self

    @property
    def n_values(self) -> int:
        return self.n_tokens - FIRST

    @property
    def vocab_size(self) -> int:
        return self.n_tokens

    @property
    def context(self) -> int:
        return self.length

    def data(self, *, seed: int, scored_on: ScoredOn) -> "MadSelectiveCopyData":
        return MadSelectiveCopyData(self, seed=seed, scored_on=scored_on)


class MadSelectiveCopyData(MadData):
    """Sequences of one run."""

    task: MadSelectiveCopy

    def draw(self, draw: np.random.Generator, count: int, split: Split) -> tuple[Tokens, Tokens]:
        task = self.task
        marks = task.length - task.n_copy
        copied = draw.integers(FIRST, task.n_tokens, size=(count, task.n_copy))
        place = np.sort(draw.random((count, marks)).argsort(axis=1)[:, : task.n_copy], axis=1)
        inputs = np.full((count, task.length), BLANK, dtype=np.int64)
        targets = np.full_like(inputs, IGNORE)
        np.put_along_axis(inputs, place, copied, axis=1)
        inputs[:, marks:] = MARK
        targets[:, marks:] = copied
        return inputs, targets

    def difficulty(self, answers: Answers) -> dict[str, NDArray[Any]]:
        """Place in the order that is copied."""
        return octave("place", answers.position - (self.task.length - self.task.n_copy) + 1)
