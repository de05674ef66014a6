"""What tasks share that draw random sequences and score how well a model reads its context.

The scored sequences are never among the training ones, and validation's never among test's: a hash of the sequence
decides the split. Every step draws fresh sequences, unless `n_train` asks for a fixed set that is shown in epochs. A
task says how a sequence is drawn and what an answer is worth; bits, interval and slices follow.

    bits per sequence = Σ log2(possible answers) − Σ −log2 p(answer)        mean over sequences, zero is chance

Shape letters: B sequence, T token, A asked position.
"""

import abc
import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from doge_lab.errors import UserError
from doge_lab.tasks.base import (
    Answers,
    Batch,
    Epochs,
    Metrics,
    Predict,
    ScoredOn,
    Split,
    Task,
    TaskData,
    Tokens,
    ask,
    rng,
    sha256,
)

Z_975 = 1.959964
"""The normal quantile of the 95 % interval over sequences, of which there are hundreds."""
_BUCKETS = 16
_MOST_FRUITLESS = 200
"""Draws in a row of which nothing may be kept."""
_MOST_REPEATS = 32
"""Times that a scored sequence may come back on average; more would make an interval of a handful of sequences."""
_PART = 256
"""Sequences of a fixed training set that are drawn at once, so that a large set needs no large arrays."""
_SPLIT_BUCKETS: dict[Split, tuple[int, int]] = {"validation": (0, 1), "test": (1, 2), "train": (2, _BUCKETS)}


class SampledTask(Task):
    """A task whose sequences are random."""

    n_eval: int = Field(default=512, ge=2)
    """Sequences that are scored."""
    n_train: PositiveInt | None = None
    """Sequences of a fixed training set, shown epoch after epoch; left out, every step draws fresh ones."""

    @property
    def n_rows(self) -> int | None:
        return self.n_train


class SampledData(TaskData):
    """Sequences of one run. A subclass sets its attributes before it calls this constructor, which draws.

    inputs, targets [B, T]: what is scored.
    """

    task: SampledTask

    def __init__(self, task: SampledTask, *, seed: int, scored_on: ScoredOn) -> None:
        self.task, self.seed = task, seed
        self._epochs = Epochs(task.n_train, task.type, seed) if task.n_train else None
        self.inputs, self.targets = self._split(scored_on, task.n_eval, "eval")
        if len({row.tobytes() for row in self.inputs}) * _MOST_REPEATS < task.n_eval:
            raise self._too_few(scored_on)

    @abc.abstractmethod
    def draw(self, draw: np.random.Generator, count: int, split: Split) -> tuple[Tokens, Tokens]:
        """About `count` random inputs and targets [B, T], of any split; fewer where so many would be large.

        `split` is for tasks that score other sizes than they train.
        """

    @abc.abstractmethod
    def possible(self, answers: Answers) -> NDArray[np.float64]:
        """How many answers [A] a reader who knows the task, but has not read the sequence, must hold possible.

        They must be equally likely, so that knowing nothing scores zero bits.
        """

    @abc.abstractmethod
    def difficulty(self, answers: Answers) -> dict[str, NDArray[Any]]:
        """What `slices` are cut by: name -> a value for every answer [A]."""

    def batch(self, step: int, size: int) -> Batch:
        if self._epochs is None:
            inputs, targets = self._split("train", size, step)
        else:
            _, row = self._epochs.rows(step, size)
            inputs, targets = (part[row] for part in self._training_set)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def exposures(self, sequences: int) -> float:
        return sequences / self.task.n_train if self.task.n_train else 1.0

    def data_hash(self) -> str:
        return sha256(self.inputs, self.targets)

    def evaluate(self, predict: Predict) -> Metrics:
        """`bits` per sequence with a 95 % normal interval over the sequences, `max_bits`, `accuracy` and `slices`."""
        answers = ask(predict, self.inputs, self.targets)
        worth = np.log2(self.possible(answers))
        earned = worth - answers.bits_paid
        per_row = np.bincount(answers.row, weights=earned, minlength=len(self.inputs))
        half = Z_975 * float(per_row.std(ddof=1)) / math.sqrt(len(per_row))
        bits = float(per_row.mean())
        return {
            "bits": bits,
            "bits_interval": [bits - half, bits + half],
            "max_bits": float(worth.sum()) / len(self.inputs),
            "accuracy": float(answers.right.mean()),
            "n_sequences": len(self.inputs),
            "slices": cut(self.difficulty(answers), earned, answers.right),
        }

    @cached_property
    def _training_set(self) -> tuple[Tokens, Tokens]:
        n_train = self.task.n_train or 0
        parts = [self._split("train", _PART, ("fixed", start)) for start in range(0, n_train, _PART)]
        inputs, targets = (np.concatenate(part)[:n_train] for part in zip(*parts, strict=True))
        return inputs, targets

    def _split(self, split: Split, count: int, key: object) -> tuple[Tokens, Tokens]:
        """`count` sequences whose hash falls into the split's buckets."""
        draw = rng(self.task.type, self.seed, split, key)
        low, high = _SPLIT_BUCKETS[split]
        tries = math.ceil(1.3 * count * _BUCKETS / (high - low)) + 8
        kept: list[tuple[Tokens, Tokens]] = []
        left, fruitless = count, 0
        while left > 0:
            inputs, targets = self.draw(draw, tries, split)
            bucket = bucket_of(inputs)
            mine = (bucket >= low) & (bucket < high)
            kept.append((inputs[mine], targets[mine]))
            left -= int(mine.sum())
            fruitless = 0 if mine.any() else fruitless + 1
            if fruitless == _MOST_FRUITLESS:
                raise self._too_few(split)
        inputs, targets = (np.concatenate(part)[:count] for part in zip(*kept, strict=True))
        return inputs, targets

    def _too_few(self, split: Split) -> UserError:
        message = f"too few different sequences to keep {split} apart; make them longer or richer"
        return UserError(message, self.task.label)


def cut(keys: dict[str, NDArray[Any]], earned: NDArray[np.float64], right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """One row for every combination of keys that occurs: the keys, answers, mean bits and accuracy."""
    if not keys:
        return []
    table = np.stack([np.asarray(values) for values in keys.values()], axis=1)
    rows, member = np.unique(table, axis=0, return_inverse=True)
    member = member.reshape(-1)
    return [
        {
            **dict(zip(keys, row.tolist(), strict=True)),
            "answers": int((member == index).sum()),
            "bits_per_answer": float(earned[member == index].mean()),
            "accuracy": float(right[member == index].mean()),
        }
        for index, row in enumerate(rows)
    ]


def octave(name: str, values: Tokens) -> dict[str, Tokens]:
    """Slices of positive `values` [A] by powers of two: above `NAME_over`, up to `NAME_to`."""
    edge = 2 ** np.ceil(np.log2(values)).astype(int)
    return {f"{name}_over": edge // 2, f"{name}_to": edge}


def bucket_of(inputs: Tokens) -> Tokens:
    """A number below 16 for every row [B], that depends on the whole sequence, the same on every machine."""
    with np.errstate(over="ignore"):
        hashed = np.zeros(len(inputs), dtype=np.uint64)
        for column in inputs.T.astype(np.uint64):
            hashed = (hashed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            hashed ^= hashed >> np.uint64(29)
    return (hashed >> np.uint64(60)).astype(np.int64)
