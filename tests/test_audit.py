"""No model stands on a front whose trained weights were not looked at again; who is struck stays struck."""

import json
from pathlib import Path

import pytest
from broken import whole
from tiny_search import InProcess, search, tiny

from doge_lab import config, registry
from doge_lab.engine import auditor
from doge_lab.engine.seeds import derived
from doge_lab.objective import evaluate
from doge_lab.record import read_record
from doge_lab.report import write_report
from doge_lab.report.page import page
from doge_lab.report.pairs import warnings
from doge_lab.run import BreaksContract
from doge_lab.search.study import read_results
from doge_lab.stored import WEIGHTS
from doge_lab.train import save_tensors


@pytest.fixture(autouse=True)
def _whole_models_alone(monkeypatch, in_process):
    """What the checks of single blocks find is another test's."""
    monkeypatch.setattr(registry, "_allowed_packages", {"broken"})
    monkeypatch.setattr("doge_lab.engine.jobs.examine", lambda case, **_: [])


@pytest.fixture
def audits(monkeypatch):
    """The runs that are looked at again."""
    seen, audit = [], auditor.audit
    monkeypatch.setattr(
        "doge_lab.engine.jobs.audit", lambda run, *args, **how: seen.append(run) or audit(run, *args, **how)
    )
    return seen


def named(block):
    return f"{block.__module__}:{block.__name__}"


def sequences(*blocks, **options):
    """A space over sequence blocks in two layers."""
    written = tiny(confirm_seeds=0, trials=3, **options)
    choice = [{"type": named(block)} for block in blocks]
    written["model"]["layers"] = [{"repeat": 2, "sequence": {"choice": choice}, "state": "none"}]
    return written


def block_of(trial):
    return trial.config["model"]["layers"][0]["sequence"]["type"].rpartition(":")[2]


def test_a_trained_model_that_leaks_fails_its_trial(tmp_path):
    results = search(sequences(whole.LeaksInALayer, whole.Decay), tmp_path)
    states = {block_of(trial): trial.state for trial in results.trials}
    assert states == {"LeaksInALayer": "failed", "Decay": "complete"}
    failed = next(trial for trial in results.trials if trial.state == "failed")
    assert failed.reason.startswith("the trained model fails later_tokens: tokens 1 and later, changed, change earlier")
    assert {block_of(candidate.trials[0]) for candidate in results.front} == {"Decay"}


def test_a_run_that_broke_a_promise_is_not_taken_for_one_that_diverged(tmp_path):
    written = sequences(whole.LeaksInALayer)
    del written["search"]
    written["model"]["layers"][0]["sequence"] = named(whole.LeaksInALayer)
    run = config.parse(written).resolved()
    for _ in range(2):  # trained, then read from its record
        with pytest.raises(BreaksContract, match="the trained model fails later_tokens"):
            evaluate(run, tmp_path, scored_on="test")
    (folder,) = tmp_path.iterdir()
    assert [event["event"] for event in read_record(folder)][-2:] != ["failed", "failed"]
    assert not (folder / WEIGHTS).exists()


def test_who_is_struck_leaves_the_front_to_the_next_and_stays_away(tmp_path, audits):
    written = sequences(whole.LeaksUnderAutocast, whole.Decay, objectives={"cache_bytes": "minimize"})
    results = search(written, tmp_path)
    assert {block_of(candidate.trials[0]) for candidate in results.front} == {"Decay"}
    (struck,) = results.struck
    assert struck.struck.startswith("the trained model fails later_tokens: ")
    assert "under autocast" in struck.struck
    assert struck not in results.candidates
    looked_at = len(audits)
    assert {run.model.layers[0].sequence.type for run in audits} == {
        named(whole.LeaksUnderAutocast),
        named(whole.Decay),
    }
    again = search(written, tmp_path, resume=True)
    assert len(audits) == looked_at
    assert [c.number for c in again.front] == [c.number for c in read_results(tmp_path).front]
    assert [c.number for c in again.front] == [c.number for c in results.front]


