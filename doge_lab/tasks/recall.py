"""How many bits of its context the cache holds: multi-query associative recall (MQAR).

    k1 v1 k2 v2 | .  k2 .  .  k1 .  .  .       pairs first, then every key once more among filler
    .  .  .  .  | .  v2 .  .  v1 .  .  .       what is asked

    bits per sequence = queries·log2(values) − Σ −log2 p(value)

Values are uniform and independent, so zero bits is chance; a reader who only knows which values occurred earns
`log2(values) − log2(pairs)` per query (`guess_bits`) without recalling anything. Filler never equals a key of its
sequence, so every key is asked exactly once and only where it is scored.

Source: Arora et al. 2023, Zoology, https://arxiv.org/abs/2312.04927 (the distances follow their power law; their
filler may repeat a key, ours may not).

Shape letters: B sequence, T token, N pair.
"""

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from doge_lab.errors import UserError
from doge_lab.tasks.base import (
    IGNORE,
    Answers,
    Batch,
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

BLANK = 0
_BUCKETS = 16
_MOST_DRAWS = 200
_SPLIT_BUCKETS: dict[Split, tuple[int, int]] = {"validation": (0, 1), "test": (1, 2), "train": (2, _BUCKETS)}


class Recall(Task):
    """Multi-query associative recall at one or several numbers of pairs."""

    type: Literal["recall"] = "recall"
    n_pairs: tuple[PositiveInt, ...] = (4,)
    """Numbers of key-value pairs; each sequence has one of them, in equal shares."""
    length: int = Field(default=32, ge=4)
    """Tokens of a sequence; at least four times the largest number of pairs."""
    n_tokens: int = Field(default=64, ge=8)
    """Vocabulary: a blank, then keys, then values (half of it); a value is worth log2(n_tokens / 2) bits."""
    filler: Literal["random", "blank"] = "random"
    """What stands between the queries: any token but the sequence's own keys, or the blank."""
    distance_power: PositiveFloat = 0.01
    """Queries come at slot i with weight i^(power − 1): small is near, 1 is uniform."""
    n_eval: int = Field(default=512, ge=2)
    """Sequences that are scored."""

    @model_validator(mode="after")
    def _fits(self) -> "Recall":
        most = max(self.n_pairs, default=0)
        if not most or 4 * most > self.length:
            raise UserError(f"{most} pairs need a length of at least {4 * max(most, 1)}, not {self.length}", "n_pairs")
        if most > self.n_keys:
            raise UserError(f"{most} pairs need {most} keys, but n_tokens={self.n_tokens} leaves {self.n_keys}")
        return self

    @property
    def n_values(self) -> int:
        return self.n_tokens // 2

    @property
    def n_keys(self) -> int:
        return self.n_tokens - 1 - self.n_values

    @property
    def vocab_size(self) -> int:
        return self.n_tokens

    @property
    def context(self) -> int:
        return self.length

    def data(self, *, seed: int, scored_on: ScoredOn) -> "RecallData":
        return RecallData(self, seed=seed, scored_on=scored_on)


class RecallData(TaskData):
    """Fresh sequences for every step; the scored ones are never among them (a hash decides the split)."""

    def __init__(self, task: Recall, *, seed: int, scored_on: ScoredOn) -> None:
        self.task, self.seed = task, seed
        self.inputs, self.targets = self._split(scored_on, task.n_eval, "eval")

    def batch(self, step: int, size: int) -> Batch:
        inputs, targets = self._split("train", size, step)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def exposures(self, sequences: int) -> float:
        return 1.0

    def data_hash(self) -> str:
        return sha256(self.inputs, self.targets)

    def _split(self, split: Split, count: int, key: object) -> tuple[Tokens, Tokens]:
        """`count` sequences whose hash falls into the split's buckets."""
        draw = rng("recall", self.seed, split, key)
        low, high = _SPLIT_BUCKETS[split]
        tries = math.ceil(1.3 * count * _BUCKETS / (high - low)) + 8
        kept: list[tuple[Tokens, Tokens]] = []
        for _ in range(_MOST_DRAWS):
            inputs, targets = self._draw(draw, tries)
            bucket = _bucket(inputs)
            mine = (bucket >= low) & (bucket < high)
            kept.append((inputs[mine], targets[mine]))
            if sum(len(inputs) for inputs, _ in kept) >= count:
                parts = [np.concatenate(part)[:count] for part in zip(*kept, strict=True)]
                return parts[0], parts[1]
        raise UserError(f"too few different sequences to keep {split} apart; raise length or n_tokens", "length")

    def _draw(self, draw: np.random.Generator, count: int) -> tuple[Tokens, Tokens]:
        drawn = [
            self._draw_pairs(draw, n_pairs, math.ceil(count / len(self.task.n_pairs))) for n_pairs in self.task.n_pairs
        ]
        inputs, targets = (np.concatenate(part) for part in zip(*drawn, strict=True))
        order = draw.permutation(len(inputs))
        return inputs[order], targets[order]

    def _draw_pairs(self, draw: np.random.Generator, n_pairs: int, count: int) -> tuple[Tokens, Tokens]:
        """Sequences [B, T] with `n_pairs` pairs each, and their targets."""
        task, row = self.task, np.arange(count)[:, None]
        order = draw.random((count, task.n_keys)).argsort(axis=1)
        keys = 1 + order[:, :n_pairs]
        values = 1 + task.n_keys + draw.integers(task.n_values, size=(count, n_pairs))
        inputs = self._filler(draw, order, n_pairs)
        inputs[:, 0 : 2 * n_pairs : 2] = keys
        inputs[:, 1 : 2 * n_pairs : 2] = values
        place = 2 * n_pairs + 2 * self._slots(draw, count, n_pairs)
        targets = np.full_like(inputs, IGNORE)
        inputs[row, place] = keys
        targets[row, place] = values
        return inputs, targets

    def _filler(self, draw: np.random.Generator, order: Tokens, n_pairs: int) -> Tokens:
        """Tokens [B, T] that are no key of their sequence: the blank, unused keys and values, all equally likely."""
        task, count = self.task, len(order)
        if task.filler == "blank":
            return np.full((count, task.length), BLANK, dtype=np.int64)
        values = np.broadcast_to(np.arange(1 + task.n_keys, task.n_tokens), (count, task.n_values))
        blank = np.full((count, 1), BLANK, dtype=np.int64)
        allowed = np.concatenate([blank, 1 + order[:, n_pairs:], values], axis=1)
        return np.take_along_axis(allowed, draw.integers(allowed.shape[1], size=(count, task.length)), axis=1)

    def _slots(self, draw: np.random.Generator, count: int, n_pairs: int) -> Tokens:
        """A different slot for each query [B, N], drawn without replacement by the power law (Gumbel's top-k)."""
        slots = (self.task.length - 2 * n_pairs) // 2
        weight = np.arange(1, slots + 1, dtype=np.float64) ** (self.task.distance_power - 1)
        score = np.log(weight) + draw.gumbel(size=(count, slots))
        return np.argsort(-score, axis=1)[:, :n_pairs]

    def evaluate(self, predict: Predict) -> Metrics:
        """`bits` per sequence with a 95 % interval over sequences, `guess_bits`, `accuracy`, and `slices`.

        Slices: by number of pairs and by distance in tokens between a pair's key and its query.
        """
        answers = ask(predict, self.inputs, self.targets)
        worth = math.log2(self.task.n_values)
        earned = worth - answers.bits_paid
        per_row = np.bincount(answers.row, weights=earned, minlength=len(self.inputs))
        queries = np.bincount(answers.row, minlength=len(self.inputs))
        half = 1.96 * float(per_row.std(ddof=1)) / math.sqrt(len(per_row))
        bits = float(per_row.mean())
        return {
            "bits": bits,
            "bits_interval": [bits - half, bits + half],
            "max_bits": float((worth * queries).mean()),
            "guess_bits": float((queries * (worth - np.log2(queries))).mean()),
            "accuracy": float(answers.right.mean()),
            "n_sequences": len(self.inputs),
            "slices": self._slices(answers, earned, queries),
        }

    def _slices(self, answers: Answers, earned: np.ndarray, queries: np.ndarray) -> list[dict[str, float | int]]:
        pairs = queries[answers.row]
        distance = self._distances(answers)
        edge = 2 ** np.ceil(np.log2(distance)).astype(int)
        slices = []
        for n_pairs, most in sorted({(int(n), int(m)) for n, m in zip(pairs, edge, strict=True)}):
            mine = (pairs == n_pairs) & (edge == most)
            slices.append(
                {
                    "pairs": n_pairs,
                    "distance_over": most // 2,
                    "distance_to": most,
                    "queries": int(mine.sum()),
                    "bits_per_query": float(earned[mine].mean()),
                    "accuracy": float(answers.right[mine].mean()),
                }
            )
        return slices

    def _distances(self, answers: Answers) -> Tokens:
        """Tokens between a query and the key of its pair: the first place where that key stands."""
        key = self.inputs[answers.row, answers.position]
        first = (self.inputs[answers.row] == key[:, None]).argmax(axis=1)
        return answers.position - first


def _bucket(inputs: Tokens) -> Tokens:
    """A number below 16 that depends on the whole sequence, the same on every machine."""
    with np.errstate(over="ignore"):
        hashed = np.zeros(len(inputs), dtype=np.uint64)
        for column in inputs.T.astype(np.uint64):
            hashed = (hashed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            hashed ^= hashed >> np.uint64(29)
    return (hashed >> np.uint64(60)).astype(np.int64)
