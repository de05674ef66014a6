"""A worker process as the coordinator sees it: a pipe for its job, a thread that hears its answers, and its end."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from doge_lab.engine.protocol import DIED, LAST, LOST, STARTED, Job, ending, read

Events = queue.Queue[tuple["Worker | None", dict[str, Any]]]

PROGRAM = "doge_lab.engine"
_FORKABLE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""A server that forks has one thread, and does not touch a GPU even to see whether there is one."""


class Worker:
    """One process, and a thread that puts what it says into `events`; the last thing is `lost`, when it has ended.

    silent: seconds in which nothing was heard of it. longest: the longest such time during its job.
    """

    def __init__(self, device: str, allow_import: Sequence[str], events: Events) -> None:
        consent = [word for package in allow_import for word in ("--allow-import", package)]
        self.device = device
        self.ready = False
        self.job: Job = {}
        self.deaths = self.losses = 0
        self.silent = self.longest = 0.0
        self.hung = ""
        self._events = events
        self._child = 0
        # -P: a file called like one of ours in the current folder must not hide it. A session of its own: what the
        # terminal sends is for the coordinator.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", PROGRAM, str(os.getpid()), "--device", device, *consent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                **_FORKABLE,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def expected(self) -> bool:
        """Whether there is something that it should say."""
        return bool(self.job) or not self.ready

    def send(self, job: Job, *, deaths: int = 0, losses: int = 0) -> None:
        """Give it a job; one that was asked before brings how often it has died, and lost its worker."""
        self.job, self.deaths, self.losses = job, deaths, losses
        self.silent = self.longest = 0.0
        self.hung = ""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a dead worker is reported by its reader, with this job
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()

    def heard(self) -> None:
        self.longest, self.silent = max(self.longest, self.silent), 0.0

    def end_job(self) -> None:
        """Kill what works for it, or itself where that is the same."""
        if self._child:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child, signal.SIGKILL)
        else:
            self._process.kill()

    def kill(self) -> None:
        """Kill it and what works for it: a half-trained job is worth nothing without its coordinator."""
        self._process.kill()
        self.end_job()

    def end(self) -> None:
        """Kill it, and let go of its pipes."""
        self.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # a job that was never taken is still in the buffer
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if content := read(line):
                if content["event"] == STARTED:
                    self._child = content["process"]
                elif content["event"] in (*LAST, DIED):
                    self._child = 0  # the number may be another's soon
                self._events.put((self, content))
        self._events.put((self, {"event": LOST, "reason": ending(self._process.wait())}))
