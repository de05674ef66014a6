"""Files of a run that are damaged, truncated, folders or of another kind: one line, with the way out."""

import json
import random

import pytest
import torch

from doge_lab.cli import main
from doge_lab.config import load
from doge_lab.errors import UserError
from doge_lab.model import CausalLM
from doge_lab.optim import build_optimizer
from doge_lab.record import RECORD, read_record
from doge_lab.run import execute
from doge_lab.stored import CHECKPOINT
from doge_lab.train import Progress, load_checkpoint, save_checkpoint, train


@pytest.fixture
def run(run_file):
    return load(run_file).resolved()


@pytest.fixture
def saved(run, tmp_path):
    """A model, its optimiser after a step, and the checkpoint of both."""
    model = CausalLM.build(run.model)
    optimizer = build_optimizer(model, run.train)
    model(run.tasks[0].data(seed=0, scored_on="test").batch(0, 2).inputs).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / CHECKPOINT, model, optimizer, Progress(3))
    return model, optimizer, tmp_path / CHECKPOINT


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_or_missing_byte_of_a_checkpoint_is_found(saved, seed):
    model, optimizer, path = saved
    whole, draw = path.read_bytes(), random.Random(seed)
    place = draw.randrange(len(whole))
    flipped = whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]
    for damaged in (flipped, whole[:place]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"checkpoint.safetensors: .* delete it to train from the beginning"):
            load_checkpoint(path, model, optimizer)
    path.write_bytes(whole)
    assert load_checkpoint(path, model, optimizer) == Progress(3)


def test_a_checkpoint_of_another_model_or_a_later_step_is_refused(run, saved):
    model, _, path = saved
    other = CausalLM.build(run.model.model_copy(update={"d_model": 32}))
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path, other, build_optimizer(other, run.train))
    with pytest.raises(UserError, match="is at step 3 of 2"):
        train(model, run.tasks[0], run.train.model_copy(update={"steps": 2}), checkpoint=path)


def test_folders_in_the_place_of_files_are_named(run, saved, tmp_path):
    model, optimizer, path = saved
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"checkpoint.safetensors: .*delete it"):
        load_checkpoint(path, model, optimizer)
    (tmp_path / RECORD).mkdir()
    with pytest.raises(UserError, match=r"record.jsonl: cannot be read: Is a directory"):
        execute(run, run.tasks[0], tmp_path)


def test_a_damaged_line_says_what_is_left(run, tmp_path):
    execute(run, run.tasks[0], tmp_path)
    path = tmp_path / RECORD
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff" + lines[1] + b"".join(lines[2:]))
    with pytest.raises(UserError, match=f"line 2 is damaged; {len(lines) - 1} of {len(lines)} lines can be read"):
        read_record(tmp_path)
    path.write_bytes(lines[0] + lines[1] + b'{"event": "rep\n' + lines[0] + b"".join(lines[2:]))  # killed and resumed
    assert len(read_record(tmp_path)) == len(lines) + 1


@pytest.mark.parametrize("seed", [2**63, 2**64, -1, "no"])
def test_a_seed_that_torch_cannot_take_is_one_line(run_file, seed):
    with pytest.raises(UserError, match="seed: "):
        load(run_file, [f"seed={seed}"])
    assert load(run_file, [f"seed={2**63 - 1}"]).seed == 2**63 - 1


def test_an_out_that_is_a_file_is_one_line(run_file, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below", tmp_path / ("x" * 300)):
        assert main(["train", str(run_file), "--out", str(out), "--json"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "cannot be written" in said


def test_memory_that_is_out_is_no_fault_of_a_block(run_file, tmp_path, monkeypatch, capsys):
    def allocate(*_, **__):
        torch.empty(2**60)

    monkeypatch.setattr("doge_lab.run.train", allocate)
    assert main(["train", str(run_file), "--out", str(tmp_path / "out"), "--json"]) == 2
    assert capsys.readouterr().err.startswith("doge-lab: not enough memory: ")


def test_endless_layers_are_refused_at_once(run_file):
    layers = [{"sequence": "none", "state": "mlp", "repeat": 1000}] * 3
    with pytest.raises(UserError, match=r"model.layers: makes 3,000 layers; at most 2,000"):
        load(run_file, [f"model.layers={json.dumps(layers)}"])
