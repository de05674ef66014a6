"""How deep a model calculates in its head, with tables that it must know: arithmetic modulo a prime.

    (3 − 5) · 2 mod 7 = 3        inputs   *  -  3  5  2  =        prefix notation; shorter ones are padded on the right
                                 targets  .  .  .  .  .  3

    bits per sequence = log2(modulus) − −log2 p(answer)

Expressions are drawn from the answer down: the answer is uniform, an operation and one operand are uniform, the other
operand follows. So zero bits is chance exactly, which it is not for operands drawn first: products are 0 too often. The
price: the left side of a product is never 0.

Source: Allen-Zhu 2025, Physics of Language Models 4.1, https://arxiv.org/abs/2512.17351 (their Mano; modulus 23).

Shape letters: B sequence, T token.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from doge_lab.errors import UserError
from doge_lab.tasks.base import IGNORE, Answers, ScoredOn, Split, Tokens
from doge_lab.tasks.sampled import SampledData, SampledTask

OPERATIONS = ("+", "-", "*")


class Mano(SampledTask):
    """Expressions of some operations, and their value."""

    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {"operations": ((2,), (4,), (8,)), "modulus": (47, 97)}
    type: Literal["mano"] = "mano"
    operations: tuple[PositiveInt, ...] = (1, 2)
    """Numbers of operations; each expression has one of them, in equal shares."""
    modulus: int = Field(default=23, ge=3, le=997)
    """A prime: numbers are 0 to modulus − 1."""

    @model_validator(mode="after")
    def _fits(self) -> "Mano":
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise UserError("give one number of operations or several different ones", "operations")
        if any(self.modulus % factor == 0 for factor in range(2, int(self.modulus**0.5) + 1)):
            raise UserError(f"{self.modulus} is no prime, so products could not be undone", "modulus")
        return self

    @property
    def vocab_size(self) -> int:
        """Numbers, operations, the equals sign and the padding."""
        return self.modulus + len(OPERATIONS) + 2

    @property
    def equals(self) -> int:
        return self.modulus + len(OPERATIONS)

    @property
    def context(self) -> int:
        return 2 * max(self.operations) + 2

    def data(self, *, seed: int, scored_on: ScoredOn) -> "ManoData":
        return ManoData(self, seed=seed, scored_on=scored_on)


class ManoData(SampledData):
    """Sequences of one run."""

    task: Mano

    def draw(self, draw: np.random.Generator, count: int, split: Split) -> tuple[Tokens, Tokens]:
        task, row = self.task, np.arange(count)
        n_operations = draw.choice(np.array(task.operations), size=count)
        answer = draw.integers(task.modulus, size=count)
        inputs = np.full((count, task.context), task.equals + 1, dtype=np.int64)
        targets = np.full_like(inputs, IGNORE)
        self._write(draw, inputs, answer, n_operations)
        end = 2 * n_operations + 1
        inputs[row, end], targets[row, end] = task.equals, answer
        return inputs, targets

    def _write(self, draw: np.random.Generator, inputs: Tokens, answer: Tokens, n_operations: Tokens) -> None:
        """Expressions in prefix notation into `inputs` [B, T], all rows at once, a token at a time.

        Each row keeps a stack of what is still to be written: subexpressions by value and number of operations.
        """
        count, row = len(inputs), np.arange(len(inputs))
        value = np.zeros((count, max(self.task.operations) + 1), dtype=np.int64)
        size = np.zeros_like(value)
        value[:, 0], size[:, 0] = answer, n_operations
        depth = np.ones(count, dtype=np.int64)
        for place in range(inputs.shape[1] - 1):
            open_ = depth > 0
            top = np.maximum(depth - 1, 0)
            whole, operations = value[row, top], size[row, top]
            splits = open_ & (operations > 0)
            operation, left, right = self._split_value(draw, whole)
            left_size = draw.integers(np.maximum(operations, 1))
            inputs[open_, place] = np.where(splits, self.task.modulus + operation, whole)[open_]
            value[row[splits], top[splits]], size[row[splits], top[splits]] = (
                right[splits],
                (operations - 1 - left_size)[splits],
            )
            above = (row[splits], top[splits] + 1)
            value[above], size[above] = left[splits], left_size[splits]
            depth += np.where(splits, 1, np.where(open_, -1, 0))

    def _split_value(self, draw: np.random.Generator, whole: Tokens) -> tuple[Tokens, Tokens, Tokens]:
        """A uniform operation, and operands [B] that it turns into `whole` [B]."""
        p = self.task.modulus
        operation = draw.integers(len(OPERATIONS), size=len(whole))
        any_, factor = draw.integers(p, size=len(whole)), draw.integers(1, p, size=len(whole))
        inverse = np.array([0, *(pow(number, -1, p) for number in range(1, p))])
        left = np.choose(operation, [any_, any_, factor])
        right = np.choose(operation, [whole - left, left - whole, whole * inverse[factor]]) % p
        return operation, left, right

    def possible(self, answers: Answers) -> NDArray[np.float64]:
        return np.full(len(answers.row), float(self.task.modulus))

    def difficulty(self, answers: Answers) -> dict[str, NDArray[Any]]:
        """Number of operations."""
        return {"operations": (answers.position - 1) // 2}