def test_the_report_says_who_was_struck_and_why(tmp_path):
    results = search(sequences(whole.LeaksUnderAutocast, whole.Decay), tmp_path)
    written = write_report(results, tmp_path)
    html = written["report.html"].read_text()
    assert '<section id="struck">' in html
    assert html.count("change earlier logits under autocast") == 1
    assert "1 struck</a>" in html
    (struck,) = json.loads(written["struck.json"].read_text())
    assert struck["trial"] == results.struck[0].number
    assert struck["reason"] == results.struck[0].struck
    assert not {struck["trial"]} & {entry["trial"] for entry in json.loads(written["front.json"].read_text())}
    assert f"trial {struck['trial']} is struck off the front: {struck['reason']}" in warnings(results)


def test_a_front_of_nobody_is_reported(tmp_path):
    results = search(sequences(whole.LeaksUnderAutocast), tmp_path)
    assert results.struck
    assert not results.front
    write_report(results, tmp_path)
    assert "Every candidate was struck." in page(results)


def test_what_training_left_in_the_process_is_not_in_the_weights(tmp_path, monkeypatch):
    class Fresh(InProcess):
        """A process of its own for each audit: nothing that training left is there."""

        def wait(self):
            if self.jobs[-1]["kind"] == "audit":
                whole.KnowsInAClass.taught = 0.0
            return super().wait()

    monkeypatch.setattr("doge_lab.search.coordinator.Pool", Fresh)
    results = search(tiny(state=[{"type": named(whole.KnowsInAClass)}], trials=1, confirm_seeds=0), tmp_path)
    assert not results.front
    assert " bits as recorded, and " in results.struck[0].struck
    assert results.struck[0].struck.endswith("with the weights that were saved")


def test_what_is_measured_of_the_front_is_kept(tmp_path):
    (candidate,) = search(tiny(state=["mlp"], trials=1, confirm_seeds=0), tmp_path).front
    (found,) = candidate.audits.values()
    assert found["reason"] == ""
    assert found["cache_bytes_held"] == candidate.trials[0].cost["cache_bytes"]
    bits = found["tasks"]["capacity"]
    recorded = candidate.trials[0].metrics["capacity"]["bits"]
    assert bits["bits"] == recorded
    assert bits["bits_through_cache"] == pytest.approx(recorded, abs=1e-3)
    write_report(read_results(tmp_path), tmp_path)
    (entry,) = json.loads((tmp_path / "front.json").read_text())
    assert entry["audits"][0]["cache_bytes_held"] == found["cache_bytes_held"]


def test_other_weights_than_were_scored_are_found(tmp_path):
    written = tiny(state=["none"], trials=1, confirm_seeds=0)
    del written["search"]
    written["model"]["layers"][0]["state"] = "mlp"
    run = config.parse(written).resolved()
    evaluate(run, tmp_path, scored_on="validation")
    (folder,) = tmp_path.iterdir()
    save_tensors({name: 1.1 * value for name, value in _saved(folder).items()}, folder / WEIGHTS)
    found = auditor.audit(run, tmp_path, device="cpu", allow_faults=False)
    assert "bits as recorded, and" in found["reason"]


def _saved(folder: Path):
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


def test_blocks_pass_every_check_before_their_model_stands(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(auditor, "remembered", lambda case: None)
    asked = []

    def examine(case, **_):
        asked.append((case.type, case.full, case.d_model))
        fails = case.type == "mlp"
        return [{"name": "compiles", "status": "failed", "message": "no graph"}] if fails else []

    monkeypatch.setattr(auditor, "examine", examine)
    written = tiny(state=["none"])
    del written["search"]
    written["model"]["layers"][0]["state"] = "mlp"
    found = auditor.audit(config.parse(written).resolved(), tmp_path, device="cpu", allow_faults=False)
    assert asked == [("none", True, 16), ("mlp", True, 16)]
    assert found["reason"] == "block mlp fails the check compiles: no graph"


def test_a_model_that_breaks_a_promise_when_it_is_confirmed_is_struck(tmp_path, monkeypatch, audits):
    from doge_lab import objective

    accept = objective._accept

    def sometimes(run, task, model, data):
        if run.seed == derived("confirm", 0, 0) and run.model.layers[0].state.type == "mlp":
            raise BreaksContract("the trained model fails other_rows: once in a while")
        accept(run, task, model, data)

    monkeypatch.setattr(objective, "_accept", sometimes)
    results = search(tiny(confirm_seeds=2), tmp_path)
    assert [candidate.struck for candidate in results.struck] == ["the trained model fails other_rows: once in a while"]
    (left,) = results.front
    assert len(left.confirmed) == 2
    assert {run.model.layers[0].state.type for run in audits} == {"mlp", "none"}
