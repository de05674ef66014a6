"""What the coordinator, its servers and their jobs say to one another: a line of JSON each. Nothing is pickled.

    job     {"job": 7, "kind": "train", "run": {...}, "folder": "...", "scored_on": "validation"}
            {"job": -1, "kind": "check", "case": {...}}
            {"job": 7, "kind": "screen", "run": {...}}
    answer  {"event": "report", "job": 7, "task": "recall", "step": 120, "steps": 300}
            {"event": "examined", "job": 7, "case": {...}, "results": [...]}
            {"event": "alive", "job": 7}                                               it goes on; nothing else to say
            {"event": "done", "job": 7, "metrics": {...}, "sources": {...}, "replaced": [...],
             "seconds": 8.1, "cpu_seconds": 8.0}
            {"event": "done", "job": -1, "results": [...]}                             of the checks
            {"event": "done", "job": 7, "run": {...}, "cost": {...}}    or "refused": "..."    of screening
            {"event": "failed", "job": 7, "reason": "..."}
    server  {"event": "ready"}      {"event": "started", "job": 7, "process": 4711}
            {"event": "died", "job": 7, "reason": "..."}          how the job's process ended
            {"event": "lost", "reason": "..."}                    of the server itself

A job that trains may name `cases`: they are examined first, and one that fails fails the job. Jobs that name the
same `siblings` (without: jobs of one kind) are alike: how long one is silent says how long another may be.
"""

import json
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

READY, STARTED, DIED, LOST = "ready", "started", "died", "lost"
REPORT, EXAMINED, ALIVE, DONE, FAILED = "report", "examined", "alive", "done", "failed"
OF_SERVERS, LAST = (READY, STARTED, DIED, LOST), (DONE, FAILED)
"""Events that no job may tell; events after which it has nothing more to say."""

Job = Mapping[str, Any]
Say = Callable[..., None]
"""`say(event, **facts)`: what a job tells while it runs."""


def write(pipe: int, event: str, /, **facts: Any) -> None:
    """Write one line. Raises `BrokenPipeError` when nobody reads any more."""
    line = json.dumps({"event": event, **facts}).encode() + b"\n"
    while line:
        line = line[os.write(pipe, line) :]


def read(line: bytes) -> dict[str, Any] | None:
    """What an answer says; None when it is none, such as a line torn by a kill."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("event"), str) else None


def ending(code: int) -> str:
    """How a process ended, after "its process"; `code` is minus the signal that ended it."""
    if code >= 0:
        return f"ended itself with code {code}"
    if code == -9:
        return "was killed (signal 9), perhaps out of memory"
    names = {each.value: each.name for each in signal.Signals}
    return f"was ended by signal {-code} ({names.get(-code, 'unknown')})"
