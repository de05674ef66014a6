"""How many bits of its context the cache holds: multi-query associative recall (MQAR).

    k1 v1 k2 v2 | .  k2 .  .  k1 .  .  .       pairs first, then every key once more among filler
    .  .  .  .  | .  v2 .  .  v1 .  .  .       what is asked

    bits per sequence = queries·log2(values) − Σ −log2 p(value)

Values are uniform and independent, so zero bits is chance; a reader who only knows how often each value was bound earns
`log2(values · times/pairs)` per query (`guess_bits`) without recalling anything. Filler never equals a key of its
sequence, so every key is asked exactly once and only where it is scored.

Harder forms, which may be combined:

    n_stacks: 2       k1 v1 k2 v2 . k2 . k1 | k2 w2 k1 w1 . k1 k2 .     episodes: the same keys, new values, asked again
    noise: 0.2        . k1 v1 k2 v2 . . k3 v3 | ...                     tokens between pairs, never inside one
    eval_length, eval_pairs                                             scored on more than was trained on

An episode's queries ask for that episode's values: what was bound last. `guess_bits` is earned by knowing the values
that the episode bound.

Source: Arora et al. 2023, Zoology, https://arxiv.org/abs/2312.04927 (the distances follow their power law; their
filler may repeat a key, ours may not). The harder forms are ours.

Shape letters: B sequence, T token of an episode, N pair, A asked position.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from doge_lab.errors import UserError
from doge_lab.tasks.base import IGNORE, Answers, Metrics, Predict, ScoredOn, Split, Tokens, share_of
from doge_lab.tasks.sampled import SampledData, SampledTask, octave

BLANK = 0


class Recall(SampledTask):
    """Multi-query associative recall at one or several numbers of pairs."""

    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n_pairs": ((8,),),
        "n_tokens": (128, 512),
        "length": (64, 128, 256),
        "distance_power": (1.0,),
        "n_stacks": (2,),
        "noise": (0.3, 0.6),
        "eval_length": (64, 128, 256),
        "eval_pairs": ((8,),),
    }
    type: Literal["recall"] = "recall"
    n_pairs: tuple[PositiveInt, ...] = (4,)
    """Numbers of key-value pairs; each sequence has one of them, in equal shares."""
    eval_pairs: tuple[PositiveInt, ...] | None = None
    """Numbers of pairs that are scored; left out, those trained on."""
    length: int = Field(default=32, ge=4)
    """Tokens of a sequence; at least four times the largest number of pairs."""
    eval_length: int | None = Field(default=None, ge=4)
    """Tokens of a scored sequence, not fewer than are trained on; left out, as many."""
    n_tokens: int = Field(default=64, ge=8)
    """Vocabulary: a blank, then keys, then values (half of it); a value is worth log2(n_tokens / 2) bits."""
    filler: Literal["random", "blank"] = "random"
    """What stands between the queries: any token but the sequence's own keys, or the blank."""
    distance_power: PositiveFloat = 0.01
    """Queries come at slot i with weight i^(power − 1): small is near, 1 is uniform."""
    n_stacks: PositiveInt = 1
    """Episodes of a sequence, equally long: the same keys in another order, bound to new values and asked again."""
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Share of filler among the pairs; it stands between them, never inside one."""

    @model_validator(mode="after")
    def _fits(self) -> "Recall":
        if self.eval_length is not None and self.eval_length < self.length:
            raise UserError(f"{self.eval_length} tokens are fewer than the {self.length} trained on", "eval_length")
        self._check_size(*self.size("train"), "n_pairs")
        self._check_size(*self.size("test"), "eval_pairs")
        return self

    def _check_size(self, n_pairs: tuple[int, ...], length: int, option: str) -> None:
        if not n_pairs:
            raise UserError("give one number of pairs or several", option)
        most = max(n_pairs)
        least = self.n_stacks * (4 * most + self.n_noise(most))
        if least > length:
            raise UserError(f"{most} pairs need a length of at least {least}, not {length}", option)
        if most > self.n_keys:
            raise UserError(f"{most} pairs need {most} keys, but n_tokens={self.n_tokens} leaves {self.n_keys}", option)
        if length % self.n_stacks:
            raise UserError(f"{length} tokens cannot be cut into {self.n_stacks} equal episodes", "n_stacks")

    def size(self, split: Split) -> tuple[tuple[int, ...], int]:
        """Numbers of pairs, and tokens of a sequence."""
        if split == "train":
            return self.n_pairs, self.length
        return self.n_pairs if self.eval_pairs is None else self.eval_pairs, self.context

    def n_noise(self, n_pairs: int) -> int:
        """Tokens among so many pairs that belong to none."""
        return round(2 * n_pairs * self.noise / (1 - self.noise))

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
        return self.eval_length or self.length

    def data(self, *, seed: int, scored_on: ScoredOn) -> "RecallData":
        return RecallData(self, seed=seed, scored_on=scored_on)


class RecallData(SampledData):
    """Sequences of one run."""

    task: Recall

    def draw(self, draw: np.random.Generator, count: int, split: Split) -> tuple[Tokens, Tokens]:
        sizes, length = self.task.size(split)
        share = math.ceil(count / len(sizes))
        drawn = [self._draw_pairs(draw, n_pairs, length, share) for n_pairs in sizes]
        inputs, targets = (np.concatenate(part) for part in zip(*drawn, strict=True))
        order = draw.permutation(len(inputs))
        return inputs[order], targets[order]

    def _draw_pairs(self, draw: np.random.Generator, n_pairs: int, length: int, count: int) -> tuple[Tokens, Tokens]:
        """Sequences with `n_pairs` pairs in each episode, and their targets."""
        order = 1 + draw.random((count, self.task.n_keys)).argsort(axis=1)
        keys, spare = order[:, :n_pairs], order[:, n_pairs:]
        episodes = []
        for stack in range(self.task.n_stacks):
            shown = draw.permuted(keys, axis=1) if stack else keys  # the first order is random already
            episodes.append(self._episode(draw, shown, spare, length // self.task.n_stacks))
        inputs, targets = (np.concatenate(part, axis=1) for part in zip(*episodes, strict=True))
        return inputs, targets

    def _episode(self, draw: np.random.Generator, keys: Tokens, spare: Tokens, length: int) -> tuple[Tokens, Tokens]:
        """Pairs and queries [B, T] of `keys` [B, N]; `spare` keys may be filler."""
        task, (count, n_pairs) = self.task, keys.shape
        row = np.arange(count)[:, None]
        values = 1 + task.n_keys + draw.integers(task.n_values, size=keys.shape)
        inputs = self._filler(draw, spare, length)
        pair = self._pair_places(draw, count, n_pairs)
        inputs[row, pair], inputs[row, pair + 1] = keys, values
        begin = 2 * n_pairs + task.n_noise(n_pairs)
        place = begin + 2 * self._slots(draw, count, n_pairs, (length - begin) // 2)
        targets = np.full_like(inputs, IGNORE)
        inputs[row, place], targets[row, place] = keys, values
        return inputs, targets

    def _filler(self, draw: np.random.Generator, spare: Tokens, length: int) -> Tokens:
        """Tokens [B, T] that are no key of their sequence: the blank, unused keys and values, all equally likely."""
        task, count = self.task, len(spare)
        if task.filler == "blank":
            return np.full((count, length), BLANK, dtype=np.int64)
        values = np.broadcast_to(np.arange(1 + task.n_keys, task.n_tokens), (count, task.n_values))
        blank = np.full((count, 1), BLANK, dtype=np.int64)
        allowed = np.concatenate([blank, spare, values], axis=1)
        return np.take_along_axis(allowed, draw.integers(allowed.shape[1], size=(count, length)), axis=1)

    def _pair_places(self, draw: np.random.Generator, count: int, n_pairs: int) -> Tokens:
        """Where each pair begins [B, N]: pairs and single tokens of noise come in any order."""
        noise, pair = self.task.n_noise(n_pairs), np.arange(n_pairs)
        if not noise:  # nothing to draw, so that sequences without noise stay what they were
            return np.broadcast_to(2 * pair, (count, n_pairs))
        unit = np.sort(draw.random((count, n_pairs + noise)).argsort(axis=1)[:, :n_pairs], axis=1)
        return unit + pair

    def _slots(self, draw: np.random.Generator, count: int, n_pairs: int, slots: int) -> Tokens:
        """A different slot for each query [B, N], drawn without replacement by the power law (Gumbel's top-k)."""
        log_weight = (self.task.distance_power - 1) * np.log(np.arange(1, slots + 1))
        score = log_weight + draw.gumbel(size=(count, slots))
        return np.argsort(-score, axis=1)[:, :n_pairs]

    def possible(self, answers: Answers) -> NDArray[np.float64]:
        return np.full(len(answers.row), float(self.task.n_values))

    def evaluate(self, predict: Predict) -> Metrics:
        """Adds `guess_bits`: what a reader earns who knows how often the episode bound each value and recalls none."""
        row, position = np.nonzero(self.targets != IGNORE)
        share = share_of(self.targets[row, position], row * self.task.n_stacks + position // self._episode_length)
        guess = np.log2(self.task.n_values * share).sum() / len(self.targets)
        return {**super().evaluate(predict), "guess_bits": float(guess)}

    def difficulty(self, answers: Answers) -> dict[str, NDArray[Any]]:
        """Number of pairs, distance in tokens between a pair's key and its query, and the episode if there are some."""
        length = self._episode_length
        stack, place = np.divmod(answers.position, length)
        episode = self.inputs.reshape(-1, length)[answers.row * self.task.n_stacks + stack]
        key = np.take_along_axis(episode, place[:, None], axis=1)
        distance = place - (episode == key).argmax(axis=1)
        pairs = (self.targets != IGNORE).sum(axis=1) // self.task.n_stacks  # each is asked once in every episode
        slices = {"pairs": pairs[answers.row], **octave("distance", distance)}
        return slices | ({"stack": stack + 1} if self.task.n_stacks > 1 else {})

    @property
    def _episode_length(self) -> int:
        return self.inputs.shape[1] // self.task.n_stacks
