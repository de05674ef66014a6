"""Worker processes that do jobs, whoever of them dies, hangs or is killed.

A job whose process dies is asked again once: the same death twice is the job's own. A worker that dies is replaced;
only when several die one after the other before they are ready is something wrong with all of them. A job that is
silent for much longer than its like is killed and has failed.
"""

import contextlib
import queue
import time
from collections.abc import Sequence
from typing import Any, Self

from doge_lab.engine.process import Events, Worker
from doge_lab.engine.protocol import ALIVE, DIED, DONE, EXAMINED, FAILED, LAST, LOST, READY, REPORT, STARTED, Job
from doge_lab.errors import UserError
from doge_lab.signals import Stopped, on_stop

__all__ = ["DIED", "DONE", "EXAMINED", "FAILED", "READY", "REPORT", "Pool"]

MOST_DEATHS, MOST_LOSSES = 2, 5
"""Deaths of a job's process, and of workers that had it, after which it has failed."""
MOST_STARTS = 5
"""Workers in a row that end before they are ready, after which none will be."""
UNKNOWN, LEAST, TIMES = 300.0, 45.0, 20
"""Seconds that a job may be silent: while none of its siblings is done; at least; times their longest silence."""
PROMPT = 10.0
"""Seconds in which a worker tells that its job was killed."""
LOOK = 0.5
"""Seconds between two looks at who is silent."""

Event = tuple[str, Job, dict[str, Any]]
"""Its name, the job it belongs to, and its content."""


class Pool:
    """`devices[i]` is the device of worker i. Use it as a context: on leaving, every process is ended.

    job_timeout: seconds that a job may be silent, None for as long as its siblings suggest. deaths: of jobs' processes
    and of workers that had a job.
    """

    def __init__(
        self, devices: Sequence[str], allow_import: Sequence[str] = (), job_timeout: float | None = None
    ) -> None:
        self._devices, self._allow_import, self._job_timeout = devices, allow_import, job_timeout
        self._events: Events = queue.Queue()
        self._workers: list[Worker] = []
        self._longest: dict[str, float] = {}
        self._not_started = 0
        self._looked = time.monotonic()
        self._stopped = 0
        self._open = contextlib.ExitStack()
        self.deaths = 0

    def __enter__(self) -> Self:
        self._open.enter_context(on_stop(self._stop))
        self._open.callback(self._end)
        try:
            for device in self._devices:
                self._workers.append(self._start(device))
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def idle(self) -> bool:
        return any(not worker.job for worker in self._workers)

    @property
    def running(self) -> list[Job]:
        return [worker.job for worker in self._workers if worker.job]

    def submit(self, job: Job) -> None:
        """Give `job` to an idle worker, one that is ready if there is one."""
        min((worker for worker in self._workers if not worker.job), key=lambda worker: not worker.ready).send(job)

    def wait(self) -> Event:
        """The next event; the job is empty for `ready`.

        After `died` the job is being asked again; what it said before counts for nothing.
        Raises `UserError` when no worker starts, and `Stopped` when the program is asked to end.
        """
        while True:
            worker, content = self._next()
            if self._stopped:
                raise Stopped(self._stopped)
            if worker is not None:
                worker.heard()
                if event := self._taken(worker, content):
                    return event
            self._end_silent()

    def _next(self) -> tuple[Worker | None, dict[str, Any]]:
        """What was said, if anything was for a moment; silence is counted."""
        try:
            return self._events.get(timeout=LOOK)
        except queue.Empty:
            return None, {}
        finally:
            now = time.monotonic()
            passed, self._looked = min(now - self._looked, 2 * LOOK), now  # not while this process was stopped
            for worker in self._workers:
                worker.silent += passed if worker.expected else 0.0

    def _taken(self, worker: Worker, content: dict[str, Any]) -> Event | None:
        """Note what a worker said; what there is to tell of it."""
        event, job = content["event"], worker.job
        if event == LOST:
            return self._replace(worker, content["reason"])
        if event == DIED:
            return self._died(worker, content["reason"])
        if event == READY:
            worker.ready, self._not_started = True, 0
        if event == STARTED:
            worker.longest = 0.0  # not what it waited for its worker
        if event == DONE:
            like = _siblings(job)
            self._longest[like] = max(self._longest.get(like, 0.0), worker.longest)
        if event in LAST:
            worker.job = {}
        return None if event in (STARTED, ALIVE) else (event, job, content)

    def _died(self, worker: Worker, reason: str) -> Event:
        self.deaths += 1
        job, deaths = worker.job, worker.deaths + 1
        if worker.hung or deaths == MOST_DEATHS:
            worker.job = {}
            return FAILED, job, {"reason": worker.hung or f"its process {reason}, and so again when it was repeated"}
        worker.send(job, deaths=deaths, losses=worker.losses)
        return DIED, job, {"reason": reason}

    def _replace(self, dead: Worker, reason: str) -> Event | None:
        """Start another worker in its place; what becomes of its job."""
        dead.end()
        self._not_started += not dead.ready
        if self._not_started == MOST_STARTS:
            said = f"{MOST_STARTS} worker processes in a row ended before they were ready; the last {reason}"
            raise UserError(f"{said}; what it said itself is above")
        self._workers[self._workers.index(dead)] = worker = self._start(dead.device)
        if not dead.job:
            return None
        self.deaths += dead.ready
        losses = dead.losses + dead.ready
        if dead.hung or losses == MOST_LOSSES:
            return FAILED, dead.job, {"reason": dead.hung or f"{losses} workers ended that had it; the last {reason}"}
        worker.send(dead.job, deaths=dead.deaths, losses=losses)
        return DIED, dead.job, {"reason": reason}

    def _end_silent(self) -> None:
        for worker in self._workers:
            limit = self._limit(worker)
            if not worker.expected or worker.silent <= limit:
                continue
            if worker.hung:
                worker.kill()  # it could not even tell that its job is dead
            elif worker.ready:
                worker.hung = (
                    f"nothing was heard of it for {round(limit, 1):g} s, so it was ended; --job-timeout allows more"
                )
            worker.end_job()
            worker.silent = limit - PROMPT

    def _limit(self, worker: Worker) -> float:
        if not worker.ready:
            return UNKNOWN
        if self._job_timeout is not None:
            return self._job_timeout
        longest = self._longest.get(_siblings(worker.job))
        return UNKNOWN if longest is None else max(LEAST, TIMES * longest)

    def _start(self, device: str) -> Worker:
        return Worker(device, self._allow_import, self._events)

    def _stop(self, number: int) -> None:
        """From another thread: whoever waits hears of it, and nobody works on meanwhile."""
        self._stopped = number
        for worker in list(self._workers):
            worker.kill()
        self._events.put((None, {}))

    def _end(self) -> None:
        for worker in self._workers:
            worker.end()


def _siblings(job: Job) -> str:
    return str(job.get("siblings", job.get("kind")))
