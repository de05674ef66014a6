"""The open study as its one writer uses it: what is known of a trial is written as soon as it is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from optuna.trial import Trial as OptunaTrial

from doge_lab.objective import Measured
from doge_lab.search.config import Space
from doge_lab.search.front import Results
from doge_lab.search.study import open_study, results_of

AnyTrial = OptunaTrial | FrozenTrial
"""A trial just asked for, or one read back from the storage."""

RUNS = "runs"


class Ledger:
    """The study of `space` in `directory`, created or continued. Raises `UserError` when the folder is another's.

    changes: how often a trial began or ended; while it stays, a view need not read the study again.
    """

    def __init__(self, space: Space, directory: Path, *, seed: int) -> None:
        self.directory = directory
        self.study: Study
        self._storage: RDBStorage
        self.space: Space
        self.study, self._storage, self.space = open_study(directory, space, seed=seed)
        self._study_id = self._storage.get_study_id_from_name(self.study.study_name)
        self.changes = 0

    def results(self) -> Results:
        """What was found so far."""
        return results_of(self.study, self.space, self.directory)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Every trial, or those in one of `states`."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def trial(self, number: int) -> FrozenTrial:
        return self.trials()[number]

    @property
    def trained(self) -> int:
        """Trials that were trained to an end, good or bad."""
        return sum("config" in trial.user_attrs for trial in self.trials(TrialState.COMPLETE, TrialState.FAIL))

    def write(self, trial: AnyTrial, **facts: Any) -> None:
        """Add facts to a trial."""
        # Through the storage: a resumed trial has no `Trial` object, which exists only where it was asked for.
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        for name, value in facts.items():
            self._storage.set_trial_user_attr(trial_id, name, value)

    def end(self, trial: AnyTrial, state: TrialState, reason: str) -> None:
        """Close a trial without values."""
        self.changes += 1
        self.write(trial, reason=reason)
        self.study.tell(trial.number, state=state)

    def complete(self, number: int, metrics: Mapping[str, Any], *, seconds: float, sources: Mapping[str, str]) -> None:
        """Close a trial with what was measured, and by what."""
        self.changes += 1
        trial = self.trial(number)
        self.write(trial, metrics=metrics, seconds=seconds, sources=sources)
        self.study.tell(number, list(self.values(number, metrics).values()))

    def values(self, number: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The objectives of a trial's model, given its scores."""
        measured = Measured(dict(metrics), self.trial(number).user_attrs["cost"], 0.0)
        return {name: measured.value(name) for name in self.space.search.objectives}

    def job(self, number: int, run: Mapping[str, Any], scored_on: str) -> dict[str, Any]:
        """A job for a worker: train `run` below this search's folder."""
        folder = str(self.directory / RUNS)
        return {"job": number, "kind": "train", "run": run, "folder": folder, "scored_on": scored_on}
