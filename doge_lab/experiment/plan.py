"""What has to be trained, and what is chosen: no process and no file.

A cell is one arm on one task. Its grid is trained on validation data, the best setting is chosen there, and only then
is that setting trained on test data, from seeds that tuning never used.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean
from typing import Any

from doge_lab.config import RunConfig
from doge_lab.experiment.config import Arm, Protocol
from doge_lab.tasks import ScoredOn, Task

REPORTED_SEED = 1000
"""What is reported starts from other seeds than tuning, far from them."""


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    lr: float
    weight_decay: float

    def dump(self) -> dict[str, float]:
        return {"lr": self.lr, "weight_decay": self.weight_decay}


@dataclass(frozen=True)
class Outcome:
    """What one run came to. `metrics` is None when it failed; a diverged run failed and `bits` of it is 0."""

    seed: int
    metrics: Mapping[str, Any] | None
    failed: str | None = None
    diverged: bool = False
    seconds: float | None = None
    cpu_seconds: float | None = None

    @property
    def bits(self) -> float | None:
        """Bits on what it was scored on; a model whose training diverged holds none."""
        if self.metrics is not None:
            return float(self.metrics["bits"])
        return 0.0 if self.diverged else None


@dataclass(frozen=True)
class Job:
    """One run to train. `setting` belongs to `cell`."""

    cell: "Cell"
    setting: Setting
    seed: int
    scored_on: ScoredOn

    @property
    def run(self) -> RunConfig:
        return self.cell.arm.job(self.cell.task, seed=self.seed, train=self.setting.dump())


@dataclass
class Cell:
    """One arm on one task, and what is known of it so far."""

    arm: Arm
    task: Task
    protocol: Protocol
    tuned: dict[Setting, list[Outcome]] = field(default_factory=dict)
    reported: list[Outcome] = field(default_factory=list)

    @property
    def grid(self) -> list[Setting]:
        decays = self.protocol.weight_decay or (self.arm.run.train_config(self.task).weight_decay,)
        return [Setting(lr, decay) for lr, decay in product(self.protocol.lr, decays)]

    def tuning(self) -> Iterator[Job]:
        """The jobs of the grid: none where there is nothing to choose."""
        if len(self.grid) > 1:
            for setting, seed in product(self.grid, range(self.protocol.tuning_seeds)):
                yield Job(self, setting, seed, "validation")

    def reporting(self) -> Iterator[Job]:
        """The jobs of what is reported. None when every setting failed."""
        chosen = self.chosen
        if chosen is not None:
            for index in range(self.protocol.seeds):
                yield Job(self, chosen, REPORTED_SEED + index, "test")

    def note(self, job: Job, outcome: Outcome) -> None:
        tuning = job.scored_on == "validation"
        outcomes = self.tuned.setdefault(job.setting, []) if tuning else self.reported
        outcomes.append(outcome)
        outcomes.sort(key=lambda outcome: outcome.seed)  # workers end in any order

    @property
    def is_tuned(self) -> bool:
        return sum(map(len, self.tuned.values())) == len(list(self.tuning()))

    @property
    def chosen(self) -> Setting | None:
        """The best setting on validation; None when no setting could be trained."""
        if len(self.grid) == 1:
            return self.grid[0]
        scores = {setting: merit(self.tuned[setting]) for setting in self.grid if setting in self.tuned}
        known = {setting: score for setting, score in scores.items() if score is not None}
        return max(known, key=lambda setting: known[setting]) if known else None

    @property
    def at_edge(self) -> bool:
        """Whether the chosen learning rate is the lowest or highest tried, so that a better one may lie outside."""
        rates = self.protocol.lr
        return len(rates) > 1 and self.chosen is not None and self.chosen.lr in (rates[0], rates[-1])


def merit(outcomes: list[Outcome]) -> tuple[int, float] | None:
    """How good a setting is: fewer diverged seeds first, then the mean bits of the others.

    A diverged run is worse than any that ended: a poor model may score below zero bits. None when a seed failed
    otherwise, so that nothing is known.
    """
    ended = [float(outcome.metrics["bits"]) for outcome in outcomes if outcome.metrics is not None]
    diverged = sum(outcome.diverged for outcome in outcomes)
    if not outcomes or len(ended) + diverged < len(outcomes):
        return None
    return -diverged, fmean(ended) if ended else 0.0
