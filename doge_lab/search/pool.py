"""Worker processes and the pipes to them. A worker that dies is replaced and its job asked again, at most twice."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

from doge_lab.errors import UserError

READY, REPORT, EXAMINED, DONE, FAILED, DIED = "ready", "report", "examined", "done", "failed", "died"
ATTEMPTS = 3
"""After so many workers died of a job it has failed."""


class _Worker:
    """One process, and a thread that puts what it says into `events`."""

    def __init__(self, device: str, allow_import: Sequence[str], events: queue.Queue[tuple["_Worker", dict[str, Any]]]):
        consent = [word for package in allow_import for word in ("--allow-import", package)]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if device == "cpu" else {}
        self.device = device
        self.ready = False
        self.job: Mapping[str, Any] = {}
        self.attempt = 0
        self._events = events
        # -P: a file called like one of ours in the current folder must not hide it.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "doge_lab.search.worker", "--device", device, *consent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, job: Mapping[str, Any], attempt: int) -> None:
        assert self._process.stdin is not None
        self.job, self.attempt = job, attempt
        with contextlib.suppress(OSError):  # a dead worker is reported by its reader, with this job
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """Kill it: a half-trained job is worth nothing without its coordinator, and finished runs are on disk."""
        self._process.kill()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        for line in self._process.stdout:
            self._events.put((self, json.loads(line)))
        code = self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._events.put((self, {"event": DIED, "reason": f"the worker process ended with code {code}"}))


class Pool:
    """`devices[i]` is the device of worker i. Use it as a context: on leaving, every worker is ended.

    deaths: workers that died with a job.
    """

    def __init__(self, devices: Sequence[str], allow_import: Sequence[str] = ()) -> None:
        self._devices, self._allow_import = devices, allow_import
        self._events: queue.Queue[tuple[_Worker, dict[str, Any]]] = queue.Queue()
        self._workers: list[_Worker] = []
        self.deaths = 0

    def __enter__(self) -> Self:
        self._workers = [self._start(device) for device in self._devices]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    @property
    def idle(self) -> bool:
        return any(not worker.job for worker in self._workers)

    @property
    def running(self) -> list[Mapping[str, Any]]:
        return [worker.job for worker in self._workers if worker.job]

    def submit(self, job: Mapping[str, Any]) -> None:
        """Give `job` to an idle worker."""
        next(worker for worker in self._workers if not worker.job).send(job, 1)

    def wait(self) -> tuple[str, Mapping[str, Any], dict[str, Any]]:
        """The next event: its name, the job it belongs to (empty for `ready`), and its content.

        After `died` the job is being asked again; what it said before counts for nothing.
        Raises `UserError` when a worker ends before it is ready: the next one would end as well.
        """
        worker, content = self._events.get()
        event, job = content["event"], worker.job
        if event == READY:
            worker.ready = True
        elif event == DIED:
            if not worker.ready:
                raise UserError(f"{content['reason']} before it was ready; its own message is above", "worker")
            event = self._replace(worker)
        if event in (DONE, FAILED):
            worker.job = {}
        return event, job, content

    def _replace(self, dead: _Worker) -> str:
        """Start another worker in its place; the event that this is for its job."""
        self._workers[self._workers.index(dead)] = worker = self._start(dead.device)
        self.deaths += bool(dead.job)
        if dead.attempt >= ATTEMPTS:
            return FAILED
        if dead.job:
            worker.send(dead.job, dead.attempt + 1)
        return DIED

    def _start(self, device: str) -> _Worker:
        return _Worker(device, self._allow_import, self._events)
