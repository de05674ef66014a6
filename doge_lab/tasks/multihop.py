"""Facts about facts: answers that follow from two stored facts and were never shown.

    stored     e r1 → e'          e' r2 → e''         relations: random functions of entities, one token each
    composed   e r1 r2 → e''      a share of these is trained, the rest is held out and scored

    inputs     17 r3 .     17 r3 r1         padded on the right
    targets     . 42 .      .  .  8

    bits = Σ over held-out questions of log2(entities) − −log2 p(answer)

The relations of a path differ. So zero bits is chance, exactly: given the first hops, the entity that the last one
starts from is fixed, and the last relation, which no earlier hop has read, sends it to each entity equally often over
tables. (With r1 = r2 a hop may return to where the same function was already read, and answers are not uniform.)

Random functions send several entities to one, so a path tells something about the answer to a reader who composes
nothing: `guess_bits` is earned by knowing how often the path of a question ends at each entity, and not where the
question begins. Only bits above it show composing.

`bits` counts answers and is no bound on what the weights hold: all of them follow from the one-hop facts, which are
independent, so that `stored_bits` is one, as in `capacity`. Held-out questions mix facts that are each seen in other
compositions; a model that learned trained answers one by one earns `trained_bits`, and of `bits` the guess at most.
No held-out question is trained, also not within a longer one, which is asked for its end alone. But with `hops: [2, 3]`
the first two hops of a question of three are mostly a trained question, so that it may be answered in two steps. With
`hops: [3]` only one-hop facts lead there.

Source: Wang et al. 2024, Grokked Transformers are Implicit Reasoners, https://arxiv.org/abs/2405.15071 (their atomic
and inferred facts, in distribution; here every entity has every relation); Allen-Zhu & Li 2023, Physics of Language
Models 3.2, https://arxiv.org/abs/2309.14402.

Shape letters: Q question, E entity, R relation, P path, H hop.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from itertools import permutations
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from doge_lab.errors import UserError
from doge_lab.tasks.base import IGNORE, Answers, Metrics, Predict, ScoredOn, Tokens, ask, rng, share_of
from doge_lab.tasks.memorised import MemorisedData, MemorisedTask

MOST_QUESTIONS = 10_000_000
"""More than this nobody scores."""
MOST_HOPS = 10
"""More take more than ten relations, of which there are more orders than `MOST_QUESTIONS`."""


class Multihop(MemorisedTask):
    """A table of relations, and questions that compose them."""

    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hops": ((3,), (2, 3)),
        "trained_share": (0.8, 0.5, 0.2),
        "n_entities": (64, 128),
    }
    type: Literal["multihop"] = "multihop"
    n_entities: int = Field(default=32, ge=2)
    """Entities; an answer is worth log2 of it in bits."""
    n_relations: int = Field(default=10, ge=2)
    """Relations, each a random function of the entities."""
    hops: tuple[Annotated[int, Field(le=MOST_HOPS)], ...] = (2,)
    """Numbers of hops of composed questions; one-hop facts are always trained."""
    trained_share: float = Field(default=0.9, ge=0, lt=1)
    """Share of the composed questions of each number of hops that is trained; the rest is held out."""

    @model_validator(mode="after")
    def _fits(self) -> "Multihop":
        if not self.hops or len(set(self.hops)) < len(self.hops) or min(self.hops) < 2:
            raise UserError("give one number of hops or several different ones, each at least 2", "hops")
        if max(self.hops) > self.n_relations:
            raise UserError(
                f"{max(self.hops)} hops take different relations, and there are {self.n_relations}; raise n_relations",
                "hops",
            )
        questions = sum(map(self.n_questions, self.hops))
        if questions > MOST_QUESTIONS:
            raise UserError(f"that makes {questions} questions; at most {MOST_QUESTIONS}, so take less", "n_entities")
        return self

    def n_questions(self, hops: int) -> int:
        """Different questions of so many hops."""
        return self.n_entities * math.perm(self.n_relations, hops)

    def n_trained(self, hops: int) -> int:
        """How many of them are trained: all of one hop; of others never all."""
        count = self.n_questions(hops)
        return count if hops == 1 else min(round(self.trained_share * count), count - 1)

    @property
    def vocab_size(self) -> int:
        """Entities, relations and the padding."""
        return self.n_entities + self.n_relations + 1

    @property
    def context(self) -> int:
        return 1 + max(self.hops)

    @property
    def n_rows(self) -> int:
        return sum(map(self.n_trained, (1, *self.hops)))

    def data(self, *, seed: int, scored_on: ScoredOn) -> "MultihopData":
        return MultihopData(self, seed=seed, scored_on=scored_on)


class MultihopData(MemorisedData):
    """One table [R, E]. The first `n_rows` of all questions are trained, the rest is held out."""

    task: Multihop

    def __init__(self, task: Multihop, *, seed: int, scored_on: ScoredOn) -> None:
        super().__init__(task, seed=seed)
        draw = rng("multihop", seed, scored_on, "table")
        self.table: Tokens = draw.integers(task.n_entities, size=(task.n_relations, task.n_entities))
        parts: dict[bool, list[tuple[Tokens, Tokens]]] = {True: [], False: []}
        for hops in (1, *task.hops):
            inputs, targets = self._questions(hops)
            order, count = draw.permutation(len(inputs)), task.n_trained(hops)
            for trained, chosen in ((True, order[:count]), (False, order[count:])):
                parts[trained].append((inputs[chosen], targets[chosen]))
        self.inputs, self.targets = (np.concatenate(part) for part in zip(*parts[True], *parts[False], strict=True))

    def _questions(self, hops: int) -> tuple[Tokens, Tokens]:
        """Inputs and targets [Q, T] for every entity with every path of different relations."""
        task = self.task
        paths = np.array(list(permutations(range(task.n_relations), hops)))
        start = np.repeat(np.arange(task.n_entities), len(paths))
        path = np.tile(paths, (task.n_entities, 1))
        inputs = np.full((len(start), task.context), task.vocab_size - 1, dtype=np.int64)
        inputs[:, 0], inputs[:, 1 : 1 + hops] = start, task.n_entities + path
        entity = start
        for relation in path.T:
            entity = self.table[relation, entity]
        targets = np.full_like(inputs, IGNORE)
        targets[:, hops] = entity
        return inputs, targets

    def rows(self, index: Tokens, epoch: int) -> tuple[Tokens, Tokens]:
        return self.inputs[index], self.targets[index]

    def evaluate(self, predict: Predict) -> Metrics:
        """`bits`, `max_bits`, `guess_bits` and `accuracy` of held-out questions; `stored_bits` of one-hop facts,
        `trained_bits` of composed questions that were trained; `slices` of all three by number of hops.
        """
        answers = ask(predict, self.inputs, self.targets)
        held_out, composed = answers.row >= self.n_rows, answers.position > 1
        scored = self._sum(answers, held_out)
        return {
            "bits": scored["bits"],
            "max_bits": scored["max_bits"],
            "guess_bits": scored["guess_bits"],
            "accuracy": scored["accuracy"],
            "stored_bits": self._sum(answers, ~composed)["bits"],
            "trained_bits": self._sum(answers, composed & ~held_out)["bits"],
            "slices": [
                {"hops": hops, "questions": "held out" if out else "trained", **self._sum(answers, part)}
                for hops in (1, *self.task.hops)
                for out in (False, True)
                if (part := (answers.position == hops) & (held_out == out)).any()
            ],
        }

    @cached_property
    def _share(self) -> NDArray[np.float64]:
        """Of all questions with the path of each question [Q], the share that has its answer."""
        task = self.task
        path = (self.inputs[:, 1:] - task.n_entities) @ (task.n_relations + 1) ** np.arange(task.context - 1)
        return share_of(self.targets.max(axis=1), path)

    def _sum(self, answers: Answers, part: NDArray[np.bool_]) -> dict[str, Any]:
        worth, count = math.log2(self.task.n_entities), int(part.sum())
        return {
            "answers": count,
            "bits": worth * count - float(answers.bits_paid[part].sum()),
            "max_bits": worth * count,
            "guess_bits": worth * count + float(np.log2(self._share[part]).sum()),
            "accuracy": float(answers.right[part].mean()) if count else 0.0,
        }
