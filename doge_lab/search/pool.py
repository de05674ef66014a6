"""Worker processes and the pipes to them. A worker that dies is replaced; its job comes back as an event."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

READY, REPORT, DONE, FAILED, DIED = "ready", "report", "done", "failed", "died"


class Pool:
    """`devices[i]` is the device of worker i. Use it as a context: on leaving, every worker is ended."""

    def __init__(self, devices: Sequence[str], allow_import: Sequence[str] = ()) -> None:
        self._allow_import = allow_import
        self._events: queue.Queue[tuple[int, subprocess.Popen[str], dict[str, Any]]] = queue.Queue()
        self._devices = list(devices)
        self._workers: list[subprocess.Popen[str]] = []
        self._jobs: dict[int, Mapping[str, Any]] = {}

    def __enter__(self) -> Self:
        self._workers = [self._start(index) for index in range(len(self._devices))]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()  # a half-trained job is worth nothing without its coordinator; finished runs are on disk
        for worker in self._workers:
            worker.wait()

    @property
    def idle(self) -> bool:
        return len(self._jobs) < len(self._workers)

    @property
    def running(self) -> list[Mapping[str, Any]]:
        return list(self._jobs.values())

    def submit(self, job: Mapping[str, Any]) -> None:
        """Give `job` to an idle worker."""
        index = next(index for index in range(len(self._workers)) if index not in self._jobs)
        self._jobs[index] = job
        with contextlib.suppress(OSError):  # the worker is dead: its reader reports that, with this job
            self._send(index, job)

    def wait(self) -> tuple[str, Mapping[str, Any], dict[str, Any]]:
        """The next event: its name, the job it belongs to (empty for `ready`), and its content."""
        while True:
            index, worker, content = self._events.get()
            if worker is not self._workers[index]:
                continue
            job = self._jobs.get(index, {})
            if content["event"] in (DONE, FAILED, DIED):
                self._jobs.pop(index, None)
            if content["event"] == DIED:
                self._workers[index] = self._start(index)
            return content["event"], job, content

    def _send(self, index: int, job: Mapping[str, Any]) -> None:
        pipe = self._workers[index].stdin
        assert pipe is not None
        pipe.write(json.dumps(job) + "\n")
        pipe.flush()

    def _start(self, index: int) -> subprocess.Popen[str]:
        device = self._devices[index]
        consent = [word for package in self._allow_import for word in ("--allow-import", package)]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if device == "cpu" else {}
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "doge_lab.search.worker", "--device", device, *consent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        threading.Thread(target=self._read, args=(index, worker), daemon=True).start()
        return worker

    def _read(self, index: int, worker: subprocess.Popen[str]) -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            self._events.put((index, worker, json.loads(line)))
        code = worker.wait()
        self._events.put((index, worker, {"event": DIED, "reason": f"the worker process ended with code {code}"}))
