"""Multihop: what is scored follows from stored facts, is never trained, and is uniform to who does not know them."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from doge_lab.errors import UserError
from doge_lab.tasks import parse
from doge_lab.tasks.base import IGNORE

HOPS = {"type": "multihop", "n_entities": 8, "n_relations": 4, "hops": [2, 3], "trained_share": 0.7}
PAD = 12


def data(task=HOPS, seed=0, scored_on="test"):
    return parse(task).data(seed=seed, scored_on=scored_on)


def follower(table, sure=100.0):
    """Knows the one-hop facts alone, and takes the hops one by one; at every relation says where it is."""

    def predict(inputs):
        logits = torch.zeros((*inputs.shape, PAD + 1))
        for row, (entity, *relations) in enumerate(inputs.tolist()):
            for place, relation in enumerate(relations, start=1):
                if relation != PAD:
                    entity = table[relation - 8, entity]
                    logits[row, place, entity] = sure
        return logits

    return predict


def uniform(inputs):
    logits = torch.full((*inputs.shape, PAD + 1), -torch.inf)
    logits[..., :8] = 0
    return logits


def trained_rows(held, epoch=0):
    inputs, targets = held.rows(np.arange(held.n_rows), epoch)
    return {tuple(row) for row in inputs.tolist()}, targets


def test_a_reader_of_one_hop_facts_alone_earns_every_bit():
    held = data()
    metrics = held.evaluate(follower(held.table))
    assert metrics["accuracy"] == 1
    assert metrics["bits"] == pytest.approx(metrics["max_bits"])
    assert metrics["stored_bits"] == pytest.approx(8 * 4 * 3)
    assert metrics["trained_bits"] == pytest.approx(3 * (round(0.7 * 96) + round(0.7 * 192)))
    assert metrics["max_bits"] == pytest.approx(3 * (96 + 192) - metrics["trained_bits"])


def test_a_reader_who_knows_only_the_entities_earns_nothing():
    metrics = data().evaluate(uniform)
    assert all(metrics[name] == pytest.approx(0, abs=1e-3) for name in ("bits", "stored_bits", "trained_bits"))
    assert all(part["bits"] == pytest.approx(0, abs=1e-3) for part in metrics["slices"])


def test_a_reader_who_knows_where_paths_end_but_not_where_they_begin_earns_the_guess():
    held = data()
    ends = {}
    for row, target in zip(held.inputs, held.targets, strict=True):
        ends.setdefault(tuple(row[1:]), []).append(target.max())

    def guesser(inputs):
        logits = torch.full((*inputs.shape, PAD + 1), -torch.inf)
        for row, tokens in enumerate(inputs.tolist()):
            counts = np.bincount(ends[tuple(tokens[1:])], minlength=PAD + 1)
            logits[row] = torch.from_numpy(np.log(counts, where=counts > 0, out=np.full(PAD + 1, -np.inf)))
        return logits

    metrics = held.evaluate(guesser)
    assert 0 < metrics["guess_bits"] < metrics["max_bits"]
    for part in (metrics, *metrics["slices"]):
        assert part["bits"] == pytest.approx(part["guess_bits"], abs=1e-3)


@pytest.mark.parametrize(("n_entities", "n_relations", "hops"), [(2, 2, 2), (2, 3, 3), (3, 2, 2)])
def test_over_all_tables_answers_are_exactly_uniform(n_entities, n_relations, hops):
    task = {"type": "multihop", "n_entities": n_entities, "n_relations": n_relations, "hops": [hops]}
    held, counts, twice = data(task), 0, np.zeros(n_entities, dtype=int)
    for table in product(range(n_entities), repeat=n_entities * n_relations):
        held.table = np.array(table).reshape(n_relations, n_entities)
        _, targets = held._questions(hops)
        counts = counts + np.eye(n_entities, dtype=int)[targets[:, hops]]
        twice[held.table[0, held.table[0, 0]]] += 1
    assert (counts == counts[0, 0]).all()  # of every question
    assert twice[0] > twice[1]  # one relation twice, which is no question, returns too often


def test_a_reader_of_another_table_loses_bits():
    metrics = data().evaluate(follower(data(seed=1).table, sure=5.0))
    assert metrics["bits"] < -100
    assert metrics["accuracy"] < 0.35


def test_a_reader_who_learned_trained_rows_by_heart_earns_nothing_on_the_others():
    held = data()
    inputs, targets = held.rows(np.arange(held.n_rows), 0)
    known = dict(zip(map(bytes, inputs), targets, strict=True))

    def by_heart(asked):
        logits = uniform(asked)
        for row, tokens in enumerate(asked.numpy()):
            for place, answer in enumerate(known.get(bytes(tokens), [])):
                if answer != IGNORE:
                    logits[row, place, answer] = 100
        return logits

    metrics = held.evaluate(by_heart)
    assert metrics["bits"] == pytest.approx(0, abs=1e-3)
    assert metrics["stored_bits"] == pytest.approx(96)
    assert [(part["hops"], part["questions"], part["accuracy"] == 1) for part in metrics["slices"]] == [
        (1, "trained", True),
        (2, "trained", True),
        (2, "held out", False),
        (3, "trained", True),
        (3, "held out", False),
    ]


def test_no_epoch_shows_a_question_that_is_held_out():
    held = data()
    every = {tuple(row) for row in held.inputs.tolist()}
    assert len(every) == len(held.inputs) == 8 * (4 + 4 * 3 + 4 * 3 * 2)
    held_out = {tuple(row) for row in held.inputs[held.n_rows :].tolist()}
    steps = -(-held.n_rows // 10)
    shown = {tuple(row) for step in range(steps) for row in held.batch(step, 10).inputs.tolist()}
    assert shown == every - held_out
    one_hop = {row for row in every if row[2] == PAD}
    assert len(one_hop) == 32
    assert one_hop <= shown
    assert held.exposures(2 * held.n_rows) == 2


def test_relations_of_a_path_differ_and_the_answer_is_asked_at_the_last():
    held = data()
    for row, target in zip(held.inputs.tolist(), held.targets, strict=True):
        path = [token for token in row[1:] if token != PAD]
        assert len(set(path)) == len(path)
        assert 0 <= row[0] < 8 <= min(path) <= max(path) < PAD
        assert np.flatnonzero(target != IGNORE).tolist() == [len(path)]


@pytest.mark.parametrize("question", [[0, 8, PAD, PAD], [0, 8, 9, PAD], [3, 10, 9, 11]], ids=str)
def test_over_tables_every_entity_answers_a_question_equally_often(question):
    answers = []
    for seed in range(800):
        held = data(seed=seed)
        (row,) = np.flatnonzero((held.inputs == question).all(axis=1))
        answers.append(held.targets[row].max())
    counts = np.bincount(answers, minlength=8)
    assert len(counts) == 8
    assert stats.chisquare(counts).pvalue > 0.001


def test_which_questions_are_held_out_depends_on_the_seed_and_the_split():
    parts = [data(seed=seed, scored_on=split) for seed in (0, 1) for split in ("validation", "test")]
    assert len({held.data_hash() for held in parts}) == 4
    assert len({frozenset(trained_rows(held)[0]) for held in parts}) == 4


def test_nothing_composed_may_be_trained():
    held = data({**HOPS, "trained_share": 0})
    assert held.n_rows == 32
    metrics = held.evaluate(follower(held.table))
    assert metrics["trained_bits"] == 0
    assert metrics["bits"] == pytest.approx(3 * (96 + 192))


def test_something_is_always_held_out():
    held = data({**HOPS, "trained_share": 0.9999, "hops": [2]})
    assert len(held.inputs) - held.n_rows == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hops": [5]}, "hops: 5 hops take different relations, and there are 4; raise n_relations"),
        ({"hops": [1, 2]}, "hops: give one number of hops or several different ones, each at least 2"),
        ({"hops": []}, "hops: give one"),
        ({"hops": [2, 2]}, "hops: give one"),
        ({"trained_share": 1}, "trained_share: input should be less than 1"),
        ({"n_entities": 100_000, "n_relations": 12}, "n_entities: that makes 145200000 questions; at most 10000000"),
    ],
)
def test_a_table_that_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        parse({**HOPS, **options})
