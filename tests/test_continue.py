"""A longer training goes on from a shorter one, to the bit, where the schedule allows it."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from doge_lab import config
from doge_lab.errors import UserError
from doge_lab.objective import evaluate, run_folder
from doge_lab.optim import TrainConfig, lr_at, shared_steps
from doge_lab.record import read_record
from doge_lab.rerun import load, repeat
from doge_lab.run import execute
from doge_lab.stored import CONTINUE, PREVIOUS, WEIGHTS

RUN = """
model:
  d_model: 16
  layers: [{sequence: none, state: {type: glu, d_hidden: 8}}]
tasks: [{type: capacity, n_entities: 32, n_tokens: 16}]
"""


def run_of(steps, schedule="wsd", **train):
    train = {"steps": steps, "batch_size": 16, "schedule": schedule, "warmup_steps": 3, **train}
    return config.parse({**yaml.safe_load(RUN), "train": train}).resolved()


def trained(run, folder):
    return execute(run, run.tasks[0], folder)


def same_weights(one, other):
    one, other = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
def test_a_longer_training_goes_on_to_the_bit(schedule, tmp_path):
    short, long = run_of(10, schedule), run_of(25, schedule)
    first = trained(short, tmp_path / "a")
    end = trained(long, tmp_path / "a")
    assert read_record(tmp_path / "a")[0]["continues"] == shared_steps(short.train)
    assert end["metrics"] == trained(long, tmp_path / "fresh")["metrics"]
    assert same_weights(tmp_path / "a", tmp_path / "fresh")
    assert read_record(tmp_path / "a" / PREVIOUS)[-1] == first
    assert repeat(load(tmp_path / "a"), tmp_path / "again", device="cpu").agrees


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
@pytest.mark.parametrize("warmup", [0, 3, 7])
def test_the_shared_steps_have_the_learning_rates_of_every_longer_training(schedule, warmup):
    for steps in range(1, 40):
        short = TrainConfig(steps=steps, schedule=schedule, warmup_steps=warmup)
        for more in (steps + 1, 3 * steps):
            long = short.model_copy(update={"steps": more})
            shared = min(steps, shared_steps(short))
            assert [lr_at(step, short) for step in range(shared)] == [lr_at(step, long) for step in range(shared)]


@pytest.mark.parametrize("train", [{"schedule": "cosine"}, {"warmup_steps": None}])
def test_what_no_schedule_shares_is_not_continued(train, tmp_path):
    trained(run_of(10, **train), tmp_path)
    assert not (tmp_path / CONTINUE).exists()
    with pytest.raises(
        UserError, match=r"holds this run with 10 steps, which cannot be continued to 25; .*warmup_steps"
    ):
        trained(run_of(25, **train), tmp_path)


def test_a_shorter_training_is_no_continuation(tmp_path):
    trained(run_of(25), tmp_path)
    with pytest.raises(UserError, match="cannot be continued to 10"):
        trained(run_of(10), tmp_path)


def test_runs_of_a_search_go_on_from_their_neighbours(tmp_path):
    folders = []
    for steps in (10, 20, 40):
        run = run_of(steps)
        evaluate(run, tmp_path, scored_on="validation")
        folders.append(run_folder(tmp_path, run, run.tasks[0], "validation"))
    assert [read_record(folder)[0].get("continues") for folder in folders] == [None, 8, 16]
    assert all((folder / CONTINUE).exists() for folder in folders)
    assert all((folder / WEIGHTS).exists() for folder in folders)
    fresh = evaluate(run_of(40), tmp_path / "fresh", scored_on="validation")
    assert evaluate(run_of(40), tmp_path, scored_on="validation").metrics == fresh.metrics


def test_what_other_code_computed_is_not_continued(tmp_path, monkeypatch):
    trained(run_of(10), tmp_path)
    monkeypatch.setattr("doge_lab.stored.stale", lambda start, source: "blocks.state.glu has changed since")
    end = trained(run_of(25), tmp_path)
    assert end["replaces"] == "blocks.state.glu has changed since"
    assert "continues" not in read_record(tmp_path)[0]


def test_a_damaged_state_is_no_state(tmp_path):
    short, long = run_of(10), run_of(25)
    for run in (short, long):
        evaluate(run, tmp_path, scored_on="validation")
    folder = run_folder(tmp_path, short, short.tasks[0], "validation")
    (folder / CONTINUE).write_bytes(b"damaged")
    first = evaluate(long, tmp_path, scored_on="validation")
    longer = run_of(40)
    evaluate(longer, tmp_path, scored_on="validation")
    state = run_folder(tmp_path, longer, longer.tasks[0], "validation")
    assert read_record(state)[0]["continues"] == shared_steps(long.train)
    assert evaluate(long, tmp_path, scored_on="validation").metrics == first.metrics


def test_a_warm_up_longer_than_the_training_shares_no_step_that_is_not_there():
    assert shared_steps(TrainConfig(steps=50, schedule="wsd", warmup_steps=100)) == 50
