"""Which candidate is trained next: asks the sampler, rejects what costs too much, takes up what was left running."""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import count
from typing import Any

import optuna
from optuna.trial import Trial as OptunaTrial
from optuna.trial import TrialState

from doge_lab.config import RunConfig
from doge_lab.engine.drive import Answer
from doge_lab.engine.protocol import FAILED
from doge_lab.engine.seeds import derived
from doge_lab.identity import fingerprint
from doge_lab.search.front import hypervolume
from doge_lab.search.ledger import AnyTrial, Ledger
from doge_lab.search.screening import Rejected, admit, read
from doge_lab.search.space import Draw, Hole, Scalar, fill
from doge_lab.search.vetting import Vetting

Job = dict[str, Any]

SCREEN = "screen"
"""The kind of a job that builds a candidate; nothing of a block runs in this process."""

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
        self._asked: dict[int, tuple[OptunaTrial, str]] = {}
        """Trials that a worker screens, with what decides their cost."""
        self._admitted: deque[Job] = deque()
        self._left_running = self._taken_up()
        ledger.study.set_user_attr("ended_early", "")
        for known in self.space.search.first:
            ledger.study.enqueue_trial(dict(known), skip_if_exists=True)

    def next(self, running: int) -> Job | None:
        """What a worker may do next while `running` jobs are being done; None when nothing is left to begin."""
        if self._admitted:
            return self._admitted.popleft()
        if self.ledger.trained + running >= self.space.search.trials:
            return None
        return next(self._left_running, None) or self._fresh()

    def _taken_up(self) -> Iterator[Job]:
        """Jobs of a coordinator that died, under their own numbers: screened again, for the code may have changed."""
        for trial in self.ledger.trials(TrialState.RUNNING):
            if job := self._screening(optuna.trial.Trial(self.ledger.study, trial._trial_id)):
                yield job

    def _fresh(self) -> Job | None:
        """Ask until a candidate is worth screening; the others are rejected at once.

        None when none seems left, or when further ones no longer pay.
        """
        if stalled := self._stalled():
            self.ledger.study.set_user_attr("ended_early", stalled)
            return None
        while self._rejected_in_a_row < REJECTIONS:
            job = self._screening(self.ledger.study.ask())
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

    def _screening(self, trial: OptunaTrial) -> Job | None:
        """A job that builds a candidate and counts its cost; None for one that is rejected without."""
        drawn = fill(self.space.run, _drawn_by(trial))
        costed = json.dumps({**drawn, "train": None}, sort_keys=True)
        try:
            if costed in self._rejected:
                raise self._rejected[costed]
            run = read(self.space, drawn, self.vetting)
        except Rejected as rejected:
            self._reject(trial, costed, rejected)
            return None
        self._asked[trial.number] = trial, costed
        return {"job": trial.number, "kind": SCREEN, "run": run.dump()}

    def tell(self, job: Mapping[str, Any], answer: Answer) -> None:
        """Take what a worker found: a screened candidate is trained next or rejected, a trained one is told."""
        if job["kind"] == SCREEN:
            self._screened(job, answer)
        elif answer["event"] == FAILED:
            self.ledger.end(self.ledger.trial(job["job"]), TrialState.FAIL, answer["reason"])
        else:
            facts = {name: answer[name] for name in ("seconds", "sources")}
            self.ledger.complete(job["job"], answer["metrics"], **facts)

    def _screened(self, job: Mapping[str, Any], weighed: Answer) -> None:
        trial, costed = self._asked.pop(job["job"])
        if weighed["event"] == FAILED:
            weighed = {"refused": f"cannot be built: {weighed['reason']}"}
        try:
            run = admit(self.space, weighed, self.vetting)
        except Rejected as rejected:
            self._reject(trial, costed, rejected)
            return
        if self._rejected_in_a_row < REJECTIONS:
            self._rejected_in_a_row = 0
        self.ledger.write(trial, cost=weighed["cost"])
        self._admitted.append(self._admit(trial, run))

    def _reject(self, trial: OptunaTrial, costed: str, rejected: Rejected) -> None:
        self._rejected_in_a_row += 1
        self._rejected[costed] = rejected
        if rejected.cost:
            self.ledger.write(trial, cost=rejected.cost)
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
            if other.user_attrs.get("candidate") == candidate and other.number != trial.number
        }
        seeds = (derived("search", run.seed, self.seed, index) for index in count())
        fresh = next(seed for seed in seeds if seed not in used)
        run = run.model_copy(update={"seed": fresh})
        self.ledger.changes += 1
        self.ledger.write(trial, candidate=candidate, run_seed=run.seed, config=run.dump())
        return self._job(trial, run.dump())

    def _job(self, trial: AnyTrial, run: Mapping[str, Any]) -> Job:
        cases = [asdict(case) for case in self.vetting.unexamined(run)]
        job = self.ledger.job(trial.number, run, "validation")
        return {**job, "cases": cases, "allow_faults": self.space.search.allow_faults}


def _drawn_by(trial: OptunaTrial) -> Draw:
    """Fill holes by asking Optuna."""

    def draw(name: str, hole: Hole) -> Scalar:
        if hole.kind == "choice":
            return trial.suggest_categorical(name, hole.labels)
        if hole.kind == "int":
            return trial.suggest_int(name, int(hole.low), int(hole.high), step=hole.step, log=hole.log)
        return trial.suggest_float(name, hole.low, hole.high, log=hole.log)

    return draw
