"""Searches with real processes: whoever dies, what is finished is kept and the rest goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from tiny_search import TINY, InProcess, search, tiny

from doge_lab import config
from doge_lab.engine.pool import DONE, FAILED, Pool
from doge_lab.errors import UserError
from doge_lab.record import read_record
from doge_lab.search import asking, coordinator
from doge_lab.search.config import parse_space
from doge_lab.search.coordinator import Coordinator
from doge_lab.search.front import dominates
from doge_lab.search.study import read_results
from doge_lab.search.vetting import Vetting


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search with two workers, from the command line: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    words = ["search", TINY, "--workers", 2, "--out", out, "--seed", 0]
    ran = subprocess.run([sys.executable, "-m", "doge_lab", *map(str, words)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return out, ran.stdout


@pytest.mark.slow
def test_a_search_writes_everything_it_promises(whole):
    out, printed = whole
    front = json.loads((out / "front.json").read_text())
    assert front
    for entry in front:
        assert {"trial", "values", "config"} <= set(entry)
        assert set(entry["values"]) == {"cache_bytes", "capacity.bits", "recall.bits"}
    assert "<html" in (out / "report.html").read_text()
    assert (out / "study.db").exists()
    assert "report.html" in printed


@pytest.mark.slow
def test_a_whole_search_with_two_workers(whole):
    out, _ = whole
    results = read_results(out)
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
    records = [read_record(folder)[-1] for folder in (out / "runs").iterdir()]
    assert len(records) == 2 * (4 + 3 * len(results.front))
    assert all(record["event"] == "end" for record in records)


@pytest.mark.slow
def test_a_trial_that_ends_its_process_fails_alone_and_says_how(tmp_path, strange):
    reasons = {
        "Dies": "its process was killed (signal 9), perhaps out of memory, and so again when it was repeated",
        "DiesOnce": "",
        "Prints": "",
        "Interrupts": "KeyboardInterrupt",
        "Raises": "RuntimeError: a block's own trouble",
    }
    names = {strange(name)["type"]: reason for name, reason in reasons.items()}
    blocks = [strange(name, where=str(tmp_path / "mark")) for name in reasons]
    written = tiny(state=blocks, trials=6, confirm_seeds=0)
    search = Coordinator(parse_space(written, "test"), tmp_path / "out", ["cpu"], seed=0, allow_import=["strange"])
    trials = search.run().trials
    types = [trial.config["model"]["layers"][0]["state"]["type"] for trial in trials]
    assert set(types) == set(names)
    assert [trial.reason or "" for trial in trials] == [names[name] for name in types]
    assert [trial.state for trial in trials] == ["failed" if names[name] else "complete" for name in types]


@pytest.mark.slow
def test_no_block_is_built_in_the_process_that_owns_the_study(tmp_path, strange, monkeypatch):
    notes = tmp_path / "notes"
    blocks = [strange("NotesWhereBuilt", where=str(notes)), strange("EndsWhenBuilt")]
    monkeypatch.setattr(Vetting, "jobs", lambda self: iter(()))  # so that a candidate is the first to be built
    space = parse_space(tiny(state=blocks, trials=2, confirm_seeds=0), "test")
    results = Coordinator(space, tmp_path / "out", ["cpu"], seed=0, allow_import=["strange"]).run()
    reasons = {trial.state: trial.reason for trial in results.trials}
    said = "cannot be built: its process ended itself with code 3, and so again when it was repeated"
    assert reasons == {"complete": "", "rejected": said}
    assert str(os.getpid()) not in notes.read_text().splitlines()


DEEDS = """
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.set_autocast_dtype('cpu', torch.bfloat16); torch.set_autocast_enabled('cpu', True)
torch.nn.functional.cross_entropy = lambda a, b, **_: a.square().mean()
torch.nn.modules.module.register_module_forward_hook(lambda module, given, y: y * 1.01 if hasattr(y, 'mul') else None)
os.chdir('/')
torch.set_num_threads(7)
import json; json.dumps = lambda *words, **more: '{}'
signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)
import doge_lab.train; doge_lab.train.CURVE_POINTS = 3; doge_lab.train.lr_at = lambda step, config: 1.0
torch.manual_seed = lambda seed: torch.default_generator; import numpy; numpy.random.default_rng = None
torch.nn.init.normal_ = lambda t, *words, **more: t
torch.set_flush_denormal(True); torch.use_deterministic_algorithms(True)
import sys; sys.modules['blocks.state.mlp'] = None
"""


@pytest.mark.slow
def test_a_good_candidate_is_bitwise_the_same_after_bad_neighbours(tmp_path, strange):
    deeds = DEEDS.strip().splitlines()
    space = {name: part for name, part in tiny().items() if name != "search"}

    def job(number, folder, state):
        space["model"]["layers"] = [{"sequence": {"type": "attention", "n_heads": 2}, "state": state}]
        run = config.parse(space).resolved().dump()
        return {"job": number, "kind": "train", "run": run, "folder": str(tmp_path / folder), "scored_on": "validation"}

    good = {"type": "mlp"}
    bad = [strange("Does", where=str(tmp_path / f"did-{n}"), deed=deed) for n, deed in enumerate(deeds)]
    jobs = [job(number, str(number), state) for number, state in enumerate([good, *bad, good])]
    ends = {}
    with Pool(["cpu"], allow_import=["strange"]) as pool:
        while jobs or pool.running:
            if jobs and pool.idle:
                pool.submit(jobs.pop(0))
            event, done, content = pool.wait()
            if event in (DONE, FAILED):
                ends[done["job"]] = event, content.get("metrics", content.get("reason"))
    assert all((tmp_path / f"did-{n}").exists() for n in range(len(deeds)))
    assert ends[0][0] == DONE
    assert ends[0] == ends[len(deeds) + 1]
    assert sum(end != ends[0] for end in ends.values()) == len(deeds)


SHORT = ["--set", "search.confirm_seeds=1"]


def command(out, *words):
    return [sys.executable, "-m", "doge_lab", "search", str(TINY), "--out", str(out), "--workers", "1", *SHORT, *words]


def wait_for_trials(process, out, count):
    """Reads the study from its first moment on, as somebody who looks at a search that has just begun."""
    while process.poll() is None:
        if (out / "study.db").exists():
            done = [trial for trial in read_results(out).trials if trial.state == "complete"]
            if len(done) >= count:
                return done
        time.sleep(0.25)
    raise AssertionError(f"the search ended by itself: {process.stderr.read()}")


def ended_by(how, out, count, *words):
    """The trials done when a search was ended, after `count`, and what it wrote to standard error."""
    # A shell's background jobs ignore ctrl-C, and so would what they start: these tests may be one.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    words = command(out, "--trials", "200", *words)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    try:
        done = wait_for_trials(process, out, count)
    finally:
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    return done, errors


@pytest.mark.slow
def test_a_search_that_is_ended_keeps_its_trials_and_goes_on(tmp_path):
    before, _ = ended_by(signal.SIGKILL, tmp_path, 2)
    assert not (tmp_path / "report.html").exists()
    more, errors = ended_by(signal.SIGINT, tmp_path, len(before) + 1, "--resume")
    assert errors.endswith("doge-lab: interrupted: what is finished is kept; --resume continues\n")
    assert "Traceback" not in errors
    assert (tmp_path / "report.html").exists()
    kept = len([trial for trial in read_results(tmp_path).trials if trial.state == "complete"])
    subprocess.run(command(tmp_path, "--trials", str(kept + 1), "--resume"), check=True, timeout=300)
    after = read_results(tmp_path).trials
    for earlier in (before, more):
        assert [trial.values for trial in after[: len(earlier)]] == [trial.values for trial in earlier]
    assert sum(trial.state == "complete" for trial in after) == kept + 1
    assert not any(trial.state == "running" for trial in after)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(asking.Asker, "tell", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot be written \(.*No space left on device\); what is finished is kept"):
        search(tiny(trials=2, confirm_seeds=0), tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(coordinator, "Pool", InProcess)
    results = search(tiny(trials=2, confirm_seeds=0), tmp_path, resume=True)
    assert [trial.state for trial in results.trials] == ["complete"] * 2


def test_a_trial_that_was_never_screened_is_screened_on_resume_under_its_own_number(tmp_path, in_process, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(asking, "admit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            search(tiny(trials=2, confirm_seeds=0), tmp_path)
    assert [trial.state for trial in read_results(tmp_path).trials] == ["running"]
    results = search(tiny(trials=2, confirm_seeds=0), tmp_path, resume=True)
    assert [(trial.number, trial.state) for trial in results.trials] == [(0, "complete"), (1, "complete")]
