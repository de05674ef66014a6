"""Which candidate is trained next: asks the sampler, rejects what costs too much, takes up what was left running."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import count
from typing import Any

import optuna
from optuna.trial import Trial as OptunaTrial
from optuna.trial import TrialState

from doge_lab.config import RunConfig, fingerprint
from doge_lab.errors import UserError
from doge_lab.search.front import hypervolume
from doge_lab.search.ledger import AnyTrial, Ledger
from doge_lab.search.screening import Rejected, screen
from doge_lab.search.space import Draw, Hole, Scalar, fill
from doge_lab.search.vetting import Vetting

Job = dict[str, Any]

REJECTIONS = 300
"""Candidates rejected in a row before the search gives up: the space can hardly meet its constraints."""

STALL = 0.001
"""A smaller gain of hypervolume is none."""


class Asker:
    """The candidates of one search. `vetting` knows which blocks may be trained."""

    def __init__(self, ledger: Ledger, vetting: Vetting, *, seed: int) -> None:
        self.ledger, self.vetting, self.seed = ledger, vetting, seed
        self.space = ledger.space
        self._rejected_in_a_row = 0
        self._rejected: dict[str, Rejected] = {}
        """What decides a cost -> why it was rejected: what is drawn again is not solved again."""
        ledger.study.set_user_attr("ended_early", "")
        for known in self.space.search.first:
            ledger.study.enqueue_trial(dict(known), skip_if_exists=True)

    def left_running(self) -> Iterator[Job]:
        """Jobs of a coordinator that died; what died before it was screened is screened now, under its own number."""
        for trial in self.ledger.trials(TrialState.RUNNING):
            job = (
                self._job_again(trial, trial.user_attrs["config"])
                if "config" in trial.user_attrs
                else self._screened(optuna.trial.Trial(self.ledger.study, trial._trial_id))
            )
            if job is not None:
                yield job

    def next(self) -> Job | None:
        """Ask until a candidate is admissible; the others are rejected untrained.

        None when none seems left, or when further ones no longer pay.
        """
        if stalled := self._stalled():
            self.ledger.study.set_user_attr("ended_early", stalled)
            return None
        while self._rejected_in_a_row < REJECTIONS:
            job = self._screened(self.ledger.study.ask())
            if job is not None:
                return job
        return None

    def _stalled(self) -> str:
        """Why the search may stop: the last `patience` candidates added next to nothing to the hypervolume."""
        patience = self.space.search.patience
        if patience is None:
            return ""
        results = self.ledger.results()
        values = [trial.values for trial in results.trials if trial.state == "complete"]
        if len(values) <= patience:
            return ""
        now, before = (
            hypervolume(some, results.objectives, results.reference) for some in (values, values[:-patience])
        )
        stalled = now - before <= STALL * now
        return f"the last {patience} candidates added less than {STALL:.1%} to the hypervolume" if stalled else ""

    def _job_again(self, trial: AnyTrial, run: Mapping[str, Any]) -> Job | None:
        try:
            return self._job(trial, run)
        except UserError as error:  # another worker found it to fail before the search ended
            self.ledger.end(trial, TrialState.FAIL, str(error))
            return None

    def _screened(self, trial: OptunaTrial) -> Job | None:
        """The job of an admissible candidate; None for one that is rejected untrained."""
        drawn = fill(self.space.run, _drawn_by(trial))
        costed = json.dumps({**drawn, "train": None}, sort_keys=True)
        try:
            if costed in self._rejected:
                raise self._rejected[costed]
            run, cost = screen(self.space, drawn, self.vetting)
        except Rejected as rejected:
            self._rejected[costed] = rejected
            self._reject(trial, rejected)
            return None
        self._rejected_in_a_row = 0
        self.ledger.write(trial, cost=cost.dump())
        return self._admit(trial, run)

    def _reject(self, trial: OptunaTrial, rejected: Rejected) -> None:
        self._rejected_in_a_row += 1
        if rejected.cost:
            self.ledger.write(trial, cost=rejected.cost.dump())
        for name, value in rejected.excess.items():
            trial.set_constraint(name, value)
        self.ledger.end(trial, TrialState.PRUNED, str(rejected))
        if self._rejected_in_a_row == REJECTIONS:
            reason = f"{REJECTIONS} candidates in a row were rejected; the last one: {rejected}"
            self.ledger.study.set_user_attr("ended_early", reason)

    def _admit(self, trial: OptunaTrial, run: RunConfig) -> Job:
        """A job for an admissible candidate; one that was drawn before gets another seed."""
        candidate = fingerprint(run)
        used = {
            other.user_attrs.get("run_seed")
            for other in self.ledger.trials()
            if other.user_attrs.get("candidate") == candidate
        }
        fresh = next(seed for seed in count(run.seed + self.seed) if seed not in used)
        run = run.model_copy(update={"seed": fresh})
        self.ledger.changes += 1
        self.ledger.write(trial, candidate=candidate, run_seed=run.seed, config=run.dump())
        return self._job(trial, run.dump())

    def _job(self, trial: AnyTrial, run: Mapping[str, Any]) -> Job:
        suspects = [asdict(suspect) for suspect in self.vetting.unexamined(run)]
        job = self.ledger.job(trial.number, run, "validation")
        return {**job, "suspects": suspects, "allow_faults": self.space.search.allow_faults}


def _drawn_by(trial: OptunaTrial) -> Draw:
    """Fill holes by asking Optuna."""

    def draw(name: str, hole: Hole) -> Scalar:
        if hole.kind == "choice":
            return trial.suggest_categorical(name, hole.labels)
        if hole.kind == "int":
            return trial.suggest_int(name, int(hole.low), int(hole.high), step=hole.step, log=hole.log)
        return trial.suggest_float(name, hole.low, hole.high, log=hole.log)

    return draw
