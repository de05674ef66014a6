"""Which candidate comes next: rejections are learned from, known configurations go first, a stalled search stops."""

import json
import random

import pytest
import yaml
from tiny_search import InProcess, search, tiny

from doge_lab import config
from doge_lab.cli import main
from doge_lab.engine import jobs
from doge_lab.engine.jobs import weigh
from doge_lab.errors import UserError
from doge_lab.experiment.plan import Outcome, merit
from doge_lab.identity import sources
from doge_lab.search import asking
from doge_lab.search.config import parse_space


class Untrained(InProcess):
    """A pool that makes up scores and finds no fault, so that a test is about asking alone."""

    def wait(self):
        job = self.jobs.pop()
        if job["kind"] == "screen":
            return "done", job, jobs.weigh(job["run"])
        if job["kind"] != "train":
            return "done", job, {"results": [], "found": {"reason": ""}}
        bits = random.Random(json.dumps(job["run"]["model"], sort_keys=True)).random()
        run = config.parse(job["run"])
        return "done", job, {"metrics": {"capacity": {"bits": bits}}, "seconds": 0.0, "sources": sources(run)}


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr("doge_lab.search.coordinator.Pool", Untrained)


def bounded(sampler, widest=80, **changes):
    """Widths from 4, of which only those up to about 30 are admissible."""
    layer = {"sequence": "none", "state": {"type": "mlp", "d_hidden": {"int": [4, widest]}}}
    written = tiny(sampler=sampler, trials=20, confirm_seeds=0, constraints={"params": {"max": 1500}}, **changes)
    return {**written, "model": {**written["model"], "layers": [layer]}}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_every_sampler_goes_on_after_rejections(tmp_path, untrained, sampler):
    results = search(bounded(sampler), tmp_path)
    states = [trial.state for trial in results.trials]
    assert states.count("complete") == 20
    assert states.count("rejected") > 5
    assert results.ended_early == ""


def test_gp_learns_where_it_may_not_look_and_asks_no_rejected_point_again(tmp_path, untrained):
    results = search(bounded("gp", widest=256), tmp_path)
    assert sum(trial.state == "complete" for trial in results.trials) == 20
    asked = [trial for trial in results.trials if trial.state == "rejected"]
    widths = [trial.params["model.layers.0.state.d_hidden"] for trial in asked]
    assert max(map(widths.count, widths)) <= 2
    # 90 % of the range is inadmissible: by chance 20 candidates would meet 180 rejections
    assert len(asked) < 90


def test_what_was_rejected_is_not_solved_again(tmp_path, untrained, monkeypatch):
    solved = []
    monkeypatch.setattr(asking, "REJECTIONS", 40)
    monkeypatch.setattr(jobs, "weigh", lambda run: solved.append(1) or weigh(run))
    written = bounded("random")
    written["search"]["constraints"] = {"params": {"max": 5}}
    written["model"]["layers"][0]["state"]["d_hidden"] = {"choice": [4, 8]}
    written["train"] = {"steps": 8, "lr": {"float": [0.001, 0.1]}}
    with pytest.raises(UserError, match="40 candidates in a row were rejected"):
        search(written, tmp_path)
    assert len(solved) == 2


def test_gp_says_once_what_it_does_not_model(tmp_path, untrained, caplog):
    written = bounded("gp")
    wide = {"type": "mlp", "d_hidden": {"int": [4, 30]}}
    written["model"]["layers"][0]["state"] = {"choice": [wide, {"type": "glu", "d_hidden": {"int": [4, 20]}}]}
    search(written, tmp_path)
    assert caplog.text.count("sampler gp models 1 of 3 options") == 1


KNOWN = {"model.layers.0.state.d_hidden": 17}


def test_known_configurations_are_trained_first_and_once(tmp_path, untrained):
    written = bounded("random", first=[KNOWN, {"model.layers.0.state.d_hidden": 5}])
    written["search"]["trials"] = 3
    assert [trial.params["model.layers.0.state.d_hidden"] for trial in search(written, tmp_path).trials][:2] == [17, 5]
    written["search"]["trials"] = 5
    again = [trial.params["model.layers.0.state.d_hidden"] for trial in search(written, tmp_path, resume=True).trials]
    assert (again.count(17), again.count(5)) == (1, 1)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"model.layers.0.state.d_hiden": 17}, "'model.layers.0.state.d_hiden' is not drawn; did you mean"),
        ({"model.layers.0.state.d_hidden": 500}, "is a whole number from 4 to 80, not 500"),
        ({"model.layers.0.state.d_hidden": True}, "is a whole number from 4 to 80, not True"),
        ({"model.layers.0.state.d_hidden": "wide"}, "is a whole number from 4 to 80, not 'wide'"),
    ],
)
def test_a_known_configuration_outside_the_space_is_one_line(known, words):
    with pytest.raises(UserError) as error:
        parse_space(bounded("random", first=[known]), "test")
    assert words in str(error.value)
    assert "search.first.0" in str(error.value)


def test_a_stalled_search_stops_and_says_why(tmp_path, untrained):
    results = search(bounded("random", patience=3), tmp_path)
    trained = sum(trial.state == "complete" for trial in results.trials)
    assert 4 <= trained < 20
    assert results.ended_early == "the last 3 candidates added less than 0.1% to the hypervolume"


def test_a_search_whose_trials_all_failed_says_why_and_fails(tmp_path, in_process, strange, capsys):
    written = tiny(state=[strange("Raises")], trials=2, confirm_seeds=0)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(written))
    words = ["search", str(tmp_path / "space.yaml"), "--workers", "1", "--allow-import", "strange"]
    assert main([*words, "--out", str(tmp_path / "a"), "--json"]) == 1
    failures = json.loads(capsys.readouterr().out)["failures"]
    assert list(failures.values()) == [2]
    assert main([*words, "--out", str(tmp_path / "b")]) == 1
    shown = capsys.readouterr().out
    assert "No sound model was trained" in shown
    assert f"2 trials failed: {next(iter(failures))}" in shown


def outcome(bits):
    return Outcome(0, None, "diverged", True) if bits is None else Outcome(0, {"bits": bits})


def test_a_setting_that_diverges_comes_last():
    honest, mostly_diverged, once = ([-50.0, -40.0], [None, None, 90.0], [None, 10.0, 90.0])
    ranked = sorted((honest, mostly_diverged, once), key=lambda seeds: merit([outcome(bits) for bits in seeds]))
    assert ranked == [mostly_diverged, once, honest]
    assert merit([outcome(1.0), Outcome(1, None, "its process died")]) is None


def test_weights_trained_elsewhere_are_scored_without_training(tmp_path, run_file, capsys):
    assert main(["train", str(run_file), "--out", str(tmp_path / "run"), "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    weights = tmp_path / "run" / "recall" / "model.safetensors"
    assert main(["score", str(run_file), "--weights", str(weights), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["trained"] == "elsewhere"
    assert scored["tasks"]["recall"]["bits"] == trained["tasks"]["recall"]["bits"]
    assert main(["score", str(run_file), "--weights", str(weights), "--set", "model.d_model=24"]) == 2
    assert "has shape [" in capsys.readouterr().err
    assert main(["score", str(run_file), "--weights", str(weights), "--set", "model.layers.0.state=glu"]) == 2
    assert "lacks 'layers.0.state" in capsys.readouterr().err
    weights.write_bytes(weights.read_bytes()[:100])
    assert main(["score", str(run_file), "--weights", str(weights)]) == 2
    assert "is no whole safetensors file" in capsys.readouterr().err
