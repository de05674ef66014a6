"""What a stranger tries on tasks: marks as answers, sets too small to split, sure and wrong readers, silly options."""

import math

import numpy as np
import pytest
import torch
from test_tasks import TASKS, data

from doge_lab.cli import main
from doge_lab.config import checked_name
from doge_lab.errors import UserError
from doge_lab.tasks import names, parse, rungs
from doge_lab.tasks.base import IGNORE, share_of
from doge_lab.tasks.sampled import SampledTask

SAMPLED = [task for task in TASKS if isinstance(parse(task), SampledTask)]
RUN = """\
model: {d_model: 8, layers: [{sequence: none, state: none}]}
tasks: [TASK]
train: {steps: 2, batch_size: 4}
"""


ANSWERS = {
    "biography": lambda task: range(1, task.vocab_size),
    "capacity": lambda task: range(task.n_tokens),
    "depo": lambda task: range(task.n_tokens),
    "mad_compression": lambda task: range(task.n_tokens),
    "mad_memorisation": lambda task: range(1 + task.n_keys, task.vocab_size),
    "mad_selective_copy": lambda task: range(2, task.vocab_size),
    "mano": lambda task: range(task.modulus),
    "multihop": lambda task: range(task.n_entities),
    "recall": lambda task: range(1 + task.n_keys, task.vocab_size),
    **dict.fromkeys(
        ("mad_recall", "mad_fuzzy_recall", "mad_noisy_recall"),
        lambda task: range(task.form.n_keys, task.form.n_keys + task.form.n_values),
    ),
}
"""Tokens that may be an answer; whatever else is in a vocabulary marks something."""


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_padding_and_marks_are_never_an_answer(task):
    held = data(task)
    possible = ANSWERS[held.task.type](held.task)
    for targets in (held.targets, held.batch(0, 200).targets.numpy(), held.batch(9, 200).targets.numpy()):
        asked = targets[targets != IGNORE]
        assert possible.start <= asked.min() <= asked.max() < possible.stop


@pytest.mark.parametrize("task", TASKS, ids=str)
@pytest.mark.parametrize("sure", [1e4, 1e30])
def test_however_sure_and_wrong_a_reader_is_bits_are_finite_and_below_what_there_is(task, sure):
    held = data(task)

    def obstinate(inputs):
        logits = torch.zeros((*inputs.shape, held.task.vocab_size))
        logits[..., 1] = sure
        return logits

    metrics = held.evaluate(obstinate)
    assert math.isfinite(metrics["bits"])
    assert metrics["bits"] < metrics["max_bits"]


@pytest.mark.parametrize("task", SAMPLED, ids=str)
def test_no_sequence_is_of_two_splits(task):
    validation, test = data(task), data(task, scored_on="test")
    train = np.concatenate([held.batch(step, 64).inputs for held in (validation, test) for step in range(8)])
    parts = [{row.tobytes() for row in rows} for rows in (validation.inputs, test.inputs, train)]
    assert not parts[0] & parts[1]
    if train.shape[1] == test.inputs.shape[1]:  # else they differ by length
        assert not (parts[0] | parts[1]) & parts[2]


@pytest.mark.parametrize("name", names())
def test_every_ladder_can_be_climbed(name):
    baseline, *others = rungs(parse(name))
    assert len(others) == sum(map(len, baseline.ladder.values())) > 0
    assert len({checked_name(rung.label) for rung in others}) == len(others)
    for rung in others:
        (option,) = {option for option, value in rung if value != getattr(baseline, option)} - {"name"}
        assert option in baseline.ladder


def test_several_values_are_joined_in_the_name_of_a_rung():
    assert "multihop hops=2+3" in [rung.label for rung in rungs(parse("multihop"))]


def test_answers_known_by_group_are_worth_their_share():
    share = share_of(np.array([5, 5, 7, 5]), np.array([10**9, 10**9, 10**9, 0]))
    assert share == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1])


def test_many_small_draws_are_made_until_there_are_enough(monkeypatch):
    monkeypatch.setattr("doge_lab.tasks.mad_pairs._MOST_TOKENS", 1)  # as for long sequences: one in every draw
    assert len(data({"type": "mad_recall", "n_eval": 40, "n_train": None}).inputs) == 40


@pytest.mark.parametrize(
    "task",
    [
        {"type": "mad_recall", "n_tokens": 4, "length": 8, "n_train": None},
        {"type": "mano", "modulus": 3, "operations": [1]},
        {"type": "depo", "n_nodes": 3, "n_tokens": 3, "hops": [1], "n_queries": 1},
        {"type": "mad_compression", "length": 1, "n_train": None},
    ],
    ids=str,
)
def test_a_handful_of_sequences_is_no_test(task):
    with pytest.raises(UserError, match=f"{task['type']}: too few different sequences to keep test apart"):
        data(task, scored_on="test")


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("{type: capacity, n_entities: 0}", "tasks.0.n_entities: must be a whole number above 0, or `auto`, not 0"),
        ("{type: capacity, n_entities: many}", "n_entities: must be a whole number above 0, or `auto`, not 'many'"),
        ("{type: capacity, n_entities: true}", "n_entities: must be a whole number above 0, or `auto`, not True"),
        ("{type: biography, n_people: 2.5}", "tasks.0.n_people: must be a whole number above 0, or `auto`, not 2.5"),
        ("{type: biography, renderings: 0}", "tasks.0.renderings: input should be greater than 0, not 0"),
        ("{type: multihop, hops: [2000], n_relations: 2000}", "hops.0: input should be less than or equal to 10"),
        ("{type: recall, eval_pairs: []}", "tasks.0.eval_pairs: give one number of pairs or several"),
        ("{type: recall, n_stacks: 900}", "tasks.0.n_pairs: 4 pairs need a length of at least 14400, not 32"),
        ("{type: recall, noise: 0.99}", "tasks.0.n_pairs: 4 pairs need a length of at least 808, not 32"),
        ("{type: recall, n_tokens: 8}", "tasks.0.n_pairs: 4 pairs need 4 keys, but n_tokens=8 leaves 3"),
        ("{type: recall, n_pairs: [1], length: 4, n_tokens: 8}", "recall: too few different sequences to keep test"),
        ("{type: capacity, n_entities: 10000000000000, n_name_tokens: 9}", "not enough memory: Unable to allocate"),
    ],
)
def test_silly_options_get_one_line(tmp_path, capsys, task, line):
    file = tmp_path / "run.yaml"
    file.write_text(RUN.replace("TASK", task))
    assert main(["train", str(file), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "task",
    [
        "{type: recall, n_train: 1, n_eval: 2, n_pairs: [1, 2, 4]}",
        "{type: recall, distance_power: 1.0e+9, n_eval: 16}",
        "{type: recall, eval_length: 33, eval_pairs: [1], n_eval: 16}",
        "{type: capacity, n_entities: 1, n_values: 1, n_tokens: 2, n_name_tokens: 1}",
        "{type: multihop, n_entities: 2, n_relations: 2, trained_share: 0.999}",
        "{type: biography, n_people: 1, renderings: 1000000000}",
        "{type: mad_memorisation, n_tokens: 4, length: 2}",
    ],
)
def test_small_and_odd_options_that_make_sense_are_trained(tmp_path, capsys, task):
    file = tmp_path / "run.yaml"
    file.write_text(RUN.replace("TASK", task))
    assert main(["train", str(file), "--out", str(tmp_path / "out")]) == 0
