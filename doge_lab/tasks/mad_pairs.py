"""What MAD's three recall tasks share: key-value pairs that follow each other, drawn again and again.

    a 7  c 4  a 7  b 4  c 4 ...        every sequence binds every key to a value of its own
    .  . .  . 7 .  .  . 4 .            from a key's second time on, its value is asked

Keys and values may be motifs of several tokens: then a value is asked token by token, the earlier ones visible. Tokens
of noise may stand between pairs, never inside one. A sequence is cut at its length, wherever that is.

Keys come back many times and are asked each time, so bits per sequence count answers: they may be far more than the
bits that a cache must hold, which are at most keys·log2(values) for single tokens.

Shape letters: B sequence, T token, U unit (a pair, or a token of noise), K key, M longest motif, A asked position.
"""

import abc
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from doge_lab.errors import UserError
from doge_lab.tasks.base import IGNORE, Answers, ScoredOn, Split, Tokens
from doge_lab.tasks.mad import MadData, MadTask
from doge_lab.tasks.sampled import octave

_MOST_TOKENS = 2**22
"""Tokens that are drawn at once; each takes about 80 bytes meanwhile."""


class Form(NamedTuple):
    """What a sequence is made of: tokens 0 to n_keys − 1 write keys, then come values, then noise.

    motif: tokens of the longest key and value. noise: share of noise tokens.
    """

    n_keys: int
    n_values: int
    motif: int = 1
    n_noise: int = 0
    noise: float = 0.0

    @property
    def pair(self) -> float:
        """Tokens of a pair on average; all lengths of a motif are as frequent."""
        return self.motif + 1

    @property
    def noise_units(self) -> float:
        """Share of units that are noise, so that `noise` of the tokens are."""
        return self.noise * self.pair / (1 - self.noise + self.noise * self.pair)

    def repeats(self, length: int) -> float:
        """Pairs of a sequence whose key came before, on average."""
        pairs = length * (1 - self.noise) / self.pair
        return pairs - self.n_keys * (1 - (1 - 1 / self.n_keys) ** pairs)


class PairsTask(MadTask):
    """Pairs of keys and values, at random, until the sequence is full."""

    length: int = Field(default=128, ge=4)
    """Tokens of a sequence (the paper: 128)."""

    @property
    @abc.abstractmethod
    def form(self) -> Form:
        """What a sequence is made of."""

    def check_form(self) -> None:
        """Raise `UserError` when there are too few tokens, or too few places for a key to come back."""
        form = self.form
        if form.n_keys < 2:
            raise UserError("too few tokens are left for two keys and two values; raise it", "n_tokens")
        if form.n_keys**form.motif >= 2**62:
            raise UserError(f"motifs of {form.motif} tokens are more than can be counted", "motif")
        if form.repeats(self.length) < 1:
            raise UserError(
                f"in {self.length} tokens too few keys come back to be asked; raise length or lower n_tokens", "length"
            )

    @property
    def n_values(self) -> int:
        return self.form.n_values

    @property
    def vocab_size(self) -> int:
        return self.form.n_keys + self.form.n_values + self.form.n_noise

    @property
    def context(self) -> int:
        return self.length

    def data(self, *, seed: int, scored_on: ScoredOn) -> "PairsData":
        return PairsData(self, seed=seed, scored_on=scored_on)


