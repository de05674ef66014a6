"""MAD's compression: a random sequence, a mark after which it is complete, then each of its tokens is asked for.

    inputs   5 2 9 | c | p1 p2 p3        p2: "the second token"
    targets  . . . | . | 5  2  9

    bits per sequence = length·log2(tokens) − Σ −log2 p(token)

In the paper the vector at the mark is all that a separate perceptron gets, which decodes each position from it. A model
of ours answers at every position, so it is asked itself: what the sequence is compressed into is its cache. Attention
keeps the sequence whole there, and is asked nothing hard; a fixed state has to hold all of it.

Source: Poli et al. 2024, https://arxiv.org/abs/2403.17844 (compression).

Shape letters: B sequence, T token.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from doge_lab.tasks.base import IGNORE, Answers, ScoredOn, Split, Tokens
from doge_lab.tasks.mad import SMALLER_SETS, MadData, MadTask
from doge_lab.tasks.sampled import octave


class MadCompression(MadTask):
    """A random sequence, to be told back position by position."""

    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n_tokens": (32, 64, 128),
        "length": (64, 128, 256),
        "n_train": SMALLER_SETS,
    }
    type: Literal["mad_compression"] = "mad_compression"
    n_tokens: int = Field(default=16, ge=2)
    """Different tokens of the sequence (the paper: 16, its mark among them)."""
    length: PositiveInt = 32
    """Tokens that are compressed (the paper: 32, its mark among them)."""

    @property
    def n_values(self) -> int:
        return self.n_tokens

    @property
    def vocab_size(self) -> int:
        """Tokens, the mark and a name for each position."""
        return self.n_tokens + 1 + self.length

    @property
    def context(self) -> int:
        return 2 * self.length + 1

    def data(self, *, seed: int, scored_on: ScoredOn) -> "MadCompressionData":
        return MadCompressionData(self, seed=seed, scored_on=scored_on)


class MadCompressionData(MadData):
    """Sequences of one run."""

    task: MadCompression

    def draw(self, draw: np.random.Generator, count: int, split: Split) -> tuple[Tokens, Tokens]:
        task = self.task
        told = draw.integers(task.n_tokens, size=(count, task.length))
        mark_and_places = np.broadcast_to(np.arange(task.n_tokens, task.vocab_size), (count, task.length + 1))
        inputs = np.concatenate([told, mark_and_places], axis=1)
        targets = np.full_like(inputs, IGNORE)
        targets[:, task.length + 1 :] = told
        return inputs, targets

    def difficulty(self, answers: Answers) -> dict[str, NDArray[Any]]:
        """Place in the sequence."""
        return octave("place", answers.position - self.task.length)
