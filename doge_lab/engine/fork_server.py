"""A process of its own for every job, so that nothing a job leaves behind can reach the next one.

The server has imported what jobs need, and only waits: it never runs a block, starts no thread, touches no GPU. For
each job it forks a child, which begins as a fresh process would, within milliseconds. The server stands between the
child and the coordinator: it passes on whole lines that are answers, and a bounded part of what is printed. When the
job has answered or died, everything that the child started is killed; when the coordinator is gone, all is.
"""

import contextlib
import ctypes
import gc
import json
import os
import secrets
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from doge_lab.engine.protocol import DIED, LAST, OF_SERVERS, READY, STARTED, Job, Say, ending, read, write

PRINTED = 64 * 1024
"""Bytes that one job may print."""
LINE = 4 * 1024**2
"""Bytes of the longest answer."""
CHUNK = 64 * 1024
"""Bytes read at once: all that a pipe holds when its writer has ended."""
LOOK = 0.2
"""Seconds between two looks at whether a silent child is still alive."""
PR_SET_PDEATHSIG = 1

Work = Callable[[Job, Say], tuple[str, dict[str, Any]]]
"""Does a job; returns its last event and what belongs to it. Never raises."""


def serve(work: Work, *, jobs: int, answers: int) -> None:
    """Fork a child for each job that comes through the pipe `jobs`, one after the other, until the pipe ends.

    Raises `BrokenPipeError` when nobody reads the answers any more.
    """
    incoming = _Pipe(jobs)
    if not hasattr(os, "fork"):
        _serve_once(work, incoming, answers)
        return
    _at_parents_end(0)  # from here on it sees that its input has ended, and ends its child first
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.collect()
    gc.freeze()  # the collector would write to, and so copy, every page that children share with the server
    write(answers, READY)
    while incoming.open:
        for line in incoming.lines():
            _do(json.loads(line), work, incoming, answers)


def die_with(parent: int) -> None:
    """Let the system end this process when its parent ends, where it can (Linux)."""
    if sys.platform == "linux":
        _at_parents_end(signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os._exit(1)


def _at_parents_end(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _serve_once(work: Work, jobs: "_Pipe", answers: int) -> None:
    """Without fork (Windows) this process does one job and ends; the pool starts another in its place."""
    write(answers, READY)
    job: Job = {}
    while jobs.open and not job:
        for line in jobs.lines():
            job = json.loads(line)
    if job:

        def say(event: str, **facts: Any) -> None:
            write(answers, event, **{**facts, "job": job["job"]})

        event, facts = work(job, say)
        say(event, **facts)


def _do(job: Job, work: Work, incoming: "_Pipe", answers: int) -> None:
    child = _Child(job, work, closing=(incoming.number, answers))
    try:
        write(answers, STARTED, job=job["job"], process=child.pid)
        while incoming.open and not child.answered and child.code is None:
            if incoming.number in child.wait(incoming.number):
                incoming.take()  # nothing but its end can come: the coordinator is gone
            for content in child.news():
                write(answers, content.pop("event"), **content)
    finally:
        child.end()
    if child.code is not None and not child.answered:
        write(answers, DIED, job=job["job"], reason=ending(child.code))


class _Pipe:
    """What comes through a pipe. A line longer than `LINE` is lost."""

    def __init__(self, number: int) -> None:
        self.number, self.open = number, True
        self._rest = b""

    def take(self) -> bytes:
        """Read once; empty at the pipe's end, and while nothing has come through one that does not block."""
        try:
            came = os.read(self.number, CHUNK)
        except BlockingIOError:
            return b""
        self.open = bool(came)
        return came

    def lines(self) -> list[bytes]:
        """The lines that are whole after reading once."""
        *whole, rest = (self._rest + self.take()).split(b"\n")
        self._rest = rest if len(rest) <= LINE else b""
        return whole


class _Child:
    """A forked process that does one job, in a session of its own. code: how it ended, None while it runs."""

    def __init__(self, job: Job, work: Work, closing: tuple[int, ...]) -> None:
        self.job, self.answered = job, False
        self.code: int | None = None
        self._may_print = PRINTED
        said, say = os.pipe()
        printed, output = os.pipe()
        server, self._seal = os.getpid(), secrets.token_hex(8)
        self.pid = os.fork()
        if not self.pid:
            _close(server, output, closing=(*closing, said, printed))
            _work_alone(job, work, say, seal=self._seal)
        for pipe in (say, output):
            os.close(pipe)
        for pipe in (said, printed):
            os.set_blocking(pipe, False)
        self._said, self._printed = _Pipe(said), _Pipe(printed)

    def wait(self, other: int) -> list[int]:
        """Sleep until something comes through a pipe, or it is time for a look; the pipes where something came."""
        pipes = [pipe.number for pipe in (self._said, self._printed) if pipe.open]
        return select.select([other, *pipes], [], [], LOOK)[0]

    def news(self) -> Iterator[dict[str, Any]]:
        """What it has answered, up to its last answer; what it has printed is passed on meanwhile."""
        ended, status = os.waitpid(self.pid, os.WNOHANG)  # before reading: one that has ended has said everything
        if ended:
            self.code = os.waitstatus_to_exitcode(status)
        self._pass_on(self._printed.take())
        for line in self._said.lines():
            content = read(line)
            if content and content.pop("seal", "") == self._seal and content["event"] not in OF_SERVERS:
                self.answered = content["event"] in LAST
                yield content
            if self.answered:
                return

    def end(self) -> None:
        """Kill whatever the job left running."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for pipe in (self._said, self._printed):
            os.close(pipe.number)

    def _pass_on(self, printed: bytes) -> None:
        kept, rest = printed[: self._may_print], printed[self._may_print :]
        if rest and self._may_print:
            kept += f"\n(job {self.job['job']} prints more than {PRINTED // 1024} KiB; the rest is left out)\n".encode()
        self._may_print = max(0, self._may_print - len(printed))
        with contextlib.suppress(OSError):
            os.write(2, kept)


def _close(server: int, output: int, *, closing: tuple[int, ...]) -> None:
    """Cut a child off from all that is the server's: its session, its input, and the pipes that no block may use."""
    os.setsid()
    die_with(server)
    for pipe in closing:
        os.close(pipe)
    for pipe, standard in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(pipe, standard)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the coordinator was started with


def _work_alone(job: Job, work: Work, say: int, *, seal: str) -> NoReturn:
    """Do the job; never returns. What is not sealed was written by a block, to a pipe that it does not know."""
    own = os.getpid()

    def tell(event: str, **facts: Any) -> None:
        if os.getpid() != own:
            os._exit(1)  # a copy that a block made, which came back from it
        write(say, event, **{**facts, "job": job["job"], "seal": seal})

    try:
        event, facts = work(job, tell)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        tell(event, **facts)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
