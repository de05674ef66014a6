"""What the tasks of MAD (mechanistic architecture design) share: fixed training sets, and what guessing earns.

MAD asks six small questions of an architecture, each at a baseline and on a ladder that makes one thing harder at a
time: vocabulary, length, training sequences, noise, tokens to copy. Its accuracies were reported to rank architectures
as their perplexity at scale does. `doge-lab tasks mad_recall --ladder` lists the rungs.

Ours are scored in bits, so every answer is uniform over the values and independent of the others for a reader who
knows the task and has not read the sequence: zero bits is chance. `guess_bits` is what a reader earns who knows how
often each value is an answer there and recalls none. The paper counts the asked positions that are right, as
`accuracy` does here.

Source: Poli et al. 2024, https://arxiv.org/abs/2403.17844 , written from its description.

Shape letters: B sequence, A asked position, V value.
"""

import abc

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from doge_lab.tasks.base import IGNORE, Answers, Metrics, Predict, Tokens, share_of
from doge_lab.tasks.sampled import SampledData, SampledTask

SMALLER_SETS = (6_400, 3_200, 1_600, 800)
"""The paper's ladder of training sequences."""


class MadTask(SampledTask):
    """A task that is trained on a fixed set of sequences."""

    n_train: PositiveInt | None = 12_800
    """Sequences of a fixed training set, shown epoch after epoch (the paper: 12800); null draws fresh ones."""

    @property
    @abc.abstractmethod
    def n_values(self) -> int:
        """Tokens that an answer may be, all equally likely."""


class MadData(SampledData):
    """Sequences of one run."""

    task: MadTask

    def possible(self, answers: Answers) -> NDArray[np.float64]:
        return np.full(len(answers.row), float(self.task.n_values))

    def guess(self, row: Tokens, position: Tokens) -> NDArray[np.float64]:
        """The probability [A] that the guesser gives to each answer. Here: knowing all answers of the sequence."""
        return share_of(self.targets[row, position], row)

    def evaluate(self, predict: Predict) -> Metrics:
        """Adds `guess_bits`: what is earned by knowing how often each value is an answer, recalling none."""
        share = self.guess(*np.nonzero(self.targets != IGNORE))
        guess_bits = float(np.log2(self.task.n_values * share).sum()) / len(self.targets)
        return {**super().evaluate(predict), "guess_bits": guess_bits}
