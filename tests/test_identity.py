"""A stored result counts for what was asked and for the code that computed it: harmless edits change neither."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from golden_defaults import FILE, defaults
from tiny_search import search, tiny

from doge_lab import config
from doge_lab.errors import UserError
from doge_lab.identity import fingerprint, identity, source
from doge_lab.objective import run_folder
from doge_lab.record import RECORD, read_record
from doge_lab.run import BreaksContract, execute
from doge_lab.search.asking import Asker
from doge_lab.search.study import read_results
from doge_lab.stored import PREVIOUS, WEIGHTS, set_aside

RUN = """
name: plain
model:
  d_model: 16
  layers:
    - {repeat: 2, sequence: {type: attention, n_heads: 2}, state: {type: glu, d_hidden: 8}}
tasks:
  - {type: capacity, n_entities: 32, n_tokens: 16}
train: {steps: 8, batch_size: 16}
"""


def named(change=lambda run: None, text=RUN):
    written = yaml.safe_load(text)
    change(written)
    run = config.parse(written).resolved()
    return identity(run, run.tasks[0])


def layer(run):
    return run["model"]["layers"][0]


HARMLESS = {
    "a name": lambda run: run.update(name="other"),
    "no name": lambda run: run.pop("name"),
    "a seed": lambda run: run.update(seed=7),
    "a longer budget": lambda run: run["train"].update(steps=9),
    "exposures": lambda run: run["train"].update(exposures=3),
    "a second task": lambda run: run["tasks"].append({"type": "recall", "n_pairs": [2], "length": 12, "n_tokens": 16}),
    "a name for the task": lambda run: run["tasks"][0].update(name="facts"),
    "a default of the task": lambda run: run["tasks"][0].update(n_values=8),
    "a default of training": lambda run: run["train"].update(schedule="cosine", lr=0.01, clip=1.0),
    "training options beside the task": lambda run: run["tasks"][0].update(train={"steps": 8, "batch_size": 16}),
    "a default of a block": lambda run: layer(run)["state"].update(activation="silu"),
    "a default of the model": lambda run: run["model"].update(tie_embeddings=True),
    "positions that are not learned": lambda run: run["model"].update(max_positions=64),
    "layers one by one": lambda run: run["model"].update(layers=[{**layer(run), "repeat": 1}] * 2),
    "the order of options": lambda run: run["model"].update(layers=[dict(reversed(layer(run).items()))]),
    "the vocabulary that the task needs": lambda run: run["model"].update(vocab_size=16),
    "a number as YAML writes it": lambda run: run["train"].update(lr=1e-2),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_changes_nothing_changes_no_identity(change):
    assert named(change) == named()


DECISIVE = {
    "a learning rate": lambda run: run["train"].update(lr=0.02),
    "a schedule": lambda run: run["train"].update(schedule="constant"),
    "a learning rate of the task": lambda run: run["tasks"][0].update(train={"lr": 0.02}),
    "a width": lambda run: layer(run)["state"].update(d_hidden=9),
    "another layer": lambda run: layer(run).update(repeat=3),
    "an untied head": lambda run: run["model"].update(tie_embeddings=False),
    "a larger table": lambda run: run["tasks"][0].update(n_entities=33),
}


@pytest.mark.parametrize("change", DECISIVE.values(), ids=DECISIVE)
def test_what_decides_a_result_changes_its_identity(change):
    assert named(change) != named()


def test_comments_and_layout_of_a_file_change_no_identity():
    assert named(text=f"# a comment\n{RUN}# another\n") == named()


def test_a_candidate_is_named_with_its_budget():
    run = config.parse(yaml.safe_load(RUN)).resolved()
    longer = run.model_copy(update={"train": run.train.model_copy(update={"steps": 9})})
    assert fingerprint(run) != fingerprint(longer)
    assert identity(run, run.tasks[0]) == identity(longer, longer.tasks[0])


def test_candidates_that_differ_in_one_task_share_no_folder():
    def folders(**train):
        recall = {"type": "recall", "n_pairs": [2], "length": 12, "n_tokens": 16}
        written = yaml.safe_load(RUN)
        written["tasks"] = [{**written["tasks"][0], "train": train}, recall]
        run = config.parse(written).resolved()
        return {run_folder(Path(), run, task, "validation") for task in run.tasks}

    assert not folders(exposures=5) & folders(exposures=10)
    assert not folders(lr=0.01) & folders(lr=0.02)
    assert folders(lr=0.01) == folders()


@pytest.fixture
def run(strange):
    written = yaml.safe_load(RUN)
    written["model"]["layers"] = [{"sequence": "none", "state": strange("Plain")}]
    return config.parse(written).resolved()


@pytest.fixture
def edit(tmp_path):
    """Change the file of the strange blocks, as an editor and a new process would."""

    def changed(before, after):
        file = tmp_path / "strange.py"
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))
        sys.modules.pop("strange", None)

    return changed


FASTER = ("return self.map(x)", "return 3 * self.map(x)")


def test_an_edited_block_is_trained_again_and_what_was_is_kept(run, edit, tmp_path):
    folder = tmp_path / "run"
    first = execute(run, run.tasks[0], folder)
    edit(*FASTER)
    again = execute(run, run.tasks[0], folder)
    assert again["replaces"] == "strange has changed since"
    assert again["metrics"]["bits"] != first["metrics"]["bits"]
    assert read_record(folder / PREVIOUS)[-1] == first
    assert (folder / PREVIOUS / WEIGHTS).exists()
    read = execute(run, run.tasks[0], folder)
    assert (read["metrics"], "replaces" in read) == (again["metrics"], False)


def test_a_comment_trains_nothing_again(run, edit, tmp_path):
    folder = tmp_path / "run"
    first = execute(run, run.tasks[0], folder)
    edit('"""A linear map."""', '"""A map, linear."""  # as it is said')
    assert execute(run, run.tasks[0], folder) == first
    assert not (folder / PREVIOUS).exists()


def test_a_verdict_of_other_checks_does_not_last(run, tmp_path, monkeypatch):
    def refuse(model, data):
        raise BreaksContract("the trained model fails rows")

    for _ in range(2):
        with pytest.raises(BreaksContract, match="fails rows"):
            execute(run, run.tasks[0], tmp_path / "run", accept=refuse)
    with pytest.raises(BreaksContract):  # by these checks it stays refused, without being trained again
        execute(run, run.tasks[0], tmp_path / "run")
    monkeypatch.setattr("doge_lab.run._contract", lambda: "other checks")
    assert execute(run, run.tasks[0], tmp_path / "run")["event"] == "end"


def test_a_kill_between_two_moves_loses_no_weights(run, tmp_path):
    folder = tmp_path / "run"
    execute(run, run.tasks[0], folder)
    weights = (folder / WEIGHTS).read_bytes()
    (folder / PREVIOUS).mkdir()
    (folder / WEIGHTS).replace(folder / PREVIOUS / WEIGHTS)  # and here the power goes
    set_aside(folder, forget=True)
    assert (folder / PREVIOUS / WEIGHTS).read_bytes() == weights
    assert (folder / PREVIOUS / RECORD).exists()
    assert not (folder / RECORD).exists()


def test_a_record_of_an_older_version_is_one_line(run, tmp_path):
    folder = tmp_path / "run"
    execute(run, run.tasks[0], folder)
    start, *rest = (folder / RECORD).read_text().splitlines()
    older = {name: fact for name, fact in json.loads(start).items() if name not in ("identity", "source", "modules")}
    (folder / RECORD).write_text("\n".join([json.dumps(older), *rest]) + "\n")
    with pytest.raises(UserError, match="holds a run of an older doge_lab"):
        execute(run, run.tasks[0], folder)


def test_the_source_names_what_trains_and_no_command():
    run = config.parse(yaml.safe_load(RUN)).resolved()
    modules = source(run, run.tasks[0]).modules
    needed = {"blocks.state.glu", "blocks.sequence.attention", "doge_lab.layers.rotary", "doge_lab.train"}
    assert needed | {"doge_lab.optim", "doge_lab.model", "doge_lab.tasks.capacity"} <= modules.keys()
    assert not any(name.startswith(("doge_lab.cli", "doge_lab.report", "doge_lab.search")) for name in modules)


def test_a_resumed_search_trains_again_what_other_code_computed(tmp_path, in_process, strange, edit, caplog):
    written = tiny(state=[strange("Plain"), "mlp"], trials=4, confirm_seeds=1)
    before = search(written, tmp_path / "out")
    edit(*FASTER)
    results = search(written, tmp_path / "out", resume=True)
    own = {t.number for t in before.trials if t.config["model"]["layers"][0]["state"]["type"] == "strange:Plain"}
    assert f"{len(own)} trials were computed by other code and are trained again" in caplog.text
    assert len(results.trials) == len(before.trials)
    changed = {new.number for new, old in zip(results.trials, before.trials, strict=True) if new.values != old.values}
    assert changed == own
    assert [trial.params for trial in results.trials] == [trial.params for trial in before.trials]
    assert all(candidate.confirmed for candidate in results.front)


def test_a_trial_that_was_being_trained_is_costed_by_the_code_that_trains_it(
    tmp_path, in_process, strange, edit, monkeypatch
):
    written = tiny(state=[strange("Plain")], trials=1, confirm_seeds=0)
    tell = Asker.tell

    def ended(self, job, answer):
        if job["kind"] == "train":
            raise KeyboardInterrupt
        tell(self, job, answer)

    with monkeypatch.context() as patch:
        patch.setattr(Asker, "tell", ended)
        with pytest.raises(KeyboardInterrupt):
            search(written, tmp_path / "out")
    (before,) = read_results(tmp_path / "out").trials
    edit("return 2 * self.d_model**2", "return 4 * self.d_model**2")
    (after,) = search(written, tmp_path / "out", resume=True).trials
    assert (before.state, after.state, after.number, after.seed) == ("running", "complete", before.number, before.seed)
    assert after.cost["flops_per_token"] == before.cost["flops_per_token"] + 2 * 16**2


def test_a_report_says_that_other_code_computed_the_trials(tmp_path, in_process, strange, edit):
    from doge_lab.report.honesty import outdated_lines

    search(tiny(state=[strange("Plain")], trials=2, confirm_seeds=0), tmp_path / "out")
    assert outdated_lines(read_results(tmp_path / "out")) == []
    edit(*FASTER)
    (line,) = outdated_lines(read_results(tmp_path / "out"))
    assert line.startswith("2 of 2 finished trials were computed by other code")


def test_the_defaults_are_those_of_the_golden_file():
    """A default that changes is a line of the file that changes: the same words then ask for another run."""
    assert defaults() == json.loads(FILE.read_text()), "meant so? python tests/golden_defaults.py writes them anew"


@pytest.mark.slow
def test_an_edit_of_the_lab_s_own_block_is_noticed_by_the_command(tmp_path, request):
    """The whole program on a copy of the lab, its block edited in between."""
    lab, file = tmp_path / "lab", tmp_path / "file.yaml"
    for package in ("doge_lab", "blocks"):
        shutil.copytree(request.config.rootpath / package, lab / package)
    file.write_text(RUN)

    def train():
        words = [sys.executable, "-P", "-m", "doge_lab", "train", str(file), "--out", str(tmp_path / "out"), "--json"]
        ran = subprocess.run(
            words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(lab)}, cwd=tmp_path
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)["tasks"]["capacity"], ran.stderr

    first, _ = train()
    block = lab / "blocks" / "state" / "glu.py"
    block.write_text(block.read_text().replace("return self.down(", "return 3 * self.down("))
    again, told = train()
    assert again["bits"] != first["bits"]
    assert again["replaces"] == "blocks.state.glu has changed since"
    assert "blocks.state.glu has changed since" in told
    block.write_text(block.read_text() + "# a comment\n")
    assert train()[0]["bits"] == again["bits"]
