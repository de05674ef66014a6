"""Training: deterministic, resumable to the bit, divergence is a result."""

import json

import pytest
import torch

from doge_lab import config
from doge_lab.errors import UserError
from doge_lab.model import CausalLM
from doge_lab.optim import TrainConfig, build_optimizer, lr_at
from doge_lab.record import RECORD, read_record
from doge_lab.run import execute
from doge_lab.stored import CHECKPOINT, WEIGHTS
from doge_lab.train import Diverged, Progress, load_checkpoint, predictor, save_checkpoint, train


@pytest.fixture
def run(run_file):
    return config.load(run_file).resolved()


def trained(run, steps, checkpoint=None):
    model = CausalLM.build(run.model, seed=0)
    data = run.tasks[0].data(seed=0, scored_on="test")
    train(model, data, run.train.model_copy(update={"steps": steps}), checkpoint=checkpoint)
    return model, data


def test_a_model_learns_its_table(run):
    few, data = trained(run, 1)
    many, _ = trained(run, 300)
    assert data.evaluate(predictor(few))["bits"] < 60
    assert data.evaluate(predictor(many))["bits"] > 200  # of 256 in the table


def test_the_same_arguments_give_the_same_weights(run):
    first, _ = trained(run, 5)
    again, _ = trained(run, 5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_resumed_run_ends_at_the_same_weights_to_the_bit(run, tmp_path, monkeypatch):
    whole, _ = trained(run, 12)
    path = tmp_path / CHECKPOINT
    model, data = CausalLM.build(run.model, seed=0), run.tasks[0].data(seed=0, scored_on="test")
    monkeypatch.setattr("doge_lab.train.CHECKPOINT_SECONDS", -1.0)

    def pull_the_plug(report):
        if report.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, data, run.train.model_copy(update={"steps": 12}), checkpoint=path, on_report=pull_the_plug)
    resumed, before = CausalLM.build(run.model, seed=0), load_checkpoint(path, model, build_optimizer(model, run.train))
    assert before.step == 7
    done = train(resumed, data, run.train.model_copy(update={"steps": 12}), checkpoint=path)
    assert done.step == 12
    assert done.wall_seconds > before.wall_seconds > 0  # the first session counts too
    assert done.cpu_seconds > before.cpu_seconds > 0
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_checkpoint_is_whole_or_absent(run, tmp_path, monkeypatch):
    model = CausalLM.build(run.model)
    optimizer = build_optimizer(model, run.train)
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, model, optimizer, Progress(3, 7.5, 6.5))

    def full_disk(tensors, beside, metadata):
        beside.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("doge_lab.train.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, model, optimizer, Progress(4))
    assert load_checkpoint(path, model, optimizer) == Progress(3, 7.5, 6.5)


def test_divergence_is_reported_with_its_step(run, tmp_path):
    wild = run.model_copy(update={"train": run.train.model_copy(update={"lr": 1e30, "clip": 0.0})})
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+ of 8"):
        execute(wild, wild.tasks[0], tmp_path / "wild")
    assert read_record(tmp_path / "wild")[-1]["event"] == "failed"


def test_a_model_broken_by_its_last_step_has_diverged(run, tmp_path):
    wild = run.model_copy(update={"train": run.train.model_copy(update={"lr": 1e38, "steps": 1})})
    with pytest.raises(Diverged):
        execute(wild, wild.tasks[0], tmp_path / "wild")
    assert read_record(tmp_path / "wild")[-1]["event"] == "failed"


def test_a_record_tells_everything_that_decides_the_result(run, tmp_path):
    end = execute(run, run.tasks[0], tmp_path / "run")
    events = read_record(tmp_path / "run")
    start = events[0]
    assert [events[0]["event"], events[-1]] == ["start", end]
    assert config.parse(start["config"]) == run
    assert {"data_hash", "seed", "code", "packages", "machine", "cost", "scored_on"} <= set(start)
    assert end["metrics"]["bits_per_param"] == end["metrics"]["bits"] / start["cost"]["params"]
    assert end["metrics"]["exposures"] == 8 * 16 / 32
    assert end["wall_seconds"] > 0 < end["cpu_seconds"]
    assert (tmp_path / "run" / WEIGHTS).exists()
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_a_finished_run_is_read_not_repeated(run, tmp_path, monkeypatch):
    first = execute(run, run.tasks[0], tmp_path / "run")
    monkeypatch.setattr("doge_lab.run.train", lambda *_, **__: pytest.fail("trained again"))
    assert execute(run, run.tasks[0], tmp_path / "run") == first


def test_a_folder_with_another_run_is_refused(run, tmp_path):
    execute(run, run.tasks[0], tmp_path / "run")
    other = run.model_copy(update={"seed": 9})
    with pytest.raises(UserError, match="holds another run"):
        execute(other, other.tasks[0], tmp_path / "run")


def test_a_torn_last_line_does_not_spoil_a_record(run, tmp_path):
    folder = tmp_path / "run"
    execute(run, run.tasks[0], folder)
    lines = (folder / RECORD).read_text().splitlines()
    (folder / RECORD).write_text("\n".join(lines[:-1]) + '\n{"event": "end", "metr')
    assert read_record(folder)[-1]["event"] == "report"
    execute(run, run.tasks[0], folder)
    assert read_record(folder)[-1]["event"] == "end"
    assert json.loads((folder / RECORD).read_text().splitlines()[-1])["metrics"]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedules_warm_up_peak_and_end(schedule):
    plan = TrainConfig(steps=100, lr=0.5, schedule=schedule, warmup=0.1, final_lr=0.1)
    rates = [lr_at(step, plan) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == pytest.approx(0.5)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 if schedule == "constant" else 0.06, rel=0.3)


def test_bfloat16_trains_too(run):
    model = CausalLM.build(run.model, seed=0)
    data = run.tasks[0].data(seed=0, scored_on="test")
    train(model, data, run.train.model_copy(update={"steps": 100, "precision": "bfloat16"}))
    assert data.evaluate(predictor(model))["bits"] > 50
    assert model.embed.weight.dtype == torch.float32
