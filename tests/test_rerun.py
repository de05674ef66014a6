"""A recorded run can be repeated, and what is not the same is found."""

import json
import sys

import pytest
import torch

from doge_lab.cli import main
from doge_lab.record import read_record
from doge_lab.rerun import compare

RUN = """
model: {d_model: 8, layers: [{sequence: {type: attention, n_heads: 2}, state: mlp}]}
tasks: [{type: recall, n_pairs: [2], length: 12, n_tokens: 16, n_eval: 64}]
train: {steps: 6, batch_size: 8}
"""

START = {
    "event": "start",
    **{name: {} for name in ("config", "code", "packages")},
    **dict.fromkeys(("task", "data_hash", "python"), ""),
    "machine": {"device": "cpu"},
    "scored_on": "test",
    "threads": 1,
}
REPORT = {"event": "report", "step": 1, "loss": 1.0, "aux_loss": 0.0, "lr": 0.1}
FAILED = {"event": "failed", "reason": "diverged"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    assert main(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out" / "recall"


def test_the_same_machine_agrees_to_the_bit(folder, tmp_path, capsys):
    capsys.readouterr()
    torch.set_num_threads(read_record(folder)[0]["threads"] + 1)
    assert main(["rerun", str(folder / "record.jsonl"), "--out", str(tmp_path / "again"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["agrees"]
    assert said["setup_differs"] == []
    assert said["differences"] == []
    assert said["bits"][0] == said["bits"][1]
    verdict = compare(read_record(folder), read_record(tmp_path / "again"))
    assert verdict.exact
    assert verdict.agrees


def changed(events, where, name, value):
    events = json.loads(json.dumps(events))
    events[where][name] = value
    return events


def test_what_was_tampered_with_is_found(folder):
    events = read_record(folder)
    metrics = events[-1]["metrics"]
    assert compare(events, changed(events, 0, "data_hash", "0")).differences == ["data_hash"]
    wrong = {**metrics, "accuracy": metrics["accuracy"] + 1e-12}
    assert compare(events, changed(events, -1, "metrics", wrong)).differences == ["accuracy"]
    assert compare(events, changed(events, 1, "loss", 0.5)).differences == ["the curve"]


def test_elsewhere_an_interval_is_enough(folder):
    events = read_record(folder)
    metrics = events[-1]["metrics"]
    low, high = metrics["bits_interval"]
    elsewhere = changed(events, 0, "machine", {"device": "cpu", "processor": "another"})
    near = changed(elsewhere, -1, "metrics", {**metrics, "bits": high})
    far = changed(elsewhere, -1, "metrics", {**metrics, "bits": high + (high - low) + abs(high)})
    assert compare(events, near).agrees
    assert compare(events, near).setup == ["machine"]
    assert compare(events, far).differences == ["bits"]


def test_a_diverged_run_must_diverge_again(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(RUN.replace("steps: 6", "lr: 1.0e+30, clip: 0, steps: 6"))
    main(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")])
    folder = tmp_path / "out" / "recall"
    assert read_record(folder)[-1]["event"] == "failed"
    capsys.readouterr()
    assert main(["rerun", str(folder)]) == 0
    assert read_record(folder.with_name("recall-rerun"))[-1]["event"] == "failed"
    assert "Agrees" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "holds no record.jsonl"),
        ([REPORT], "does not begin with how the run was started"),
        ([{"event": "start", "config": {}}, REPORT], "line 1 is damaged; 1 of 2 lines can be read"),
        ([START, {**REPORT, "loss": "1"}, REPORT, FAILED], "line 2 is damaged; 3 of 4 lines can be read"),
        ([START, REPORT], "is not finished"),
        ([START, REPORT, {"event": "end", "metrics": {}}], "is not finished"),
        ([{**START, "threads": 10**9}, FAILED], "threads: must be between 1 and 1,024"),
        ([{**START, "machine": {}}, FAILED], "does not say on which device"),
        ([START, FAILED], "model: field required"),
        ([3], "holds no record.jsonl"),
    ],
)
def test_a_record_that_cannot_be_repeated_is_one_line(tmp_path, capsys, events, message):
    (tmp_path / "record.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert main(["rerun", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_folder_in_use_is_left_alone(folder, capsys):
    before = (folder / "record.jsonl").read_bytes()
    assert main(["rerun", str(folder), "--out", str(folder)]) == 2
    assert "is a file or not empty" in capsys.readouterr().err
    assert (folder / "record.jsonl").read_bytes() == before


def test_a_block_that_was_edited_since_is_another_code(tmp_path, strange, monkeypatch, capsys):
    (tmp_path / "run.yaml").write_text(RUN.replace("state: mlp", f"state: {json.dumps(strange('Plain'))}"))
    assert main(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out" / "recall"
    edited = tmp_path / "strange.py"
    edited.write_text(edited.read_text().replace("return self.map(x)", "return 2 * self.map(x)"))
    sys.modules.pop("strange")
    capsys.readouterr()
    assert main(["rerun", str(folder), "--json"]) == 0
    assert "source" in json.loads(capsys.readouterr().out)["setup_differs"]


def test_a_block_that_raises_now_is_one_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("doge_lab.rerun.execute", lambda *words, **options: [][0])
    assert main(["rerun", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.strip().endswith("the run ended with IndexError: list index out of range")
    assert "Traceback" not in said
