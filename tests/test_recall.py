"""Recall and its harder forms: what is asked can be read off the input, and nothing else can be mistaken for it."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_lab.errors import UserError
from doge_lab.tasks import parse
from doge_lab.tasks.base import IGNORE
from doge_lab.tasks.sampled import bucket_of

SMALL = {"type": "recall", "n_pairs": [2, 4], "length": 24, "n_tokens": 32, "n_eval": 200}
HARD = {**SMALL, "length": 60, "n_stacks": 2, "noise": 0.3, "eval_length": 80, "eval_pairs": [3, 5]}


def data(task, seed=0, scored_on="validation"):
    return parse(task).data(seed=seed, scored_on=scored_on)


@pytest.mark.parametrize(
    ("task", "scored", "trained"),
    [
        ("recall", "15847fcb360bfdde", "a7ecbbe3eac194c8"),
        (SMALL, "4202c13dc0f74145", "ad0ce7031f4dda5b"),
        ({**SMALL, "filler": "blank", "distance_power": 1.0}, "e7f03f4202f9d56b", "8d2c0298c4854248"),
    ],
    ids=["defaults", "several sizes", "blank filler"],
)
def test_published_results_stand_on_these_sequences(task, scored, trained):
    held = data(task, seed=3, scored_on="test")
    batch = held.batch(5, 64)
    assert held.data_hash()[:16] == scored
    shown = hashlib.sha256(batch.inputs.numpy().tobytes() + batch.targets.numpy().tobytes())
    assert shown.hexdigest()[:16] == trained


def read(episode):
    """What follows the first place of every token: for a key, its value."""
    first = {}
    for place, token in enumerate(episode):
        first.setdefault(token, place)
    return {token: episode[place + 1] for token, place in first.items() if place + 1 < len(episode)}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_pairs=st.integers(1, 6),
    n_stacks=st.integers(1, 3),
    noise=st.sampled_from([0.0, 0.1, 0.5, 0.8]),
    room=st.integers(0, 9),
    power=st.sampled_from([0.01, 1.0]),
    filler=st.sampled_from(["random", "blank"]),
)
def test_every_query_is_answered_once_by_its_episode(seed, n_pairs, n_stacks, noise, room, power, filler):
    n_noise = round(2 * n_pairs * noise / (1 - noise))
    length = 4 * n_pairs + n_noise + room
    task = {"type": "recall", "n_pairs": [n_pairs], "length": n_stacks * length, "n_tokens": 40, "n_eval": 8}
    options = {"n_stacks": n_stacks, "noise": noise, "distance_power": power, "filler": filler}
    held = data({**task, **options}, seed=seed)
    for row, target in zip(held.inputs, held.targets, strict=True):
        keys = set(row[target != IGNORE])
        assert len(keys) == n_pairs
        for begin in range(0, len(row), length):
            episode, asked = row[begin : begin + length], target[begin : begin + length]
            assert np.isin(episode, list(keys)).sum() == 2 * n_pairs  # in a pair and in a query, nowhere else
            places = np.flatnonzero(asked != IGNORE)
            assert places.min() >= 2 * n_pairs + n_noise
            assert set(episode[places]) == keys
            known = read(episode)
            assert [known[token] for token in episode[places]] == list(asked[places])


def test_noise_stands_between_pairs_in_the_share_asked_for():
    held = data({**SMALL, "n_pairs": [4], "length": 40, "noise": 0.5, "filler": "blank"})
    told = held.inputs[:, :16]
    assert ((told == 0).sum(axis=1) == 8).all()
    key = (told > 0) & (told <= 15)
    assert (told[:, 1:][key[:, :-1]] > 15).all()  # a value follows each key at once
    begins = key.argmax(axis=1)
    assert {0, 1, 2} <= set(begins)  # noise before the first pair too


def test_a_second_episode_binds_the_same_keys_again_in_another_order():
    held = data({**SMALL, "n_pairs": [4], "length": 32, "n_stacks": 2})
    first, second = held.inputs[:, 0:8:2], held.inputs[:, 16:24:2]
    assert (np.sort(first) == np.sort(second)).all()
    assert (first != second).any(axis=1).mean() > 0.9
    same_value = (held.inputs[:, 1:8:2] == held.inputs[:, 17:24:2]).mean()
    assert same_value == pytest.approx(1 / 16, abs=0.04)
    assert {part["stack"] for part in held.evaluate(uniform(32))["slices"]} == {1, 2}


def test_scored_on_more_than_trained_on():
    task, held = parse(HARD), data(HARD)
    assert task.context == held.inputs.shape[1] == 80
    assert held.batch(0, 8).inputs.shape == (8, 60)
    assert set((held.targets != IGNORE).sum(axis=1)) == {6, 10}  # two episodes
    assert set((held.batch(0, 64).targets != IGNORE).sum(dim=1).tolist()) == {4, 8}
    assert {part["pairs"] for part in held.evaluate(uniform(32))["slices"]} == {3, 5}


def uniform(n_tokens):
    """A reader who knows which tokens are values."""

    def predict(inputs):
        logits = torch.full((*inputs.shape, n_tokens), -torch.inf)
        logits[..., n_tokens // 2 :] = 0
        return logits

    return predict


@pytest.mark.parametrize("task", [SMALL, HARD], ids=["plain", "hard"])
def test_knowing_the_values_of_an_episode_earns_the_guess(task):
    held, n_stacks = data(task), parse(task).n_stacks
    assert held.evaluate(uniform(32))["bits"] == pytest.approx(0, abs=1e-5)
    length = held.inputs.shape[1] // n_stacks

    def guesser(inputs):
        logits = torch.full((*inputs.shape, 32), -torch.inf)
        for row, tokens in enumerate(inputs.numpy()):
            target = held.targets[(held.inputs == tokens).all(axis=1)][0]
            for begin in range(0, len(tokens), length):
                asked = target[begin : begin + length]
                for value in asked[asked != IGNORE]:
                    here = logits[row, begin : begin + length, value]
                    logits[row, begin : begin + length, value] = torch.logaddexp(here, torch.tensor(0.0))
        return logits

    metrics = held.evaluate(guesser)
    assert metrics["bits"] == pytest.approx(metrics["guess_bits"], abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.4]), st.sampled_from([1, 2]))
def test_slices_count_tokens_from_a_pair_to_its_query(seed, noise, n_stacks):
    held = data({**HARD, "noise": noise, "n_stacks": n_stacks, "n_eval": 20}, seed=seed)
    length = held.inputs.shape[1] // n_stacks
    counts = dict.fromkeys([2**power for power in range(8)], 0)
    for row, place in np.argwhere(held.targets != IGNORE):
        begin = place // length * length
        pair = begin + list(held.inputs[row, begin:place]).index(held.inputs[row, place])
        edge = next(edge for edge in counts if edge >= place - pair)
        counts[edge] += 1
    for part in held.evaluate(uniform(32))["slices"]:
        counts[part["distance_to"]] -= part["answers"]
    assert set(counts.values()) == {0}


def test_a_fixed_training_set_is_shown_in_epochs():
    held = data({**SMALL, "n_train": 30})
    epochs = torch.cat([held.batch(step, 20).inputs for step in range(3)]).split(30)
    first, second = ([row.numpy().tobytes() for row in epoch] for epoch in epochs)
    assert sorted(first) == sorted(second)
    assert first != second  # another order
    assert (bucket_of(epochs[0].numpy()) >= 2).all()
    assert held.exposures(90) == 3
    assert parse({**SMALL, "n_train": 30}).n_rows == 30
    other = data({**SMALL, "n_train": 30}, scored_on="test")
    assert torch.equal(held.batch(4, 8).targets, other.batch(4, 8).targets)
    fresh = data(SMALL)
    assert fresh.exposures(90) == 1
    assert held.data_hash() == fresh.data_hash()


def test_a_smaller_training_set_is_part_of_a_larger_one():
    def sequences(n):
        return {row.numpy().tobytes() for row in data({**SMALL, "n_train": n}).batch(0, n).inputs}

    assert sequences(9) < sequences(300)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_stacks": 2}, "4 pairs need a length of at least 32, not 24"),
        ({"noise": 0.8}, "4 pairs need a length of at least 48, not 24"),
        ({"n_pairs": [2], "n_stacks": 5, "length": 42}, "42 tokens cannot be cut into 5 equal episodes"),
        ({"eval_length": 20}, "eval_length: 20 tokens are fewer than the 24 trained on"),
        ({"eval_pairs": [7]}, "eval_pairs: 7 pairs need a length of at least 28, not 24"),
        ({"eval_pairs": []}, "eval_pairs: give one number of pairs"),
        ({"eval_length": 99, "eval_pairs": [16]}, "16 pairs need 16 keys, but n_tokens=32 leaves 15"),
        ({"noise": 1}, "noise: input should be less than 1, not 1"),
        ({"n_train": 0}, "n_train: input should be greater than 0, not 0"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(changes, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        parse({**SMALL, **changes})
