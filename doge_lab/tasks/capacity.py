"""How many bits of facts the weights hold: a random table, learned by heart.

    entity 17        name   7 42        values   3 60 21 ...        every value uniform over D, independent

    chain   inputs   7 42  3 60 ...     query   inputs   7 42 a2      (a2: "the second value")
            targets  .  3 60 21 ...             targets  .  . 60

    bits = N·K·log2(D) − Σ −log2 p(value | name, earlier values)

which is, in expectation over tables, a lower bound on the information that the weights hold.

Source: Allen-Zhu & Li 2024, Physics of Language Models 3.3, https://arxiv.org/abs/2404.05405 : their bioD with one
token per value and the names given. Their law: about 2 bits per parameter after 1000 exposures, about 1 after 100.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from doge_lab.errors import UserError
from doge_lab.tasks.base import IGNORE, Metrics, Predict, ScoredOn, Tokens, ask, rng
from doge_lab.tasks.memorised import MemorisedData, Size, TableTask, saturation


class Capacity(TableTask):
    """A table of `n_entities` random facts."""

    size_option: ClassVar[str] = "n_entities"
    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n_entities": (2000, 4000),
        "n_values": (16, 32),
        "format": ("query",),
    }
    type: Literal["capacity"] = "capacity"
    n_entities: Size = 1000
    """Entities in the table; `auto` sizes it so that the model cannot hold it all."""
    n_name_tokens: PositiveInt = 2
    """Tokens of a name. Names differ from each other."""
    n_values: PositiveInt = 8
    """Values of an entity."""
    n_tokens: int = Field(default=64, ge=2)
    """Different tokens that names and values are written with; a value is worth log2 of it in bits."""
    format: Literal["chain", "query"] = "chain"
    """`chain`: all values after the name, earlier ones visible. `query`: one value, asked for by its index."""

    @model_validator(mode="after")
    def _names_suffice(self) -> "Capacity":
        names = self.n_tokens**self.n_name_tokens
        if names >= 2**62:
            raise UserError(f"names of {self.n_name_tokens} tokens are longer than can be counted", "n_name_tokens")
        if self.n_entities != "auto" and self.n_entities > names:
            raise UserError(
                f"{self.n_entities} entities need different names, but {self.n_name_tokens} tokens out of "
                f"{self.n_tokens} make only {names}; raise n_name_tokens or n_tokens",
                "n_entities",
            )
        return self

    @property
    def vocab_size(self) -> int:
        return self.n_tokens + (self.n_values if self.format == "query" else 0)

    @property
    def context(self) -> int:
        return self.n_name_tokens + (self.n_values - 1 if self.format == "chain" else 1)

    @property
    def bits_per_entry(self) -> float:
        return self.n_values * math.log2(self.n_tokens)

    @property
    def n_rows(self) -> int:
        return self.table_size * (self.n_values if self.format == "query" else 1)

    def data(self, *, seed: int, scored_on: ScoredOn) -> "CapacityData":
        return CapacityData(self, seed=seed, scored_on=scored_on)


class CapacityData(MemorisedData):
    """One table."""

    task: Capacity

    def __init__(self, task: Capacity, *, seed: int, scored_on: ScoredOn) -> None:
        super().__init__(task, seed=seed)
        draw = rng("capacity", seed, scored_on, "table")
        count, size = task.table_size, task.n_tokens
        codes = draw.choice(size**task.n_name_tokens, count, replace=False)
        places = size ** np.arange(task.n_name_tokens)
        self.names: Tokens = codes[:, None] // places % size
        self.values: Tokens = draw.integers(size, size=(count, task.n_values))
        self.inputs, self.targets = self._chain() if task.format == "chain" else self._query()

    def _chain(self) -> tuple[Tokens, Tokens]:
        inputs = np.concatenate([self.names, self.values[:, :-1]], axis=1)
        targets = np.full_like(inputs, IGNORE)
        targets[:, self.task.n_name_tokens - 1 :] = self.values
        return inputs, targets

    def _query(self) -> tuple[Tokens, Tokens]:
        count, attributes = self.values.shape
        asked = np.tile(np.arange(attributes), count)[:, None]
        inputs = np.concatenate([self.names.repeat(attributes, axis=0), self.task.n_tokens + asked], axis=1)
        targets = np.full_like(inputs, IGNORE)
        targets[:, -1] = self.values.ravel()
        return inputs, targets

    def rows(self, index: Tokens, epoch: int) -> tuple[Tokens, Tokens]:
        return self.inputs[index], self.targets[index]

    def evaluate(self, predict: Predict) -> Metrics:
        """`bits` held in all, `max_bits` in the table, `accuracy`, and `slices` by the value's index."""
        answers = ask(predict, self.inputs, self.targets)
        worth = math.log2(self.task.n_tokens)
        chain = self.task.format == "chain"
        attribute = answers.position - self.task.n_name_tokens + 1 if chain else answers.row % self.task.n_values
        bits = worth - answers.bits_paid
        max_bits = worth * self.values.size
        slices = [
            {
                "value": k + 1,
                "bits": float(bits[attribute == k].sum()),
                "max_bits": max_bits / self.task.n_values,
                "accuracy": float(answers.right[attribute == k].mean()),
            }
            for k in range(self.task.n_values)
        ]
        held = float(bits.sum())
        return {
            "bits": held,
            "max_bits": max_bits,
            **saturation(held, max_bits),
            "accuracy": float(answers.right.mean()),
            "n_entities": len(self.values),
            "slices": slices,
        }
