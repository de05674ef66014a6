"""How many hops a model can take in its head: edges of a circle in any order, then the k-th successor of a node.

    the circle  5 → 9 → 2 → 5            edges, shuffled          queries: hops, node
    inputs      9 2  5 9  2 5            | h1 9   h2 9
    targets     . .  . .  . .            | .  2   .  5

    bits per sequence = queries·log2(tokens − 1) − Σ −log2 p(node)

A circle is longer than any asked number of hops, so the answer is never the node itself; each other node is equally
likely before the edges are read. A reader who only knows which nodes occurred earns `guess_bits`.

Source: Allen-Zhu 2025, Physics of Language Models 4.1, https://arxiv.org/abs/2512.17351 (their Depo; here a node is
one token, and every query of a sequence is independent of the others).

Shape letters: B sequence, T token, N node, Q query.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from doge_lab.errors import UserError
from doge_lab.tasks.base import IGNORE, Answers, Metrics, Predict, ScoredOn, Split, Tokens
from doge_lab.tasks.sampled import SampledData, SampledTask


class Depo(SampledTask):
    """Successors on a circle of nodes that is given as shuffled edges."""

    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n_nodes": (16, 32),
        "hops": ((1,), (2,), (4,), (6,)),
        "n_tokens": (64, 128),
    }
    type: Literal["depo"] = "depo"
    n_nodes: int = Field(default=8, ge=3)
    """Nodes of the circle."""
    hops: tuple[PositiveInt, ...] = (1, 2, 4)
    """Numbers of hops that are asked for, in equal shares."""
    n_queries: PositiveInt = 4
    """Queries at the end of a sequence."""
    n_tokens: PositiveInt = 32
    """Different nodes there are; a circle has `n_nodes` of them."""

    @model_validator(mode="after")
    def _fits(self) -> "Depo":
        if self.n_nodes > self.n_tokens:
            raise UserError(f"a circle of {self.n_nodes} nodes needs as many n_tokens, not {self.n_tokens}", "n_nodes")
        if not self.hops or len(set(self.hops)) < len(self.hops):
            raise UserError("give one number of hops or several different ones", "hops")
        if max(self.hops) >= self.n_nodes:
            raise UserError(f"{max(self.hops)} hops go round a circle of {self.n_nodes} nodes; raise n_nodes", "hops")
        return self

    @property
    def vocab_size(self) -> int:
        return self.n_tokens + len(self.hops)

    @property
    def context(self) -> int:
        return 2 * self.n_nodes + 2 * self.n_queries

    def data(self, *, seed: int, scored_on: ScoredOn) -> "DepoData":
        return DepoData(self, seed=seed, scored_on=scored_on)


class DepoData(SampledData):
    """Sequences of one run."""

    task: Depo

    def draw(self, draw: np.random.Generator, count: int, split: Split) -> tuple[Tokens, Tokens]:
        task, n = self.task, self.task.n_nodes
        circle = draw.random((count, task.n_tokens)).argsort(axis=1)[:, :n]
        edge = draw.random((count, n)).argsort(axis=1)
        first, second = (np.take_along_axis(circle, (edge + ahead) % n, axis=1) for ahead in (0, 1))
        edges = np.stack([first, second], axis=2).reshape(count, 2 * n)
        place = draw.integers(n, size=(count, task.n_queries))
        hop = draw.integers(len(task.hops), size=(count, task.n_queries))
        node = np.take_along_axis(circle, place, axis=1)
        answer = np.take_along_axis(circle, (place + np.array(task.hops)[hop]) % n, axis=1)
        queries = np.stack([task.n_tokens + hop, node], axis=2).reshape(count, -1)
        inputs = np.concatenate([edges, queries], axis=1)
        targets = np.full_like(inputs, IGNORE)
        targets[:, 2 * n + 1 :: 2] = answer
        return inputs, targets

    def possible(self, answers: Answers) -> NDArray[np.float64]:
        return np.full(len(answers.row), self.task.n_tokens - 1.0)

    def evaluate(self, predict: Predict) -> Metrics:
        """Adds `guess_bits`: what a reader earns who knows which nodes occurred and follows no edge."""
        per_query = math.log2((self.task.n_tokens - 1) / (self.task.n_nodes - 1))
        return {**super().evaluate(predict), "guess_bits": self.task.n_queries * per_query}

    def difficulty(self, answers: Answers) -> dict[str, NDArray[Any]]:
        """Number of hops."""
        hop = self.inputs[answers.row, answers.position - 1] - self.task.n_tokens
        return {"hops": np.array(self.task.hops)[hop]}
