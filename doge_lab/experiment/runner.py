"""Trains an experiment over a pool. What is finished lies on disk, so the same call again continues it."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doge_lab.engine.drive import Answer, drive
from doge_lab.engine.pool import Pool
from doge_lab.engine.protocol import FAILED, LAST, REPORT
from doge_lab.engine.protocol import Job as Message
from doge_lab.experiment.config import Experiment, arms_of
from doge_lab.experiment.plan import Cell, Job, Outcome
from doge_lab.files import only_one

RUNS = "runs"


@dataclass
class Runner:
    """One experiment in `directory`. `devices` has an entry per worker; `on_change` is called at every event."""

    experiment: Experiment
    directory: Path
    devices: Sequence[str]
    allow_import: Sequence[str] = ()
    job_timeout: float | None = None
    on_change: Callable[["Runner"], None] = lambda runner: None
    notes: dict[int, str] = field(default_factory=dict)
    """Job number -> how far it is, for the live view."""
    done: int = 0
    replaced: Counter[str] = field(default_factory=Counter)
    """Why stored runs were trained again -> how many."""

    def __post_init__(self) -> None:
        protocol = self.experiment.protocol
        self._waiting: deque[Job] = deque()
        self._given: list[Job] = []
        self.arms = arms_of(self.experiment)
        self.cells = [Cell(arm, task, protocol) for arm in self.arms for task in arm.run.tasks]

    @property
    def total(self) -> int:
        """Runs in all, while no cell fails as a whole."""
        return sum(len(list(cell.tuning())) + self.experiment.protocol.seeds for cell in self.cells)

    def run(self) -> list[Cell]:
        """Tune and score every cell. Raises `UserError` when another process is at work in the folder."""
        pool = Pool(self.devices, self.allow_import, self.job_timeout)
        self._waiting.extend(job for cell in self.cells for job in (list(cell.tuning()) or list(cell.reporting())))
        with only_one(self.directory, "experiment"), pool:
            drive(self, pool, self._heard)
        self.on_change(self)
        return self.cells

    def next(self, running: int) -> Message | None:
        """The next run of a cell that knows what to train."""
        if not self._waiting:
            return None
        self._given.append(self._waiting.popleft())
        return self._message(len(self._given) - 1, self._given[-1])

    def tell(self, message: Message, answer: Answer) -> None:
        """Keep an outcome; what it makes possible is trained next."""
        job = self._given[message["job"]]
        self.done += 1
        job.cell.note(job, self._outcome(job, answer))
        if job.scored_on == "validation" and job.cell.is_tuned:
            self._waiting.extend(job.cell.reporting())

    def _heard(self, event: str, message: Message, content: Answer) -> None:
        number = message.get("job", -1)
        if event == REPORT:
            name = self._given[number].cell.arm.name
            self.notes[number] = f"{name}: {content['task']} {content['step']}/{content['steps']}"
        elif event in LAST:
            self.notes.pop(number, None)
        self.on_change(self)

    def _message(self, number: int, job: Job) -> dict[str, Any]:
        folder = str(self.directory / RUNS)
        said = {"job": number, "kind": "train", "run": job.run.dump(), "folder": folder, "scored_on": job.scored_on}
        return {**said, "siblings": job.cell.arm.name}  # arms may be of very different sizes

    def _outcome(self, job: Job, answer: Answer) -> Outcome:
        if answer["event"] == FAILED:
            return Outcome(job.seed, None, answer["reason"], answer.get("diverged", False))
        self.replaced.update(answer["replaced"])
        spent = {name: answer[name] for name in ("seconds", "cpu_seconds")}
        return Outcome(job.seed, answer["metrics"][job.cell.task.label], **spent)
