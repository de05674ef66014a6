"""How many bits of facts the weights hold when the facts are told in sentences: lives of made-up people.

    person 5   Durvo Dagana Shureley | March 14, 1998 | Weseburg | Quibom College | Optics | Abi Motors | she

    inputs     _  Durvo Dagana Shureley was born in Weseburg. She studied at Quibom College. She ...   _ is the blank
    text       every next token is a target (`values`: only those of values); other words and order in each epoch

    bits = N·log2(S0) − N·loss_value/ln 2        log2 S0 = log2(2 · 12·28·200 · 200 · 300 · 100 · 263) = 47.6

loss_value is the cost, in nats, of all values of a person, each read after the text before it: by the chain rule a code
for the facts, given names and wording, whatever the order. Of employer and working city, which follows from it, the
one that comes first costs and the other is free; both are counted under employer. The pronoun is counted where it first
stands. A reader who knows how values are spelt and drawn, and nobody's facts, earns zero bits exactly (see `prose`).
Facts may be found by the wording too: with few `renderings` it is as good as a name, and still brings bits when names
are exchanged. Fresh wording tells nothing.

    bound_bits       = N·log2(N0/e^loss_name) + N·log2(S0/e^loss_value)       their definition 4.3, which they divide by
                       the number of parameters to get about 2 (1000 exposures); N0 = 400·400·1000 names
    first_chunk_bits = Σ_a D_a·log2((T^L_a − D_a) / (D_a·e^loss_a))           the last term of their theorem 3.2

The last is knowledge of how values are spelt, and is in neither of the others. Here a is a value as `slices` lists
them: one chunk, out of D_a (a date is three), L_a the tokens of the longest, T the vocabulary, loss_a its cost in nats,
mean over people; loss_value1 is the mean of loss_a over a.

Source: Allen-Zhu & Li 2024, Physics of Language Models 3.3, https://arxiv.org/abs/2404.05405 : their bioS (each
rendering fresh) and bioR (`renderings: 40`); names, values and sentences are our own.

Shape letters: B row, N person, A attribute (sentence), S piece of a row, T token.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from doge_lab.errors import UserError
from doge_lab.tasks.base import IGNORE, Answers, Metrics, Predict, ScoredOn, Tokens, ask, rng
from doge_lab.tasks.memorised import MemorisedData, Size, TableTask, saturation
from doge_lab.tasks.prose import HEADQUARTERS, N_TEMPLATES, VALUES, Language, language
from doge_lab.tasks.tokenisers import BLANK

EMPLOYER, PRONOUN, NAME, TEXT = 6, 7, 8, 9
"""What a token tells: a value, by its place in `VALUES`, or part of a name, or nothing."""
N_NAMES = 400 * 400 * 1000
_TELLS = np.array([[0, 1, 2], *([value, TEXT, TEXT] for value in (3, 4, 5, EMPLOYER, EMPLOYER))])
"""What the three pieces between a template's halves tell, for every attribute [A, 3]; only the date uses all."""


class Biography(TableTask):
    """The lives of `n_people`, each row one life."""

    size_option: ClassVar[str] = "n_people"
    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n_people": (2000, 4000),
        "renderings": (40, 1),
        "tokeniser": ("byte",),
    }
    type: Literal["biography"] = "biography"
    n_people: Size = 1000
    """People in the table; `auto` sizes it so that the model cannot hold it all."""
    tokeniser: Literal["sentencepiece", "byte"] = "sentencepiece"
    """`sentencepiece`: byte-pair merges of `n_tokens`, learned from the words that can occur. `byte`: 257 tokens."""
    n_tokens: int = Field(default=512, ge=128, le=4096)
    """Vocabulary of `sentencepiece`."""
    renderings: PositiveInt | None = None
    """Different texts about a person, told in turn; null: a fresh one every time."""
    permuted: bool = True
    """Whether each text has its own order of sentences."""
    subject: Literal["pronoun", "name"] = "pronoun"
    """What sentences after the first begin with. With `name` no pronoun is told, so a person is worth one bit less."""
    loss: Literal["text", "values"] = "text"
    """What is trained: every next token, or those of values alone; then names are given, and not counted."""

    @model_validator(mode="after")
    def _names_suffice(self) -> "Biography":
        if self.n_people != "auto" and self.n_people > N_NAMES:
            raise UserError(f"{self.n_people} people need different names, and there are {N_NAMES}", "n_people")
        return self

    @property
    def language(self) -> Language:
        return language(self.tokeniser, self.n_tokens)

    @property
    def vocab_size(self) -> int:
        return self.language.tokeniser.n_tokens

    @property
    def context(self) -> int:
        """A bound: the longest name, templates and values at once."""
        return self.language.longest(repeats_name=self.subject == "name")

    @property
    def sizes(self) -> list[int]:
        """How many values each of `VALUES` has, as far as they are told."""
        return [len(values) for name, values in VALUES.items() if self.subject == "pronoun" or name != "pronoun"]

    @property
    def bits_per_entry(self) -> float:
        """log2 S0."""
        return sum(map(math.log2, self.sizes))

    @property
    def n_rows(self) -> int:
        return self.table_size

    def data(self, *, seed: int, scored_on: ScoredOn) -> "BiographyData":
        return BiographyData(self, seed=seed, scored_on=scored_on)


