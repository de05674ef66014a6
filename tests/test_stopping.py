"""However a program that has workers is ended: one line, the exit code of the signal, and nothing left alive."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_worker import gone, written

PROGRAM = """
import sys, time
from doge_lab import signals
from doge_lab.engine import process
from doge_lab.engine.pool import Pool
process.PROGRAM = "fake_worker"
signals.take_over()
try:
    with Pool(["cpu", "cpu"]) as pool:
        pool.submit({"job": 0, "kind": "fake", "do": sys.argv[1]})
        while True:
            pool.wait()
except KeyboardInterrupt as stopped:
    signals.tell(stopped, "kept")
    exec(sys.argv[2])
finally:
    signals.end_if_stopped()
"""
JOB = """os.chdir({folder!r})
name = "child" if os.fork() else "grandchild"
pathlib.Path(name).write_text(str(os.getpid()))
time.sleep(60)"""


def start(*words):
    """A process of its own; the tests may be a background job, or under nohup, where signals would be ignored."""

    def heard():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, env=path, preexec_fn=heard)


def at_work(folder, then="pass"):
    """A program whose worker is at work, and all that it started."""
    program = start("-c", PROGRAM, JOB.format(folder=str(folder)), then)
    child, grandchild = written(folder / "child"), written(folder / "grandchild")
    worker = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    return program, (child, grandchild, worker)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_when_the_coordinator_ends_nothing_is_left_alive(tmp_path, number):
    program, started = at_work(tmp_path)
    program.send_signal(number)
    _, errors = program.communicate(timeout=10)
    assert all(gone(pid) for pid in started)
    what = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    expected = (-9, "") if number == signal.SIGKILL else (128 + number, f"doge-lab: {what}: kept\n")
    assert (program.returncode, errors) == expected


@pytest.mark.parametrize("then", ["time.sleep(60)", "raise OSError('the terminal is gone')"])
def test_a_second_signal_ends_at_once_and_trouble_while_ending_is_not_told(tmp_path, then):
    program, started = at_work(tmp_path, then)
    for _ in range(3):
        program.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    _, errors = program.communicate(timeout=5)
    assert (program.returncode, errors) == (143, "doge-lab: ended by SIGTERM: kept\n")
    assert all(gone(pid) for pid in started)


@pytest.mark.parametrize("seconds", [0.1, 0.4, 1.0])
def test_a_signal_in_the_first_seconds_is_one_line(tmp_path, seconds):
    space = Path(__file__).parent.parent / "search_spaces" / "tiny.yaml"
    for number, code in ((signal.SIGINT, 130), (signal.SIGHUP, 129)):
        program = start("-m", "doge_lab", "search", str(space), "--out", str(tmp_path / "out"), "--workers", "2")
        hears = 1 << signal.SIGHUP - 1  # the last that it takes over; of SIGINT Python hears by itself
        while not int(Path(f"/proc/{program.pid}/status").read_text().split("SigCgt:")[1].split()[0], 16) & hears:
            time.sleep(0.01)  # Python itself is starting
        time.sleep(seconds)
        program.send_signal(number)
        program.send_signal(number)
        _, errors = program.communicate(timeout=10)
        assert (program.returncode, errors.count("\n")) == (code, 1), errors
