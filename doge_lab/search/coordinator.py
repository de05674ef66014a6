"""The process that owns the study: asks, screens, hands out, tells. Finished trials survive whatever ends it.

A trial is told to the study as soon as it is done, and each of its runs has a record of its own, so ctrl-C, kill -9
and a full disk cost at most what was being trained. A trial left running by a coordinator that died is taken up
again on resume, under its own number.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from doge_lab.errors import UserError
from doge_lab.files import only_one
from doge_lab.search.asking import SCREEN, Asker
from doge_lab.search.audit import Audit
from doge_lab.search.config import Space
from doge_lab.search.confirmation import Confirmation
from doge_lab.search.front import Results
from doge_lab.search.ledger import Ledger
from doge_lab.search.pool import DONE, EXAMINED, FAILED, REPORT, Pool
from doge_lab.search.study import refuse_mixing, writing_to
from doge_lab.search.vetting import Vetting

OnChange = Callable[["Coordinator"], None]
Keep = Callable[[Mapping[str, Any], Mapping[str, Any]], None]


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
    job_timeout: float | None = None
    """Seconds that a worker may be silent; None for as long as the others suggest."""
    on_change: OnChange = lambda search: None
    notes: dict[int, str] = field(default_factory=dict)
    """Job number -> how far it is, for the live view."""
    phase: str = "check"

    def run(self) -> Results:
        """Search, look again at the front, confirm it. Raises `UserError` when nothing can be trained."""
        refuse_mixing(self.directory, resume=self.resume)
        self.vetting = Vetting(self.space, skip_failing=self.skip_failing)
        with writing_to(self.directory), Pool(self.devices, self.allow_import, self.job_timeout) as pool:
            self._work_through(pool, self.vetting.jobs(), self.vetting.keep)
            with only_one(self.directory, "search"):
                refuse_mixing(self.directory, resume=self.resume)  # another may have begun, and ended, meanwhile
                self.ledger = Ledger(self.space, self.directory, seed=self.seed)
                self.phase = "search"
                self._search(pool)
                self._settle(pool)
        return self.results()

    def results(self) -> Results:
        """What was found so far; not before the blocks were checked."""
        return self.ledger.results()

    @property
    def changes(self) -> int:
        """How often a trial began or ended."""
        return self.ledger.changes

    def _work_through(self, pool: Pool, jobs: Iterable[dict[str, Any]], keep: Keep) -> None:
        """Hand out `jobs` until every one was answered."""
        waiting = deque(jobs)
        while waiting or pool.running:
            while waiting and pool.idle:
                pool.submit(waiting.popleft())
            self.on_change(self)
            self._handle(pool, keep)

    def _settle(self, pool: Pool) -> None:
        """Look at the front again and confirm it, until nobody new stands on it: others follow who is struck."""
        audit = Audit(self.ledger)
        confirmation = Confirmation(self.ledger, audit, seed=self.seed)
        while True:
            for phase, step in (("audit", audit), ("confirm", confirmation)):
                if jobs := list(step.jobs()):
                    self.phase = phase
                    self._work_through(pool, jobs, step.keep)
                    break
            else:
                return

    def _search(self, pool: Pool) -> None:
        asker = Asker(self.ledger, self.vetting, seed=self.seed)

        def keep(job: Mapping[str, Any], content: Mapping[str, Any]) -> None:
            if job["kind"] == SCREEN:
                asker.screened(job, content)
            else:
                self._tell(job, content)

        while True:
            while pool.idle and (job := asker.next(len(pool.running))):
                pool.submit(job)
                self.on_change(self)
            if not pool.running:
                break
            self._handle(pool, keep)
        reason = self.ledger.study.user_attrs["ended_early"]
        if reason and not self.ledger.trained:
            raise UserError(reason, "search")

    def _handle(self, pool: Pool, keep: Keep) -> None:
        """Wait for one event of the pool and act on it."""
        event, job, content = pool.wait()
        number = job.get("job", -1)
        if event == EXAMINED:
            self.vetting.note(content)
        elif event == REPORT:
            self.notes[number] = f"{content['task']} {content['step']}/{content['steps']}"
        if event in (DONE, FAILED):
            self.notes.pop(number, None)
            keep(job, {**content, "event": event})
        self.on_change(self)

    def _tell(self, job: Mapping[str, Any], content: Mapping[str, Any]) -> None:
        number = job["job"]
        if content["event"] == FAILED:
            self.ledger.end(self.ledger.trial(number), TrialState.FAIL, content["reason"])
        else:
            facts = {name: content[name] for name in ("seconds", "sources")}
            self.ledger.complete(number, content["metrics"], **facts)
