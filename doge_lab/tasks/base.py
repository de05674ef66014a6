"""What every task offers: training batches that depend on a seed and a step alone, and a score in bits.

A score of zero bits is chance, exactly: `bits = Σ log2(answers) − Σ −log2 p(answer)` over everything asked.

Splits. A *memorised* table is its own test, so choices are made on other tables than the ones reported:
`scored_on: validation` and `scored_on: test` are different tables. A *sampled* task trains on sequences that are
disjoint from both. Nothing that is reported was used for a choice.

Shape letters: B sequence, T token.
"""

import abc
import hashlib
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from doge_lab.strict import Strict

IGNORE = -100
"""Target of a position that is not asked."""

Tokens = NDArray[np.int64]
Metrics = dict[str, Any]
Predict = Callable[[Tensor], Tensor]
ScoredOn = Literal["validation", "test"]
Split = Literal["train", "validation", "test"]


class Batch(NamedTuple):
    """inputs [B, T] token ids; targets [B, T] the answer at each position, `IGNORE` where nothing is asked."""

    inputs: Tensor
    targets: Tensor


class Task(Strict, abc.ABC):
    """A task as declared in a file."""

    memorised: ClassVar[bool] = False
    """True when the training data are what is scored (a table of facts)."""
    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Option -> values that make it harder, each tried alone from the defaults (`doge-lab tasks --ladder`)."""

    type: str
    name: str | None = None
    """What its results are called (`NAME.bits`); the type when left out."""
    train: Mapping[str, Any] = Field(default_factory=dict)
    """Training options that differ for this task."""

    @property
    def label(self) -> str:
        return self.name or self.type

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Tokens it needs."""

    @property
    @abc.abstractmethod
    def context(self) -> int:
        """The longest sequence that it scores, in tokens."""

    @abc.abstractmethod
    def data(self, *, seed: int, scored_on: ScoredOn) -> "TaskData":
        """The data of one run, a function of the arguments alone."""

    @property
    def n_rows(self) -> int | None:
        """Training sequences of an epoch; None where every step draws fresh ones."""
        return None

    def sized_for(self, params: int) -> "Task":
        """The task with sizes left to the model's parameter count filled in."""
        return self

    def grown(self, factor: float) -> "Task":
        """The task for a model `factor` times as large: a table grows with it, what is read in context does not."""
        return self


class TaskData(abc.ABC):
    """The data of one run."""

    @abc.abstractmethod
    def batch(self, step: int, size: int) -> Batch:
        """The training batch of a step: the same whenever it is asked for, so that a run can be resumed."""

    @abc.abstractmethod
    def evaluate(self, predict: Predict) -> Metrics:
        """Score a model; `predict` maps inputs [B, T] to logits [B, T, V]. Holds at least `bits` and `accuracy`."""

    @abc.abstractmethod
    def exposures(self, sequences: int) -> float:
        """How often each fact was seen after so many training sequences."""

    @abc.abstractmethod
    def data_hash(self) -> str:
        """SHA-256 of what is scored."""


class Epochs:
    """The order of training rows: every row once an epoch, in an order that is new each time."""

    def __init__(self, n_rows: int, *key: Any) -> None:
        self.n_rows, self.key = n_rows, key
        self._order = lru_cache(maxsize=2)(self._permutation)

    def rows(self, step: int, size: int) -> tuple[Tokens, Tokens]:
        """Epoch and row [B] of each sequence of a step; an epoch may end inside a step."""
        epoch, place = np.divmod(np.arange(step * size, (step + 1) * size), self.n_rows)
        return epoch, np.concatenate([self._order(int(e))[place[epoch == e]] for e in np.unique(epoch)])

    def _permutation(self, epoch: int) -> Tokens:
        return rng(*self.key, "order", epoch).permutation(self.n_rows)


def rng(*key: Any) -> np.random.Generator:
    """A generator that depends on `key` alone; different keys give unrelated streams."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def share_of(answer: Tokens, group: Tokens) -> NDArray[np.float64]:
    """How large a share of the answers of its group each answer [A] is: what knowing no more than these is worth."""
    _, group = np.unique(group, return_inverse=True)
    _, cell, count = np.unique(group * (answer.max(initial=0) + 1) + answer, return_inverse=True, return_counts=True)
    share: NDArray[np.float64] = count[cell] / np.bincount(group)[group]
    return share


def sha256(*arrays: Tokens) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Answers(NamedTuple):
    """What a model said at every asked position, flat: its cost in bits, and whether its best guess was right.

    row, position: where in the batch each was asked.
    """

    bits_paid: NDArray[np.float64]
    right: NDArray[np.bool_]
    row: NDArray[np.int64]
    position: NDArray[np.int64]


def ask(predict: Predict, inputs: Tokens, targets: Tokens, *, chunk: int = 512) -> Answers:
    """Run `predict` over all rows and read the answers at the asked positions."""
    paid, right = [], []
    for start in range(0, len(inputs), chunk):
        logits = predict(torch.from_numpy(inputs[start : start + chunk]))
        target = torch.from_numpy(targets[start : start + chunk]).to(logits.device)
        asked = target != IGNORE
        chosen, answer = logits[asked].float(), target[asked]
        paid.append(F.cross_entropy(chosen, answer, reduction="none").double().cpu().numpy() / math.log(2))
        right.append((chosen.argmax(-1) == answer).cpu().numpy())
    row, position = np.nonzero(targets != IGNORE)
    return Answers(np.concatenate(paid), np.concatenate(right), row, position)
