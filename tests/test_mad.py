"""MAD's tasks: readers of the input alone earn every bit, chance is zero bits, ladders change one thing at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from doge_lab.errors import UserError
from doge_lab.tasks import parse, rungs
from doge_lab.tasks.base import IGNORE
from doge_lab.tasks.mad_pairs import distinct
from doge_lab.tasks.sampled import bucket_of

PAIRS = [
    {"type": "mad_recall", "n_tokens": 8, "length": 24},
    {"type": "mad_fuzzy_recall", "n_tokens": 8, "length": 40},
    {"type": "mad_noisy_recall", "n_tokens": 12, "n_noise_tokens": 4, "length": 40},
]
COPIES = [
    {"type": "mad_selective_copy", "n_tokens": 8, "length": 20, "n_copy": 4},
    {"type": "mad_compression", "n_tokens": 8, "length": 6},
]
SAMPLED = [{**task, "n_eval": 150, "n_train": 40} for task in PAIRS + COPIES]
MEMORISED = {"type": "mad_memorisation", "n_tokens": 64, "length": 10}


def data(task, seed=0, scored_on="test"):
    return parse(task).data(seed=seed, scored_on=scored_on)


def read_pairs(tokens, form):
    """After each token: the value token to come, if the key was seen before and its value goes on; else None."""
    values = range(form.n_keys, form.n_keys + form.n_values)
    book, key, value, expected = {}, (), [], []
    for token in tokens:
        if token in values:
            value.append(token)
        else:
            if value:  # a value is over when anything else comes
                book.setdefault(key, value)
                key, value = (), []
            key = (*key, token) if token < form.n_keys else ()
        known = book.get(key, [])
        expected.append(known[len(value)] if len(value) < len(known) else None)
    return expected


def read_copies(task, tokens):
    """As `read_pairs`, of the two tasks that tell a sequence back."""
    if task.type == "mad_compression":
        return [None if token <= task.n_tokens else tokens[token - task.n_tokens - 1] for token in tokens]
    left = [token for token in tokens if token > 1]
    return [left.pop(0) if token == 1 else None for token in tokens]


def read(task, tokens):
    return read_pairs(tokens, task.form) if hasattr(task, "form") else read_copies(task, tokens)


def reader(task):
    def predict(inputs):
        logits = torch.zeros((*inputs.shape, task.vocab_size))
        for row, tokens in enumerate(inputs.tolist()):
            for place, answer in enumerate(read(task, tokens)):
                if answer is not None:
                    logits[row, place, answer] = 100
        return logits

    return predict


@pytest.mark.parametrize("task", SAMPLED, ids=lambda task: task["type"])
def test_a_reader_of_the_input_alone_earns_every_bit(task):
    held = data(task)
    metrics = held.evaluate(reader(held.task))
    assert metrics["bits"] == pytest.approx(metrics["max_bits"])
    assert metrics["accuracy"] == 1
    assert metrics["max_bits"] == pytest.approx(
        (held.targets != IGNORE).sum() / len(held.inputs) * math.log2(held.task.n_values)
    )
    assert 0 < metrics["guess_bits"] < metrics["max_bits"]
    assert sum(part["answers"] for part in metrics["slices"]) == (held.targets != IGNORE).sum()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_tokens=st.integers(4, 20),
    length=st.integers(30, 60),
    motif=st.integers(1, 4),
    noise=st.sampled_from([0.0, 0.3, 0.6]),
)
def test_values_are_asked_from_the_second_time_on(seed, n_tokens, length, motif, noise):
    fuzzy = {"type": "mad_fuzzy_recall", "n_tokens": n_tokens, "length": length, "motif": motif}
    noisy = {"type": "mad_noisy_recall", "n_tokens": n_tokens + 3, "n_noise_tokens": 3, "length": length}
    for task in (fuzzy, {**noisy, "noise": noise}):
        try:
            parse(task)
        except UserError:  # too short for keys to come back
            continue
        held = data({**task, "n_eval": 6}, seed=seed)
        form = held.task.form
        for row, target in zip(held.inputs, held.targets, strict=True):
            values = (row >= form.n_keys) & (row < form.n_keys + form.n_values)
            known = read_pairs(row.tolist(), form)
            for place in range(length - 1):
                asked = known[place] is not None and values[place + 1]
                assert target[place] == (known[place] if asked else IGNORE)
            assert target[-1] in (known[-1], IGNORE)


@pytest.mark.parametrize("task", SAMPLED, ids=lambda task: task["type"])
def test_chance_is_zero_bits(task):
    held = data(task)
    answers = held.targets[held.targets != IGNORE]
    values = np.unique(answers)
    assert len(values) == held.task.n_values

    def uniform(inputs):
        logits = torch.full((*inputs.shape, held.task.vocab_size), -torch.inf)
        logits[..., torch.from_numpy(values)] = 0
        return logits

    assert held.evaluate(uniform)["bits"] == pytest.approx(0, abs=1e-4)


def first_answers(held):
    """Answers, of pairs only the first about each key: they are asked again and again."""
    for row, target in zip(held.inputs, held.targets, strict=True):
        seen = set()
        for place in np.flatnonzero(target != IGNORE):
            if row[place] not in seen or not hasattr(held.task, "form"):
                yield target[place]
            seen.add(row[place])


@pytest.mark.parametrize("task", [SAMPLED[0], *SAMPLED[2:]], ids=lambda task: task["type"])
def test_answers_are_uniform_and_do_not_tell_of_each_other(task):
    held = data({**task, "n_eval": 1000})
    told = np.array(list(first_answers(held)))
    assert stats.chisquare(np.unique(told, return_counts=True)[1]).pvalue > 1e-3
    together = np.zeros((held.task.n_values, held.task.n_values))
    np.add.at(together, (told[:-1:2] - told.min(), told[1::2] - told.min()), 1)
    assert stats.chi2_contingency(together).pvalue > 1e-3


@pytest.mark.parametrize("task", SAMPLED, ids=lambda task: task["type"])
def test_guess_bits_are_what_knowing_the_values_earns(task):
    held = data(task)
    earned = 0.0
    for row, target in zip(held.inputs.tolist(), held.targets.tolist(), strict=True):
        shown = [] if hasattr(held.task, "form") else [token for token in target if token != IGNORE]
        for place, answer in enumerate(target):
            if hasattr(held.task, "form"):
                value = 0 <= row[place] - held.task.form.n_keys < held.task.n_values
                if value and (place == 0 or target[place - 1] == IGNORE):
                    shown.append(row[place])
            if answer != IGNORE:
                earned += math.log2(held.task.n_values * shown.count(answer) / len(shown))
    metrics = held.evaluate(lambda inputs: torch.zeros((*inputs.shape, held.task.vocab_size)))
    assert metrics["guess_bits"] == pytest.approx(earned / len(held.inputs))


@pytest.mark.parametrize("task", SAMPLED, ids=lambda task: task["type"])
def test_the_training_set_is_fixed_and_apart_from_what_is_scored(task):
    held, validation = data(task), data(task, scored_on="validation")
    epochs = torch.cat([held.batch(step, 20).inputs for step in range(4)]).numpy().reshape(2, 40, -1)
    first, second = ({row.tobytes() for row in epoch} for epoch in epochs)
    assert first == second
    assert (bucket_of(epochs[0]) >= 2).all()
    assert (bucket_of(held.inputs) == 1).all()
    assert (bucket_of(validation.inputs) == 0).all()


def test_noise_has_the_share_asked_for_and_keys_all_lengths():
    noisy = data({"type": "mad_noisy_recall", "noise": 0.4, "n_eval": 300})
    assert (noisy.inputs >= 16).mean() == pytest.approx(0.4, abs=0.01)
    fuzzy = data({"type": "mad_fuzzy_recall", "n_tokens": 12, "n_eval": 300})
    key = fuzzy.inputs < 6
    runs = np.diff(np.flatnonzero(np.diff(np.pad(key, ((0, 0), (1, 1))).ravel().astype(int))))[::2]
    shares = np.bincount(runs, minlength=4)[1:4] / len(runs)
    assert shares == pytest.approx(np.full(3, 1 / 3), abs=0.03)


@pytest.mark.parametrize(("n", "total"), [(3, 3), (3, 5), (1, 4)])
def test_distinct_numbers_are_different_and_every_set_is_as_likely(n, total):
    drawn = np.sort(distinct(np.random.default_rng(0), 6000, n, total), axis=1)
    assert (np.diff(drawn, axis=1) > 0).all()
    sets, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(sets) == math.comb(total, n)
    assert len(sets) == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_a_map_is_shown_once_an_epoch_and_stands_in_no_input():
    held = data(MEMORISED)
    task = held.task
    assert (task.n_keys, task.n_values, task.n_rows) == (31, 32, 7)
    for epoch in range(2):
        batch = held.batch(epoch, 7)
        asked = batch.targets != IGNORE
        keys = batch.inputs[:, ::2][asked[:, 1::2]]
        assert sorted(keys.tolist()) == list(range(1, 32))
        assert batch.inputs.max() <= task.n_keys  # no value
        assert (batch.inputs[asked] == 0).all()
        assert (batch.targets[asked].numpy() == 32 + held.values[keys.numpy() - 1]).all()
    assert not torch.equal(held.batch(0, 7).inputs, held.batch(1, 7).inputs)
    assert held.exposures(21) == 3
    assert not np.array_equal(held.values, data(MEMORISED, scored_on="validation").values)
    many = data({**MEMORISED, "n_tokens": 4001}).values
    assert len(np.unique(many)) == pytest.approx(2000 * (1 - 1 / math.e), rel=0.05)  # no permutation


def test_a_reader_of_the_map_earns_every_bit_and_chance_none():
    held = data(MEMORISED)

    def knowing(inputs):
        key = torch.nn.functional.pad(inputs, (1, 0))[:, :-1]
        value = 32 + torch.from_numpy(held.values)[(key - 1).clamp(min=0)]
        return 100.0 * torch.nn.functional.one_hot(value, 64)

    metrics = held.evaluate(knowing)
    assert metrics["bits"] == pytest.approx(metrics["max_bits"]) == pytest.approx(31 * 5)
    assert metrics["accuracy"] == 1
    assert metrics["saturated"]

    def uniform(inputs):
        logits = torch.full((*inputs.shape, 64), -torch.inf)
        logits[..., 32:] = 0
        return logits

    assert held.evaluate(uniform)["bits"] == pytest.approx(0, abs=1e-4)


def test_a_ladder_of_a_smaller_task_leaves_its_own_rung_out():
    smaller = parse({"type": "mad_recall", "name": "mine", "n_tokens": 32})
    assert [rung.label for rung in rungs(smaller)][:2] == ["mine", "mine n_tokens=64"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"type": "mad_recall", "length": 8}, "length: in 8 tokens too few keys come back to be asked; raise length"),
        ({"type": "mad_recall", "n_tokens": 3}, "n_tokens: input should be greater than or equal to 4, not 3"),
        ({"type": "mad_fuzzy_recall", "motif": 40, "length": 4000}, "motif: motifs of 40 tokens are more than can be"),
        ({"type": "mad_noisy_recall", "n_tokens": 18}, "n_tokens: too few tokens are left for two keys"),
        ({"type": "mad_noisy_recall", "noise": 0.97}, "length: in 128 tokens too few keys"),
        ({"type": "mad_selective_copy", "length": 20}, "n_copy: 16 tokens and as many marks need a length of at least"),
        ({"type": "mad_memorisation", "length": 7}, "length: input should be a multiple of 2, not 7"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(task, message):
    with pytest.raises(UserError, match=message):
        parse(task)
