"""The process that owns the study: asks, screens, hands out, tells. Finished trials survive whatever ends it.

A trial is told to the study as soon as it is done, and each of its runs has a record of its own, so ctrl-C, kill -9
and a full disk cost at most what was being trained. A trial left running by a coordinator that died is taken up
again on resume, under its own number.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from optuna.trial import Trial as OptunaTrial

from doge_lab.config import RunConfig, fingerprint
from doge_lab.errors import UserError
from doge_lab.files import only_one
from doge_lab.objective import Measured
from doge_lab.search.config import Space
from doge_lab.search.front import Results
from doge_lab.search.pool import DONE, EXAMINED, FAILED, REPORT, Pool
from doge_lab.search.screening import Rejected, screen
from doge_lab.search.space import Draw, Hole, Scalar, fill
from doge_lab.search.study import Confirmed, Unconfirmed, open_study, refuse_mixing, results_of, writing_to
from doge_lab.search.vetting import Vetting

RUNS = "runs"
REJECTIONS = 300
"""Candidates rejected in a row before the search gives up: the space can hardly meet its constraints."""
CONFIRM_SEED = 1000
"""Confirmation starts from other initialisations too, far from the seeds of the search."""

OnChange = Callable[["Coordinator"], None]


@dataclass
class Coordinator:
    """One search. `devices` has an entry per worker; `on_change` is called whenever something happened."""

    space: Space
    directory: Path
    devices: Sequence[str]
    seed: int = 0
    resume: bool = False
    allow_import: Sequence[str] = ()
    skip_failing: bool = False
    on_change: OnChange = lambda search: None
    notes: dict[int, str] = field(default_factory=dict)
    """Job number -> how far it is, for the live view."""
    phase: str = "check"
    changes: int = 0
    """How often a trial began or ended: a view need not read the study again while this stays."""

    def run(self) -> Results:
        """Search, confirm the front, and return what a report needs. Raises `UserError` when nothing can be trained."""
        refuse_mixing(self.directory, resume=self.resume)
        self.rejected_in_a_row = 0
        self.vetting = Vetting(self.space, skip_failing=self.skip_failing)
        with writing_to(self.directory), Pool(self.devices, self.allow_import) as pool:
            self._work_through(pool, deque(self.vetting.jobs()), self.vetting.keep)
            with only_one(self.directory, "search"):
                refuse_mixing(self.directory, resume=self.resume)  # another may have begun, and ended, meanwhile
                self._study(pool)
        return self.results()

    def _study(self, pool: Pool) -> None:
        self.study, self.storage = open_study(self.directory, self.space, seed=self.seed)
        self.study_id = self.storage.get_study_id_from_name(self.study.study_name)
        self.study.set_user_attr("ended_early", "")
        self.phase = "search"
        self._search(pool, deque(self._left_running()))
        self.phase = "confirm"
        self._confirm(pool)

    def results(self) -> Results:
        """What was found so far; not before the blocks were checked."""
        return results_of(self.study, self.space, self.directory)

    @property
    def trained(self) -> int:
        """Trials that were trained to an end, good or bad."""
        done = (TrialState.COMPLETE, TrialState.FAIL)
        return sum(
            trial.state in done and "config" in trial.user_attrs for trial in self.study.get_trials(deepcopy=False)
        )

    def _work_through(
        self, pool: Pool, jobs: deque[dict[str, Any]], keep: Callable[[Mapping[str, Any], Mapping[str, Any]], None]
    ) -> None:
        while jobs or pool.running:
            while jobs and pool.idle:
                pool.submit(jobs.popleft())
            self.on_change(self)
            self._handle(pool, keep)

    def _search(self, pool: Pool, left_running: deque[dict[str, Any]]) -> None:
        while True:
            while pool.idle and self.trained + len(pool.running) < self.space.search.trials:
                job = left_running.popleft() if left_running else self._next_job()
                if job is None:
                    break
                pool.submit(job)
                self.on_change(self)
            if not pool.running:
                break
            self._handle(pool, self._tell)
        reason = self.study.user_attrs["ended_early"]
        if reason and not self.trained:
            raise UserError(reason, "search")

    def _handle(self, pool: Pool, tell: Callable[[Mapping[str, Any], dict[str, Any]], None]) -> None:
        """Wait for one event of the pool and act on it."""
        event, job, content = pool.wait()
        number = job.get("job", -1)
        if event == EXAMINED:
            self.vetting.note(content)
        elif event == REPORT:
            self.notes[number] = f"{content['task']} {content['step']}/{content['steps']}"
        if event in (DONE, FAILED):
            self.changes += 1
            self.notes.pop(number, None)
            tell(job, {**content, "event": event})
        self.on_change(self)

    def _tell(self, job: Mapping[str, Any], content: Mapping[str, Any]) -> None:
        trial = self._trial(job["job"])
        if content["event"] == FAILED:
            self._end(trial, TrialState.FAIL, content["reason"])
            return
        measured = Measured(content["metrics"], trial.user_attrs["cost"], content["seconds"])
        self._set(trial, "metrics", measured.metrics)
        self._set(trial, "seconds", measured.seconds)
        self.study.tell(trial.number, [measured.value(name) for name in self.space.search.objectives])

    def _next_job(self) -> dict[str, Any] | None:
        """Ask until a candidate is admissible; the others are rejected untrained. None when none seems left."""
        if self.rejected_in_a_row >= REJECTIONS:
            return None
        while self.rejected_in_a_row < REJECTIONS:
            trial = self.study.ask()
            try:
                run, cost = screen(self.space, fill(self.space.run, _drawn_by(trial)), self.vetting)
            except Rejected as rejected:
                self.rejected_in_a_row += 1
                self.changes += 1
                self._reject(trial, rejected)
                reason = f"{REJECTIONS} candidates in a row were rejected; the last one: {rejected}"
                continue
            self.rejected_in_a_row = 0
            self._set(trial, "cost", cost.dump())
            return self._admit(trial, run)
        self.study.set_user_attr("ended_early", reason)
        return None

    def _reject(self, trial: OptunaTrial, rejected: Rejected) -> None:
        if rejected.cost:
            self._set(trial, "cost", rejected.cost.dump())
        for name, value in rejected.excess.items():
            trial.set_constraint(name, value)
        self._end(trial, TrialState.PRUNED, str(rejected))

    def _admit(self, trial: OptunaTrial, run: RunConfig) -> dict[str, Any]:
        """A job for an admissible candidate; one that was drawn before gets another seed."""
        candidate = fingerprint(run)
        self.changes += 1
        used = {
            other.user_attrs.get("run_seed")
            for other in self.study.get_trials(deepcopy=False)
            if other.user_attrs.get("candidate") == candidate
        }
        fresh = next(seed for seed in count(run.seed + self.seed) if seed not in used)
        run = run.model_copy(update={"seed": fresh})
        for name, value in {"candidate": candidate, "run_seed": run.seed, "config": run.dump()}.items():
            self._set(trial, name, value)
        return self._trial_job(trial, run.dump())

    def _trial_job(self, trial: OptunaTrial | FrozenTrial, run: Mapping[str, Any]) -> dict[str, Any]:
        suspects = [asdict(suspect) for suspect in self.vetting.unexamined(run)]
        job = self._job(trial.number, run, "validation")
        return {**job, "suspects": suspects, "allow_faults": self.space.search.allow_faults}

    def _job(self, number: int, run: Mapping[str, Any], scored_on: str) -> dict[str, Any]:
        return {"job": number, "run": run, "folder": str(self.directory / RUNS), "scored_on": scored_on}

    def _end(self, trial: OptunaTrial | FrozenTrial, state: TrialState, reason: str) -> None:
        self._set(trial, "reason", reason)
        self.study.tell(trial.number, state=state)

    def _set(self, trial: OptunaTrial | FrozenTrial, name: str, value: Any) -> None:
        # Through the storage: a resumed trial has no `Trial` object, which exists only where it was asked for.
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self.study_id, trial.number)
        self.storage.set_trial_user_attr(trial_id, name, value)

    def _trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _left_running(self) -> Iterable[dict[str, Any]]:
        """Jobs of a coordinator that died; what died before it was screened is closed."""
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if "config" not in trial.user_attrs:
                self._end(trial, TrialState.FAIL, "the search ended before this candidate was screened")
                continue
            try:
                job = self._trial_job(trial, trial.user_attrs["config"])
            except UserError as error:  # another worker found it to fail before the search ended
                self._end(trial, TrialState.FAIL, str(error))
            else:
                yield job

    def _confirm(self, pool: Pool) -> None:
        """Train the front again on fresh test data, from other seeds: what was chosen is not what is reported."""
        confirmed: Confirmed = self.study.user_attrs["confirmed"]
        unconfirmed: Unconfirmed = {}
        jobs = deque(self._confirmation_jobs(confirmed))

        def keep(job: Mapping[str, Any], content: Mapping[str, Any]) -> None:
            measured = Measured(content.get("metrics", {}), self._trial(job["trial"]).user_attrs["cost"], 0.0)
            if content["event"] == FAILED:
                unconfirmed.setdefault(job["candidate"], {})[str(job["run"]["seed"])] = content["reason"]
                self.study.set_user_attr("unconfirmed", unconfirmed)
            else:
                values = {name: measured.value(name) for name in self.space.search.objectives}
                confirmed.setdefault(job["candidate"], {})[str(job["run"]["seed"])] = values
                self.study.set_user_attr("confirmed", confirmed)

        self._work_through(pool, jobs, keep)

    def _confirmation_jobs(self, confirmed: Confirmed) -> Iterable[dict[str, Any]]:
        number = -1
        for candidate in self.results().front:
            first = candidate.trials[0]
            for index in range(self.space.search.confirm_seeds):
                seed = CONFIRM_SEED + self.seed + index
                number -= 1
                if str(seed) not in confirmed.get(first.candidate, {}):
                    job = self._job(number, {**first.config, "seed": seed}, "test")
                    yield {**job, "candidate": first.candidate, "trial": first.number}


def _drawn_by(trial: OptunaTrial) -> Draw:
    """Fill holes by asking Optuna."""

    def draw(name: str, hole: Hole) -> Scalar:
        if hole.kind == "choice":
            return trial.suggest_categorical(name, hole.labels)
        if hole.kind == "int":
            return trial.suggest_int(name, int(hole.low), int(hole.high), step=hole.step, log=hole.log)
        return trial.suggest_float(name, hole.low, hole.high, log=hole.log)

    return draw
