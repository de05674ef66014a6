"""Experiments: every arm is treated alike, choices are made on validation data, and nothing finished is lost."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from doge_lab.cli import main
from doge_lab.config import RunConfig
from doge_lab.errors import UserError
from doge_lab.experiment import candidates
from doge_lab.experiment.config import Protocol, arms_of, load
from doge_lab.experiment.plan import REPORTED_SEED, Cell, Outcome
from doge_lab.experiment.result import result_of
from doge_lab.experiment.runner import Runner
from doge_lab.report.arms import arms_table, doubts

TINY = Path(__file__).parent.parent / "experiments" / "tiny.yaml"
LAWS = sorted((TINY.parent.parent / "benchmarks" / "laws").rglob("*.yaml"))


def written(tmp_path, change):
    content = yaml.safe_load(TINY.read_text())
    change(content)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def cell(**protocol):
    arm = arms_of(load(TINY))[0]
    return Cell(arm, arm.run.tasks[0], Protocol(**protocol))


def note_all(cell, bits):
    """Give every tuning job the bits of its learning rate."""
    for job in list(cell.tuning()):
        value = bits[job.setting.lr]
        outcome = Outcome(job.seed, None, "nan", diverged=True) if value is None else Outcome(job.seed, {"bits": value})
        cell.note(job, outcome)


def test_the_best_setting_on_validation_is_scored_on_test_from_other_seeds():
    tuned = cell(lr=[0.001, 0.01, 0.1], seeds=3, tuning_seeds=2)
    assert len(list(tuned.tuning())) == 6
    assert {job.scored_on for job in tuned.tuning()} == {"validation"}
    note_all(tuned, {0.001: 1.0, 0.01: 5.0, 0.1: 3.0})
    jobs = list(tuned.reporting())
    assert tuned.is_tuned
    assert not tuned.at_edge
    assert [job.seed for job in jobs] == [REPORTED_SEED, REPORTED_SEED + 1, REPORTED_SEED + 2]
    assert {(job.scored_on, job.setting.lr) for job in jobs} == {("test", 0.01)}
    assert jobs[0].run.train_config(jobs[0].run.tasks[0]).lr == 0.01


def test_a_best_rate_at_the_edge_of_the_grid_is_flagged():
    tuned = cell(lr=[0.001, 0.01, 0.1])
    note_all(tuned, {0.001: 1.0, 0.01: 5.0, 0.1: 9.0})
    assert tuned.at_edge


def test_a_setting_that_diverges_holds_no_bits_and_a_cell_that_always_fails_reports_nothing():
    tuned = cell(lr=[0.001, 0.01])
    note_all(tuned, {0.001: 0.5, 0.01: None})
    assert tuned.chosen.lr == 0.001
    broken = cell(lr=[0.001, 0.01])
    for job in broken.tuning():
        broken.note(job, Outcome(job.seed, None, "TypeError: no"))
    assert broken.chosen is None
    assert list(broken.reporting()) == []


def test_a_single_setting_is_not_tuned():
    fixed = cell(lr=[0.01], seeds=2)
    assert list(fixed.tuning()) == []
    assert len(list(fixed.reporting())) == 2


def test_weight_decay_is_the_runs_own_unless_the_grid_names_it():
    assert {setting.weight_decay for setting in cell().grid} == {0.0}
    assert len(cell(weight_decay=[0, 0.1]).grid) == 6


def test_an_experiment_is_trained_and_continued(tmp_path):
    def less(content):
        content["arms"].popitem()
        content["protocol"] = {"lr": [0.01, 0.03], "seeds": 2}

    experiment = load(written(tmp_path, less))
    runner = Runner(experiment, tmp_path / "out", ["cpu", "cpu"])
    result = result_of(experiment, runner.run())
    assert runner.done == runner.total == 2 * 2 * 4
    for arm in result["arms"]:
        for scored in arm["tasks"].values():
            assert scored["bits"]["n"] == 2
            assert scored["bits"]["half"] > 0
            assert [seed["seed"] for seed in scored["seeds"]] == [REPORTED_SEED, REPORTED_SEED + 1]
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("record.jsonl")}
    again = Runner(experiment, tmp_path / "out", ["cpu"])
    assert result_of(experiment, again.run())["arms"] == result["arms"]
    assert {path: path.stat().st_mtime_ns for path in records} == records


def test_divergence_is_a_result(tmp_path, capsys):
    def hot(content):
        content["arms"] = {"hot": {}}
        content["base"]["tasks"] = content["base"]["tasks"][:1]
        content["base"]["train"]["clip"] = 0
        content["protocol"] = {"lr": [1e30], "seeds": 2}

    path = written(tmp_path, hot)
    assert main(["compare", str(path), "--out", str(tmp_path / "out"), "--workers", "1", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)["arms"][0]["tasks"]["capacity"]
    assert scored["diverged"] == 2
    assert scored["bits"] == {"mean": 0.0, "half": 0.0, "n": 2}
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("record.jsonl")}
    assert main(["compare", str(path), "--out", str(tmp_path / "out"), "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arms"][0]["tasks"]["capacity"] == scored
    assert {path: path.read_bytes() for path in before} == before  # nor trained again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("arms"), "an experiment needs `arms:`"),
        (lambda c: c["arms"].update(twin={}), "'twin' is the same run as 'attention'"),
        (lambda c: c["arms"].update(hot={"train.lr": 1.0}), "'hot' is the same run as 'attention' .the protocol sets"),
        (lambda c: c["arms"].update(bad={"model.layers.7.state": "mlp"}), "arms.bad: .*'7' is not an index below 1"),
        (lambda c: c["arms"].update(bad={"model.layers.0.state": "mpl"}), "did you mean 'mlp'"),
        (lambda c: c["protocol"].update(lr=[0.1, 0.1]), "protocol.lr: a value is written twice"),
        (lambda c: c["protocol"].update(lr=[]), "protocol.lr"),
        (lambda c: c["base"].update(seed=3), "the protocol sets the seeds"),
        (lambda c: c["base"].update(tasks=[]), "needs at least one task"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        load(written(tmp_path, change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arms: arms.update(last={"model.layers.1.state": "mpl"}),
            "arms.last.model.layers.1.state.type: no state block is",
        ),
        (lambda arms: arms.update(last=dict(arms["attention, mlp"])), "'last' is the same run as 'attention, mlp'"),
    ],
)
def test_every_arm_is_read_before_the_first_is_solved(tmp_path, monkeypatch, change, message):
    content = yaml.safe_load((TINY.parent.parent / "benchmarks" / "scale.yaml").read_text())
    change(content["arms"])
    path = tmp_path / "scale.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setattr(RunConfig, "resolved", lambda run: pytest.fail("solved before all was read"))
    with pytest.raises(UserError, match=message):
        load(path)


@pytest.mark.parametrize("path", LAWS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_law_can_be_built(path):
    assert len(arms_of(load(path))) > 1


def test_arms_leave_their_base_alone():
    experiment = load(TINY)
    before = deepcopy(experiment.base)
    arms_of(experiment)
    assert experiment.base == before


def test_exposures_become_steps_of_memorised_tasks_alone(tmp_path):
    def exposed(content):
        content["base"]["train"] = {"exposures": 10, "steps": 7, "batch_size": 16}

    run = arms_of(load(written(tmp_path, exposed)))[0].run
    capacity, recall = run.tasks
    assert run.train_config(capacity).steps == 10 * 32 / 16
    assert run.train_config(recall).steps == 7


def test_the_table_tells_a_hurried_reader_what_is_missing(capsys):
    cell = {"bits": {"mean": 4.0, "half": None, "n": 1}, "failed": 1, "diverged": 0, "saturated": 1}
    cell["grid"] = [{"bits": [None], "failed": ["MemoryError"]}, {"bits": [3.0], "failed": []}]
    arm = {
        "name": "[/mine]",
        "cost": dict.fromkeys(("cache_bytes", "params", "embedding_params", "active_params"), 7),
        "tasks": {
            "a": {**cell, "train": {"lr": 0.1, "at_edge": True}},
            "b": {**cell, "bits": None, "failed": 0, "grid": []},
        },
    }
    pair = {"task": "a", "first": "mine", "second": "yours", "told_apart": False, "seeds_needed": 40}
    pair |= {"probability": 0.7, "bits": {"mean": 1.0, "half": 2.0, "n": 3}}
    result = {"name": "x", "protocol": {"seeds": 3, "lr": [0.1]}, "tasks": ["a", "b"], "arms": [arm], "pairs": [pair]}
    Console(width=250).print(arms_table(result))
    shown = capsys.readouterr().out
    assert "4.00 (one seed) (1 of 3 seeds, 1 failed, 1 saturated, 1 setting failed, lr 0.1 is at the edge)" in shown
    assert "unfinished" in shown
    assert "[/mine]" in shown
    (line,) = doubts(result)
    assert line == (
        "a: 'mine' and 'yours' cannot be told apart, the first better with probability 0.70; about 40 seeds would tell"
    )


@pytest.mark.slow
def test_a_run_whose_worker_dies_is_asked_again(tmp_path, strange):
    def deadly(content):
        content["base"]["tasks"] = content["base"]["tasks"][:1]
        content["arms"] = {
            name: {"model.layers.0.state": strange(name, where=str(tmp_path / "mark"))} for name in ("DiesOnce", "Dies")
        }
        content["protocol"] = {"lr": [0.01], "seeds": 1}

    experiment = load(written(tmp_path, deadly))
    runner = Runner(experiment, tmp_path / "out", ["cpu"], allow_import=["strange"])
    once, always = result_of(experiment, runner.run())["arms"]
    assert once["tasks"]["capacity"]["bits"]["n"] == 1
    assert always["tasks"]["capacity"]["failed"] == 1
    assert always["tasks"]["capacity"]["seeds"][0]["failed"].startswith("its process was killed (signal 9)")


def test_the_front_of_a_search_is_compared_under_the_protocol(tmp_path, in_process, capsys):
    from tiny_search import search, tiny

    found = search(tiny(trials=4, confirm_seeds=0), tmp_path / "search")
    words = ["--set", "protocol.seeds=2", "--set", "protocol.lr=[0.01, 0.03]", "--workers", "1", "--json"]
    assert main(["compare", str(tmp_path / "search"), *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in result["arms"]] == [f"trial {candidate.number}" for candidate in found.front]
    for arm, candidate in zip(result["arms"], found.front, strict=True):
        assert arm["cost"]["cache_bytes"] == candidate.values["cache_bytes"]
        assert arm["tasks"]["capacity"]["bits"]["n"] == 2
    assert (tmp_path / "search" / "compare" / "result.json").exists()


def test_models_that_the_protocol_makes_one_are_compared_once(tmp_path, in_process):
    """A search may draw one architecture at several learning rates; the protocol tunes them all alike."""
    from tiny_search import search, tiny

    space = tiny(("mlp",), trials=3, confirm_seeds=0, objectives={"cache_bytes": "minimize"})
    space["train"] = {"steps": 2, "batch_size": 8, "lr": {"float": [0.001, 0.1]}}
    found = search(space, tmp_path)
    assert len(found.front) == 3
    assert list(candidates.load(tmp_path, most=9).runs) == [f"trial {found.front[0].number}"]


def test_a_search_without_a_front_is_one_line(tmp_path, in_process, capsys):
    from tiny_search import search, tiny

    with pytest.raises(UserError):
        search(tiny(trials=1, confirm_seeds=0, constraints={"params": {"max": 1}}), tmp_path)
    assert main(["compare", str(tmp_path)]) == 2
    assert "has no front yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "model.d_model=2"], "only the protocol can be set"),
        (["--set", "protocol.seedz=2"], "did you mean 'seeds'?"),
        (["--candidates", "1"], "must be between 2 and 1,000, not 1"),
    ],
)
def test_of_a_search_only_the_protocol_can_be_set(tmp_path, in_process, capsys, words, message):
    from tiny_search import search, tiny

    search(tiny(trials=1, confirm_seeds=0), tmp_path)
    assert main(["compare", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
