"""MAD's memorisation: a fixed map from keys to values, shown nowhere, asked at the blank after each key.

    inputs   17 _  4 _  90 _ ...        the same map in all sequences, to be learned into the weights
    targets  .  a  . b  .  a ...

    bits = keys·log2(values) − Σ −log2 p(value | key)

Values are uniform and independent, where the paper takes a permutation: so zero bits is chance for every key, and each
is worth the same. An epoch shows every key once, in new company; the paper draws 256 sequences of keys at random. As
for every memorised task, `scored_on: validation` and `test` are different maps.

Source: Poli et al. 2024, https://arxiv.org/abs/2403.17844 (memorization).

Shape letters: B sequence, T token, K key.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from doge_lab.tasks.base import IGNORE, Metrics, Predict, ScoredOn, Tokens, ask, rng
from doge_lab.tasks.memorised import MemorisedData, MemorisedTask, saturation
from doge_lab.tasks.sampled import cut, octave

BLANK = 0


class MadMemorisation(MemorisedTask):
    """A map from single tokens to single tokens."""

    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {"n_tokens": (512, 1024, 2048, 4096, 8192)}
    type: Literal["mad_memorisation"] = "mad_memorisation"
    n_tokens: int = Field(default=256, ge=4)
    """Vocabulary: a blank, and of the rest half keys, half values (the paper: 256)."""
    length: int = Field(default=32, ge=2, multiple_of=2)
    """Tokens of a sequence: keys and a blank after each (the paper: 32)."""

    @property
    def n_keys(self) -> int:
        return (self.n_tokens - 1) // 2

    @property
    def n_values(self) -> int:
        return self.n_tokens - 1 - self.n_keys

    @property
    def n_rows(self) -> int:
        return math.ceil(self.n_keys / (self.length // 2))

    @property
    def vocab_size(self) -> int:
        return self.n_tokens

    @property
    def context(self) -> int:
        return self.length

    def data(self, *, seed: int, scored_on: ScoredOn) -> "MadMemorisationData":
        return MadMemorisationData(self, seed=seed, scored_on=scored_on)


class MadMemorisationData(MemorisedData):
    """One map. values [K]: the value of each key."""

    task: MadMemorisation

    def __init__(self, task: MadMemorisation, *, seed: int, scored_on: ScoredOn) -> None:
        super().__init__(task, seed=seed)
        self.values: Tokens = rng(task.type, seed, scored_on, "table").integers(task.n_values, size=task.n_keys)
        self.inputs, self.targets = self._written(np.arange(task.n_keys))

    def _written(self, keys: Tokens) -> tuple[Tokens, Tokens]:
        """All rows, with the keys in this order; what is left of the last one is blank."""
        inputs = np.full(self.n_rows * self.task.length, BLANK, dtype=np.int64)
        targets = np.full_like(inputs, IGNORE)
        inputs[: 2 * len(keys) : 2] = 1 + keys
        targets[1 : 2 * len(keys) : 2] = 1 + self.task.n_keys + self.values[keys]
        return inputs.reshape(self.n_rows, -1), targets.reshape(self.n_rows, -1)

    def rows(self, index: Tokens, epoch: int) -> tuple[Tokens, Tokens]:
        company = rng(self.task.type, self.seed, "company", epoch).permutation(self.task.n_keys)
        inputs, targets = self._written(company)
        return inputs[index], targets[index]

    def evaluate(self, predict: Predict) -> Metrics:
        """`bits` held in all, `max_bits` in the map, `accuracy`, and `slices` by the key's place in its sequence."""
        answers = ask(predict, self.inputs, self.targets)
        earned = math.log2(self.task.n_values) - answers.bits_paid
        held, max_bits = float(earned.sum()), math.log2(self.task.n_values) * self.task.n_keys
        return {
            "bits": held,
            "max_bits": max_bits,
            **saturation(held, max_bits),
            "accuracy": float(answers.right.mean()),
            "slices": cut(octave("place", answers.position // 2 + 1), earned, answers.right),
        }
