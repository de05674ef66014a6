"""A worker that starts at once, for tests of who dies when: its jobs are Python to be executed."""

import os
import sys
import time
from pathlib import Path

from doge_lab.engine.fork_server import die_with, serve

HELPERS = """
import ctypes, json, os, pathlib, signal, sys, time
def once(mark):
    '''True the first time.'''
    path = pathlib.Path(mark)
    return not path.exists() and (path.touch() or True)
"""


def work(job, say):
    names = {"say": say}
    exec(HELPERS + job["do"], names)
    return "done", {"said": names.get("said"), "worker": os.getppid()}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid, seconds=2.0):
    """Whether it ends within that time."""
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def written(path):
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return int(path.read_text())


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    answers = os.dup(1)
    os.dup2(2, 1)
    time.sleep(float(os.environ.get("FAKE_START", "0")))
    if os.environ.get("FAKE_END"):
        sys.exit(int(os.environ["FAKE_END"]))
    if os.environ.get("FAKE_NO_FORK"):
        del os.fork
    serve(work, jobs=0, answers=answers)
