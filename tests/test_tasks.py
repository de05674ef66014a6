"""Tasks: answers are recoverable, splits are apart, zero bits is chance, everything follows from the seed."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_lab.errors import UserError
from doge_lab.tasks import get, names, parse
from doge_lab.tasks.base import IGNORE
from doge_lab.tasks.sampled import bucket_of

CAPACITY = {"type": "capacity", "n_entities": 50, "n_values": 3, "n_tokens": 16}
RECALL = {"type": "recall", "n_pairs": [2, 4], "length": 24, "n_tokens": 32, "n_eval": 200}
PLAYGROUND = [
    {"type": "depo", "n_nodes": 6, "hops": [1, 3], "n_tokens": 12, "n_eval": 100},
    {"type": "mano", "operations": [2, 3], "modulus": 11, "n_eval": 100},
]
TASKS = [
    *PLAYGROUND,
    CAPACITY,
    {**CAPACITY, "format": "query"},
    RECALL,
    {**RECALL, "filler": "blank", "distance_power": 1.0},
    {"type": "biography", "n_people": 50},
    {"type": "biography", "n_people": 50, "tokeniser": "byte", "renderings": 1, "loss": "values"},
    {"type": "multihop", "n_entities": 8, "n_relations": 4, "hops": [2, 3]},
    {**RECALL, "n_stacks": 2, "length": 48, "noise": 0.3, "n_train": 50},
    {"type": "mad_recall", "n_tokens": 8, "length": 24, "n_eval": 100, "n_train": None},
    {"type": "mad_fuzzy_recall", "n_tokens": 8, "length": 40, "n_eval": 100, "n_train": 70},
    {"type": "mad_noisy_recall", "n_tokens": 20, "length": 40, "n_eval": 100, "n_train": 70},
    {"type": "mad_selective_copy", "length": 24, "n_copy": 6, "n_eval": 100, "n_train": 70},
    {"type": "mad_compression", "length": 8, "n_eval": 100, "n_train": 70},
    {"type": "mad_memorisation", "n_tokens": 64},
]


def data(task, seed=0, scored_on="validation"):
    return parse(task).data(seed=seed, scored_on=scored_on)


def uniform(n_tokens, low=0):
    """A reader who knows only which tokens can be answers."""

    def predict(inputs):
        logits = torch.full((*inputs.shape, n_tokens), -torch.inf)
        logits[..., low:n_tokens] = 0
        return logits

    return predict


def sure_of(answers, n_tokens):
    """Logits of a reader who is sure of `answers` [B, T]."""
    return 100.0 * torch.nn.functional.one_hot(answers.clamp(min=0), n_tokens)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_batches_follow_from_seed_and_step(task):
    first, again, other = data(task), data(task), data(task, seed=1)
    for step in (7, 0):  # in any order
        assert torch.equal(first.batch(step, 20).inputs, again.batch(step, 20).inputs)
        assert not torch.equal(first.batch(step, 20).inputs, other.batch(step, 20).inputs)
    assert first.data_hash() == again.data_hash() != other.data_hash()


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_tokens_fit_the_vocabulary_and_the_context(task):
    task_, held = parse(task), data(task)
    batch = held.batch(0, 64)
    assert batch.inputs.shape == batch.targets.shape == (64, task_.context)
    assert batch.inputs.min() >= 0
    assert max(batch.inputs.max(), batch.targets.max()) < task_.vocab_size


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_an_oracle_earns_every_bit(task):
    task_, held = parse(task), data(task)
    known = {row.tobytes(): torch.from_numpy(answer) for row, answer in zip(held.inputs, held.targets, strict=True)}

    def oracle(inputs):
        return sure_of(torch.stack([known[row.numpy().tobytes()] for row in inputs]), task_.vocab_size)

    metrics = held.evaluate(oracle)
    assert metrics["bits"] == pytest.approx(metrics["max_bits"])
    assert metrics["accuracy"] == 1


@pytest.mark.parametrize("format", ["chain", "query"])
def test_chance_is_zero_bits_of_knowledge(format):
    metrics = data({**CAPACITY, "format": format}).evaluate(uniform(16 if format == "chain" else 19))
    expected = 0 if format == "chain" else 150 * (4 - math.log2(19))
    assert metrics["bits"] == pytest.approx(expected, abs=1e-2)
    assert metrics["max_bits"] == 50 * 3 * 4
    assert sum(part["bits"] for part in metrics["slices"]) == pytest.approx(metrics["bits"], abs=1e-6)


def test_a_reader_sure_of_wrong_facts_loses_bits():
    held = data(CAPACITY)
    assert held.evaluate(lambda inputs: 5 * sure_of(inputs, 16))["bits"] < -1000


def test_the_name_alone_determines_the_values():
    held = data(CAPACITY)
    assert len({row.tobytes() for row in held.names}) == len(held.names) == 50
    query = data({**CAPACITY, "format": "query"})
    asked = {row.tobytes(): target[-1] for row, target in zip(query.inputs, query.targets, strict=True)}
    for name, values in zip(query.names, query.values, strict=True):
        for index, value in enumerate(values):
            assert asked[np.array([*name, 16 + index]).tobytes()] == value


@pytest.mark.parametrize(
    ("task", "scored", "trained"),
    [
        ("capacity", "5aff6e6d205592e8", "21153a3992631eca"),
        (CAPACITY, "6c297f917c373949", "288f83ec72acf414"),
        ({**CAPACITY, "format": "query"}, "0eb8a802e2cdc760", "00c892f832a8eb02"),
    ],
    ids=["defaults", "chain", "query"],
)
def test_published_results_stand_on_these_tables(task, scored, trained):
    held = data(task, seed=3, scored_on="test")
    batch = held.batch(5, 64)
    assert held.data_hash()[:16] == scored
    shown = hashlib.sha256(batch.inputs.numpy().tobytes() + batch.targets.numpy().tobytes())
    assert shown.hexdigest()[:16] == trained


def test_an_epoch_shows_every_fact_once():
    held = data(CAPACITY)
    rows = torch.cat([held.batch(step, 10).inputs for step in range(5)])
    assert len({row.numpy().tobytes() for row in rows}) == 50
    assert held.exposures(100) == 2


def test_validation_and_test_are_different_tables():
    assert data(CAPACITY).data_hash() != data(CAPACITY, scored_on="test").data_hash()


def test_an_auto_sized_table_is_more_than_the_model_can_hold():
    sized = parse({"type": "capacity", "n_entities": "auto"}).sized_for(20_000)
    assert sized.n_entities * sized.bits_per_entry == pytest.approx(2.8 * 20_000, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_pairs=st.integers(1, 8),
    room=st.integers(0, 20),
    filler=st.sampled_from(["random", "blank"]),
)
def test_recall_sequences_are_well_formed(seed, n_pairs, room, filler):
    task = {"type": "recall", "n_pairs": [n_pairs], "length": 4 * n_pairs + room, "n_tokens": 40, "n_eval": 16}
    held = data({**task, "filler": filler}, seed=seed)
    for row, target in zip(held.inputs, held.targets, strict=True):
        keys, values = row[: 2 * n_pairs : 2], row[1 : 2 * n_pairs : 2]
        assert len(set(keys)) == n_pairs
        answer = dict(zip(keys, values, strict=True))
        asked = np.flatnonzero(target != IGNORE)
        assert sorted(row[asked]) == sorted(keys)  # every key once, and nowhere else:
        assert np.isin(row[2 * n_pairs :], keys).sum() == n_pairs
        assert all(answer[row[place]] == target[place] for place in asked)


def test_recall_splits_share_no_sequence():
    validation, test = data(RECALL), data(RECALL, scored_on="test")
    train = np.concatenate([validation.batch(step, 64).inputs.numpy() for step in range(20)])
    assert (bucket_of(validation.inputs) == 0).all()
    assert (bucket_of(test.inputs) == 1).all()
    assert (bucket_of(train) >= 2).all()


def test_recall_buckets_are_even():
    rows = np.random.default_rng(0).integers(0, 64, size=(32_000, 24))
    counts = np.bincount(bucket_of(rows), minlength=16)
    assert counts.min() > 1_800
    assert counts.max() < 2_200


def test_a_guesser_among_the_values_in_context_earns_the_drawn_line():
    task, held = parse(RECALL), data(RECALL)

    def guesser(inputs):
        logits = torch.full((*inputs.shape, task.vocab_size), -torch.inf)
        for row, tokens in enumerate(inputs):
            pairs = int((held.targets[(held.inputs == tokens.numpy()).all(axis=1)][0] != IGNORE).sum())
            for value in tokens[1 : 2 * pairs : 2]:
                # one that stands for two keys is twice as likely
                logits[row, :, value] = torch.logaddexp(logits[row, :, value], torch.tensor(0.0))
        return logits

    metrics = held.evaluate(guesser)
    assert metrics["bits"] == pytest.approx(metrics["guess_bits"], abs=1e-4)


def test_recall_chance_is_zero_and_slices_add_up():
    task, held = parse(RECALL), data(RECALL)
    metrics = held.evaluate(uniform(32, low=task.n_tokens - task.n_values))
    assert metrics["bits"] == pytest.approx(0, abs=1e-5)
    assert metrics["max_bits"] == pytest.approx(4 * 3, rel=0.1)
    assert sum(part["answers"] for part in metrics["slices"]) == (held.targets != IGNORE).sum()
    assert {part["pairs"] for part in metrics["slices"]} == {2, 4}


def test_power_one_spreads_queries_evenly_and_a_small_power_keeps_them_near():
    def slots(power):
        held = data({**RECALL, "n_pairs": [2], "length": 44, "distance_power": power, "n_eval": 2000})
        return np.bincount((np.nonzero(held.targets != IGNORE)[1] - 4) // 2, minlength=20)

    even, near = slots(1.0), slots(0.01)
    assert even.max() < 1.3 * even.min()
    assert near[0] > 5 * near[10] > 0


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("capasity", "no task is named 'capasity'; did you mean 'capacity'?"),
        ({"type": "capacity", "n_entitys": 3}, "unknown option 'n_entitys'; did you mean 'n_entities'?"),
        ({"type": "capacity", "n_entities": 5000, "n_tokens": 16}, "make only 256"),
        ({"type": "recall", "n_pairs": [9]}, "9 pairs need a length of at least 36, not 32"),
        ({"type": "recall", "n_pairs": []}, "give one number of pairs"),
        ({"type": "recall", "n_pairs": [7], "n_tokens": 12, "length": 40}, "leaves 5"),
    ],
)
def test_a_task_that_cannot_be_is_refused(task, message):
    with pytest.raises((UserError, ValueError), match=message.replace("?", r"\?")):
        parse(task)


def test_sequences_too_few_to_split_are_refused():
    few = {"type": "recall", "n_pairs": [1], "length": 5, "n_tokens": 8, "filler": "blank"}
    with pytest.raises(UserError, match="too few different sequences to keep test apart"):
        data(few, scored_on="test")


def test_every_task_is_drawn_in_its_docstring():
    for name in names():
        module = __import__(get(name).__module__, fromlist=["x"])
        assert "\n    " in module.__doc__
        assert "Source: " in module.__doc__