class PairsData(MadData):
    """Sequences of one run."""

    task: PairsTask

    def draw(self, draw: np.random.Generator, count: int, split: Split) -> tuple[Tokens, Tokens]:
        count = min(count, _MOST_TOKENS // self.task.length + 1)
        form, row = self.task.form, np.arange(count)[:, None]
        place = np.arange(self.task.length + 1)  # one more, for the answer at the last input
        key = self._units(draw, count, len(place))
        book, key_size, pair_size = self._book(draw, count)
        size = pair_size[row, key]
        start = size.cumsum(axis=1) - size
        unit = _unit_of(start, len(place))
        its_key, offset = key[row, unit], place - start[row, unit]
        tokens = book[row, its_key, offset]
        if form.noise:
            noise = form.n_keys + form.n_values + draw.integers(form.n_noise, size=tokens.shape)
            tokens = np.where(its_key == form.n_keys, noise, tokens)
        asked = (offset >= key_size[its_key]) & (unit > _first(key, form.n_keys)[row, its_key])
        targets = np.where(asked, tokens, IGNORE)[:, 1:]
        return np.ascontiguousarray(tokens[:, :-1]), targets

    def _units(self, draw: np.random.Generator, count: int, length: int) -> Tokens:
        """The key of each pair [B, U], `n_keys` for a token of noise; enough of them for `length` tokens."""
        form = self.task.form
        key = draw.integers(form.n_keys, size=(count, length if form.noise else -(-length // 2)))
        if form.noise:
            key[draw.random(key.shape) < form.noise_units] = form.n_keys
        return key

    def _book(self, draw: np.random.Generator, count: int) -> tuple[Tokens, Tokens, Tokens]:
        """Pairs [B, K + 1, 2M], key and value joined, length of each key [K + 1], of each pair [B, K + 1].

        The last is noise: one token, no value. Keys are different and of all lengths in equal shares.
        """
        form = self.task.form
        key_size = np.append(1 + np.arange(form.n_keys) % form.motif, 1)
        value_size = draw.integers(1, form.motif + 1, size=(count, form.n_keys))
        values = form.n_keys + draw.integers(form.n_values, size=(count, form.n_keys, form.motif))
        book = np.zeros((count, form.n_keys + 1, 2 * form.motif), dtype=np.int64)
        for size in range(1, form.motif + 1):
            these = np.flatnonzero(key_size[:-1] == size)
            code = distinct(draw, count, len(these), form.n_keys**size)
            book[:, these, :size] = code[:, :, None] // form.n_keys ** np.arange(size) % form.n_keys
            book[:, these, size : size + form.motif] = values[:, these]
        pair_size = key_size + np.pad(value_size, ((0, 0), (0, 1)))
        return book, key_size, pair_size

    def guess(self, row: Tokens, position: Tokens) -> NDArray[np.float64]:
        """Knowing how often each value token was bound so far: shown with a key's first time."""
        count = self._bound[:, :, None] & (self.inputs[:, :, None] == np.arange(self._values.start, self._values.stop))
        seen = count.cumsum(axis=1)[row, position]
        return seen[np.arange(len(row)), self.targets[row, position] - self._values.start] / seen.sum(axis=1)

    def difficulty(self, answers: Answers) -> dict[str, NDArray[Any]]:
        """Different keys shown so far."""
        first = self._bound & ~np.pad(self._bound, ((0, 0), (1, 0)))[:, :-1]
        return octave("pairs", first.cumsum(axis=1)[answers.row, answers.position])

    @property
    def _values(self) -> range:
        return range(self.task.form.n_keys, self.task.form.n_keys + self.task.n_values)

    @property
    def _bound(self) -> NDArray[np.bool_]:
        """Where a value token stands that was not asked for [B, T]."""
        asked = np.pad(self.targets != IGNORE, ((0, 0), (1, 0)))[:, :-1]
        return (self.inputs >= self._values.start) & (self.inputs < self._values.stop) & ~asked


def distinct(draw: np.random.Generator, count: int, n: int, total: int) -> Tokens:
    """`n` different numbers below `total` in each row [B, N], every set equally likely.

    Source: Floyd's sampling, in Bentley & Floyd 1987, https://doi.org/10.1145/30401.315746
    """
    chosen = np.full((count, n), -1, dtype=np.int64)
    for index, top in enumerate(range(total - n, total)):
        number = draw.integers(top + 1, size=count)
        taken = (chosen == number[:, None]).any(axis=1)
        chosen[:, index] = np.where(taken, top, number)
    return chosen


def _unit_of(start: Tokens, length: int) -> Tokens:
    """The unit to which each token [B, T] belongs, from where the units begin [B, U]."""
    begins = np.zeros((len(start), length), dtype=np.int64)
    row, unit = np.nonzero(start < length)
    begins[row, start[row, unit]] = 1
    return begins.cumsum(axis=1) - 1


def _first(key: Tokens, n_keys: int) -> Tokens:
    """The unit with which each key comes first [B, K + 1]; noise never does."""
    count, units = key.shape
    first = np.full((count, n_keys + 1), units)
    cell = key + (n_keys + 1) * np.arange(count)[:, None]
    np.minimum.at(first.reshape(-1), cell.ravel(), np.tile(np.arange(units), count))
    first[:, n_keys] = units
    return first
