"""The process that owns the study: asks, screens, hands out, tells. Finished trials survive whatever ends it.

A trial is told to the study as soon as it is done, and each of its runs has a record of its own, so ctrl-C, kill -9
and a full disk cost at most what was being trained. A trial left running by a coordinator that died is taken up
again on resume, under its own number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from doge_lab.engine.drive import Answer, Listed, drive
from doge_lab.engine.pool import Pool
from doge_lab.engine.protocol import EXAMINED, LAST, REPORT, Job
from doge_lab.errors import UserError
from doge_lab.files import only_one
from doge_lab.search.asking import Asker
from doge_lab.search.audit import Audit
from doge_lab.search.config import Space
from doge_lab.search.confirmation import Confirmation
from doge_lab.search.front import Results
from doge_lab.search.ledger import Ledger
from doge_lab.search.study import refuse_mixing, refuse_other, writing_to
from doge_lab.search.vetting import Vetting

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
    job_timeout: float | None = None
    """Seconds that a worker may be silent; None for as long as the others suggest."""
    on_change: OnChange = lambda search: None
    notes: dict[int, str] = field(default_factory=dict)
    """Job number -> how far it is, for the live view."""
    phase: str = "check"

    def run(self) -> Results:
        """Search, look again at the front, confirm it. Raises `UserError` when nothing can be trained."""
        refuse_mixing(self.directory, resume=self.resume)
        refuse_other(self.directory, self.space, seed=self.seed)  # before minutes of checks
        self.vetting = Vetting(self.space, skip_failing=self.skip_failing)
        with writing_to(self.directory), Pool(self.devices, self.allow_import, self.job_timeout) as pool:
            drive(Listed(self.vetting.jobs(), self.vetting.keep), pool, self._heard)
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

    def _settle(self, pool: Pool) -> None:
        """Look at the front again and confirm it, until nobody new stands on it: others follow who is struck."""
        audit = Audit(self.ledger)
        confirmation = Confirmation(self.ledger, audit, seed=self.seed)
        while True:
            for phase, step in (("audit", audit), ("confirm", confirmation)):
                if jobs := list(step.jobs()):
                    self.phase = phase
                    drive(Listed(jobs, step.keep), pool, self._heard)
                    break
            else:
                return

    def _search(self, pool: Pool) -> None:
        drive(Asker(self.ledger, self.vetting, seed=self.seed), pool, self._heard)
        reason = self.ledger.study.user_attrs["ended_early"]
        if reason and not self.ledger.trained:
            raise UserError(reason, "search")

    def _heard(self, event: str, job: Job, content: Answer) -> None:
        """Keep in view what is being done."""
        number = job.get("job", -1)
        if event == EXAMINED:
            self.vetting.note(content)
        elif event == REPORT:
            self.notes[number] = f"{content['task']} {content['step']}/{content['steps']}"
        elif event in LAST:
            self.notes.pop(number, None)
        self.on_change(self)
