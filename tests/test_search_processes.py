"""Searches with real processes: whoever dies, what is finished is kept and the rest goes on."""

import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from tiny_search import TINY, InProcess, search, tiny

from doge_lab.errors import UserError
from doge_lab.record import read_record
from doge_lab.search import coordinator
from doge_lab.search.config import load_space, parse_space
from doge_lab.search.coordinator import Coordinator
from doge_lab.search.front import dominates
from doge_lab.search.pool import Pool
from doge_lab.search.study import read_results


@pytest.mark.slow
def test_a_whole_search_with_two_workers(tmp_path):
    results = Coordinator(load_space(TINY), tmp_path, ["cpu", "cpu"]).run()
    assert [trial.state for trial in results.trials] == ["complete"] * 4
    assert results.context == 12
    for trial in results.trials:
        assert trial.values["cache_bytes"] == trial.cost["cache_bytes"]
        assert trial.values["recall.bits"] == trial.metrics["recall"]["bits"]
    everyone = [candidate.values for candidate in results.candidates]
    for candidate in results.front:
        assert not any(dominates(other, candidate.values, results.objectives) for other in everyone)
        assert len(candidate.confirmed) == 3
        assert candidate.confirmed[0] != candidate.values
    records = [read_record(folder)[-1] for folder in (tmp_path / "runs").iterdir()]
    assert len(records) == 2 * (4 + 3 * len(results.front))
    assert all(record["event"] == "end" for record in records)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "state", "kills"), [("DiesOnce", "complete", 1), ("Dies", "failed", 3), ("Prints", "complete", 0)]
)
def test_a_worker_that_dies_is_replaced_and_its_trial_asked_again(tmp_path, strange, monkeypatch, name, state, kills):
    pools = []
    monkeypatch.setattr(coordinator, "Pool", lambda *words: pools.append(Pool(*words)) or pools[-1])
    written = tiny(state=[strange(name, where=str(tmp_path / "mark"))], trials=1, confirm_seeds=0)
    search = Coordinator(parse_space(written, "test"), tmp_path / "out", ["cpu"], allow_import=["strange"])
    (trial,) = search.run().trials
    assert trial.state == state
    assert pools[0].deaths == kills
    if state == "failed":
        assert trial.reason == "the worker process ended with code -9"


def command(out, *words):
    return [sys.executable, "-m", "doge_lab", "search", str(TINY), "--out", str(out), "--workers", "1", *words]


def wait_for_trials(process, out, count):
    """Reads the study from its first moment on, as somebody who looks at a search that has just begun."""
    while process.poll() is None:
        if (out / "study.db").exists():
            done = [trial for trial in read_results(out).trials if trial.state == "complete"]
            if len(done) >= count:
                return done
        time.sleep(0.02)
    raise AssertionError(f"the search ended by itself: {process.stderr.read()}")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_search_that_is_ended_keeps_its_trials_and_goes_on(tmp_path, how):
    out = tmp_path / "out"
    # A shell's background jobs ignore ctrl-C, and so would what they start: these tests may be one.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command(out, "--trials", "200"), stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    try:
        before = wait_for_trials(process, out, 2)
    finally:
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert "Traceback" not in errors
    assert (out / "report.html").exists() == (how == signal.SIGINT)
    kept = len([trial for trial in read_results(out).trials if trial.state == "complete"])
    subprocess.run(command(out, "--trials", str(kept + 2), "--resume"), check=True, timeout=300)
    after = read_results(out).trials
    assert [trial.values for trial in after[: len(before)]] == [trial.values for trial in before]
    assert sum(trial.state == "complete" for trial in after) == kept + 2
    assert not any(trial.state == "running" for trial in after)
    assert (out / "report.html").exists()


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(Coordinator, "_tell", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot be written \(.*No space left on device\); what is finished is kept"):
        search(tiny(trials=2, confirm_seeds=0), tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(coordinator, "Pool", InProcess)
    results = search(tiny(trials=2, confirm_seeds=0), tmp_path, resume=True)
    assert [trial.state for trial in results.trials] == ["complete"] * 2
