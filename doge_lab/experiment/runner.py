"""Trains an experiment over worker processes. What is finished lies on disk, so the same call again continues it."""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doge_lab.experiment.config import Experiment, arms_of
from doge_lab.experiment.plan import Cell, Job, Outcome
from doge_lab.files import only_one
from doge_lab.search.pool import DONE, FAILED, REPORT, Pool

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
        self.arms = arms_of(self.experiment)
        self.cells = [Cell(arm, task, protocol) for arm in self.arms for task in arm.run.tasks]

    @property
    def total(self) -> int:
        """Runs in all, while no cell fails as a whole."""
        return sum(len(list(cell.tuning())) + self.experiment.protocol.seeds for cell in self.cells)

    def run(self) -> list[Cell]:
        """Tune and score every cell. Raises `UserError` when another process is at work in the folder."""
        pool = Pool(self.devices, self.allow_import, self.job_timeout)
        with only_one(self.directory, "experiment"), pool:
            self._work(pool)
        return self.cells

    def _work(self, pool: Pool) -> None:
        waiting = deque(job for cell in self.cells for job in (list(cell.tuning()) or list(cell.reporting())))
        given: list[Job] = []
        while waiting or pool.running:
            while waiting and pool.idle:
                given.append(waiting.popleft())
                pool.submit(self._message(len(given) - 1, given[-1]))
            self.on_change(self)
            event, message, content = pool.wait()
            number = message.get("job", -1)
            if event == REPORT:
                job = given[number]
                self.notes[number] = f"{job.cell.arm.name}: {content['task']} {content['step']}/{content['steps']}"
            elif event in (DONE, FAILED):
                self.notes.pop(number, None)
                waiting.extend(self._note(given[number], content, event))
        self.on_change(self)

    def _message(self, number: int, job: Job) -> dict[str, Any]:
        folder = str(self.directory / RUNS)
        said = {"job": number, "kind": "train", "run": job.run.dump(), "folder": folder, "scored_on": job.scored_on}
        return {**said, "siblings": job.cell.arm.name}  # arms may be of very different sizes

    def _note(self, job: Job, content: Mapping[str, Any], event: str) -> list[Job]:
        """Keep an outcome; what it makes possible to train next."""
        self.done += 1
        if event == FAILED:
            diverged = content.get("diverged", False)
            outcome = Outcome(job.seed, None, content["reason"], diverged)
        else:
            spent = {name: content[name] for name in ("seconds", "cpu_seconds")}
            outcome = Outcome(job.seed, content["metrics"][job.cell.task.label], **spent)
            self.replaced.update(content["replaced"])
        job.cell.note(job, outcome)
        begins = job.scored_on == "validation" and job.cell.is_tuned
        return list(job.cell.reporting()) if begins else []