class BiographyData(MemorisedData):
    """One table of people. Validation's have other last names than test's.

    people [N, 3]: name pieces. facts [N, A, 3]: value pieces in the order of `TEMPLATES`. pronouns [N]. tells
    [N, T]: what each scored position asks for.
    """

    task: Biography

    def __init__(self, task: Biography, *, seed: int, scored_on: ScoredOn) -> None:
        super().__init__(task, seed=seed)
        self._style = lru_cache(maxsize=2)(self._draw_style)
        self._key = ("biography", seed, scored_on)
        draw, count, first = rng(*self._key, "table"), task.table_size, task.language.first
        code = draw.choice(N_NAMES, count, replace=False)
        last = 2 * (code // 160_000) + (scored_on == "test")
        self.people: Tokens = np.stack(
            [first["first"] + code % 400, first["middle"] + code // 400 % 400, first["last"] + last], axis=1
        )
        drawn = np.stack([draw.integers(len(values), size=count) for values in VALUES.values()], axis=1)
        values = drawn + np.array([first[name] for name in VALUES])
        self.pronouns: Tokens = values[:, PRONOUN]
        self.facts: Tokens = np.zeros((count, len(_TELLS), 3), dtype=np.int64)
        self.facts[:, 0], self.facts[:, 1:-1, 0] = values[:, :3], values[:, 3:PRONOUN]
        self.facts[:, -1, 0] = first["birth city"] + HEADQUARTERS[drawn[:, EMPLOYER]]
        self.inputs, self.targets, self.tells = self._render(np.arange(count), 0 if task.renderings else -1)
        self.targets = np.where(self.tells <= (NAME if task.loss == "text" else PRONOUN), self.targets, IGNORE)

    def rows(self, index: Tokens, epoch: int) -> tuple[Tokens, Tokens]:
        version = epoch if self.task.renderings is None else epoch % self.task.renderings
        inputs, targets, tells = self._render(index, version)
        return inputs, targets if self.task.loss == "text" else np.where(tells <= PRONOUN, targets, IGNORE)

    def _draw_style(self, version: int) -> tuple[Tokens, Tokens]:
        """Templates and order of attributes [N, A] of every person's rendering; version −1 is for scoring alone."""
        draw, shape = rng(*self._key, "rendering", version), (self.n_rows, len(_TELLS))
        templates = draw.integers(N_TEMPLATES, size=shape)
        order = np.broadcast_to(np.arange(shape[1]), shape)
        return templates, draw.random(shape).argsort(axis=1) if self.task.permuted else order

    def _render(self, index: Tokens, version: int) -> tuple[Tokens, Tokens, Tokens]:
        """Inputs, targets and what each target tells [B, T] of the people `index` [B]; padding tells `TEXT`."""
        templates, order = (part[index] for part in self._style(version))
        first, row = self.task.language.first, np.arange(len(index))[:, None]
        template = N_TEMPLATES * order + templates[row, order]
        subject, subject_tells = self._subjects(index)
        before, after = ((first[half] + template)[..., None] for half in ("before", "after"))
        silent = np.full_like(before, TEXT)
        pieces = np.concatenate([subject, before, self.facts[index[:, None], order], after], axis=2)
        tells = np.concatenate([subject_tells, silent, _TELLS[order], silent], axis=2).reshape(len(index), -1)
        tokens, place = self.task.language.pieces.lay_out(pieces.reshape(len(index), -1), self.task.context)
        told = np.where(place < 0, TEXT, np.take_along_axis(tells, place, axis=1))
        inputs = np.concatenate([np.full_like(row, BLANK), tokens[:, :-1]], axis=1)
        return inputs, np.where(place < 0, IGNORE, tokens), told

    def _subjects(self, index: Tokens) -> tuple[Tokens, Tokens]:
        """Pieces that the sentences begin with and what they tell, both [B, A, 3]: a name, then pronouns or names."""
        pieces = np.repeat(self.people[index][:, None], len(_TELLS), axis=1)
        tells = np.full_like(pieces, TEXT)
        tells[:, 0] = NAME
        if self.task.subject == "pronoun":
            pieces[:, 1:] = 0
            pieces[:, 1:, 0] = self.pronouns[index][:, None]
            tells[:, 1, 0] = PRONOUN
        return pieces, tells

    def evaluate(self, predict: Predict) -> Metrics:
        """`bits`, `max_bits`, `accuracy` of whole values, `slices` by value, the published bounds and their losses."""
        answers = ask(predict, self.inputs, self.targets, chunk=128)
        tells = self.tells[answers.row, answers.position]
        paid: NDArray[np.float64] = np.bincount(tells, weights=answers.bits_paid, minlength=TEXT).astype(np.float64)
        sizes = np.array(self.task.sizes)
        worth = self.n_rows * np.log2(sizes)
        earned, right = worth - paid[: len(sizes)], self._right(answers, tells)
        held, max_bits = float(earned.sum()), float(worth.sum())
        slices = [
            {"value": name, "bits": bits, "max_bits": most, "accuracy": share}
            for name, bits, most, share in zip(VALUES, earned.tolist(), worth.tolist(), right.tolist(), strict=False)
        ]
        return {
            "bits": held,
            "max_bits": max_bits,
            **saturation(held, max_bits),
            "accuracy": float(right.mean()),
            "n_people": self.n_rows,
            **self._bounds(paid, held, max_bits),
            "slices": slices,
        }

    def _right(self, answers: Answers, tells: Tokens) -> NDArray[np.float64]:
        """Share of people of whom each value was the best guess, token by token."""
        wrong = np.zeros((self.n_rows, TEXT), dtype=bool)
        wrong[answers.row[~answers.right], tells[~answers.right]] = True
        share: NDArray[np.float64] = 1 - wrong[:, : len(self.task.sizes)].mean(axis=0)
        return share

    def _bounds(self, paid: NDArray[np.float64], held: float, max_bits: float) -> dict[str, Any]:
        """The published terms. paid [what is told]: its cost in bits, summed over people."""
        n, language, sizes = self.n_rows, self.task.language, self.task.sizes
        cost = paid / n
        spelling = 0.0
        for size, name, bits in zip(sizes, VALUES, cost, strict=False):
            possible = language.longest_value(name) * math.log2(self.task.vocab_size)  # log2 T^L; T^L may overflow
            others = possible + math.log1p(-(2 ** (math.log2(size) - possible))) / math.log(2)
            spelling += size * (others - math.log2(size) - float(bits))
        bounds = {
            "value_bits": held,
            "first_chunk_bits": spelling,
            "loss_value": float(cost[: len(sizes)].sum()) * math.log(2),
            "loss_value1": float(cost[: len(sizes)].mean()) * math.log(2),
        }
        if self.task.loss == "text":
            name_bits = n * (math.log2(N_NAMES) - float(cost[NAME]))
            bounds |= {
                "name_bits": name_bits,
                "bound_bits": name_bits + held,
                "max_bound_bits": n * math.log2(N_NAMES / n) + max_bits,
                "loss_name": float(cost[NAME]) * math.log(2),
            }
        return bounds
