"""The one loop that hands out jobs: a policy says what to do next and is told what came of it; a pool does it.

Searching, checking, looking again, confirming and comparing are policies; processes of this machine are a pool.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from doge_lab.engine.protocol import LAST, Job

Answer = Mapping[str, Any]
"""What a job came to: `event`, which is `done` or `failed`, and what belongs to it."""
Heard = Callable[[str, Job, Answer], None]
"""Called with every event of a job, its content likewise."""


class Policy(Protocol):
    """What is to be done, one job after the other."""

    def next(self, running: int) -> Job | None:
        """The job to begin while `running` others are being done; None when there is none at the moment."""

    def tell(self, job: Job, answer: Answer) -> None:
        """Take what a job came to."""


class Pool(Protocol):
    """Who does jobs. Everything that waits for them waits in `wait`."""

    @property
    def idle(self) -> bool:
        """Whether it would begin another job at once."""

    @property
    def running(self) -> list[Job]:
        """The jobs being done."""

    def submit(self, job: Job) -> None:
        """Begin a job."""

    def wait(self) -> tuple[str, Job, dict[str, Any]]:
        """The next event, the job that it is about, and its content."""


def drive(policy: Policy, pool: Pool, heard: Heard = lambda event, job, content: None) -> None:
    """Do the policy's jobs until it has none and none is running. Passes on whatever the policy or the pool raises."""
    while True:
        while pool.idle and (job := policy.next(len(pool.running))) is not None:
            pool.submit(job)
            heard("submitted", job, {})
        if not pool.running:
            return
        event, job, content = pool.wait()
        heard(event, job, content)
        if event in LAST:
            policy.tell(job, {**content, "event": event})


class Listed:
    """The policy of a list: its jobs in their order, each answer to `keep`."""

    def __init__(self, jobs: Iterable[Job], keep: Callable[[Job, Answer], None]) -> None:
        self._waiting = deque(jobs)
        self.tell = keep

    def next(self, running: int) -> Job | None:
        return self._waiting.popleft() if self._waiting else None
