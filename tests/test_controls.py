"""Exact controls: a model that learned a table by heart holds what is in the table, and of any other table nothing."""

import numpy as np
import pytest

from doge_lab.model import CausalLM, ModelConfig
from doge_lab.optim import TrainConfig
from doge_lab.strict import validate
from doge_lab.tasks import parse
from doge_lab.tasks.base import IGNORE
from doge_lab.tasks.biography import PRONOUN
from doge_lab.train import predictor, train

LAYERS = [{"repeat": 2, "sequence": {"type": "attention", "n_heads": 2}, "state": "mlp"}]
TABLE = {"type": "capacity", "n_entities": 32, "n_values": 4, "n_tokens": 16}
LIVES = {"type": "biography", "n_people": 6, "n_tokens": 2048}


def untrained(task):
    written = {"d_model": 24 if task.type == "biography" else 16, "vocab_size": task.vocab_size, "layers": LAYERS}
    return CausalLM.build(validate(ModelConfig, written)).eval()


def learned_by_heart(task, held, steps, batch_size):
    model = untrained(task)
    train(model, held, TrainConfig(steps=steps, batch_size=batch_size, lr=0.01))
    return predictor(model)


@pytest.fixture(scope="module", params=["chain", "query"])
def table(request):
    """A table of 32·4·log2(16) = 512 bits, and a model that learned it."""
    task = parse({**TABLE, "format": request.param})
    held = task.data(seed=0, scored_on="test")
    return task, held, learned_by_heart(task, held, 400, 32 if request.param == "chain" else 64)


def test_what_is_known_by_heart_is_worth_the_tables_entropy(table):
    _, held, model = table
    metrics = held.evaluate(model)
    assert 0.98 * 512 < metrics["bits"] <= metrics["max_bits"] == 512
    assert metrics["accuracy"] == 1
    assert metrics["saturated"]


@pytest.mark.parametrize(("seed", "scored_on"), [(1, "test"), (2, "test"), (0, "validation")])
def test_fresh_names_give_no_bits(table, seed, scored_on):
    task, _, model = table
    assert task.data(seed=seed, scored_on=scored_on).evaluate(model)["bits"] <= 0


def test_shuffled_names_give_no_bits(table):
    task, _, model = table
    shuffled = task.data(seed=0, scored_on="test")
    per_entity = task.n_rows // len(shuffled.names)
    names = np.roll(shuffled.names, 1, axis=0).repeat(per_entity, axis=0)
    shuffled.inputs = np.concatenate([names, shuffled.inputs[:, task.n_name_tokens :]], axis=1)
    assert shuffled.evaluate(model)["bits"] <= 0


def test_half_a_table_by_heart_is_worth_half(table):
    task, held, model = table
    half = task.data(seed=0, scored_on="test")
    half.inputs, half.targets = (part[: len(part) // 2] for part in (held.inputs, held.targets))
    earned = sum(part["bits"] for part in half.evaluate(model)["slices"])
    assert earned == pytest.approx(256, rel=0.02)


def test_an_untrained_model_knows_nothing(table):
    task, held, _ = table
    assert held.evaluate(predictor(untrained(task)))["bits"] <= 0


@pytest.fixture(scope="module", params=["values", "text"])
def lives(request):
    task = parse({**LIVES, "loss": request.param})
    held = task.data(seed=0, scored_on="test")
    return task, held, learned_by_heart(task, held, 300, 6)


def test_lives_by_heart_are_worth_what_is_in_them(lives):
    task, held, model = lives
    metrics = held.evaluate(model)
    assert 0.98 * metrics["max_bits"] < metrics["bits"] <= metrics["max_bits"] == 6 * task.bits_per_entry
    assert metrics["accuracy"] > 0.95
    if task.loss == "text":  # names too are worth no more than log2(N0/N) each
        assert 0.98 * metrics["max_bound_bits"] < metrics["bound_bits"] <= metrics["max_bound_bits"]


def test_other_lives_and_an_untrained_model_give_no_bits(lives):
    task, held, model = lives
    assert task.data(seed=1, scored_on="test").evaluate(model)["bits"] <= 0
    assert held.evaluate(predictor(untrained(task)))["bits"] <= 0


def test_facts_shuffled_among_people_give_no_bits(lives):
    """Each attribute by itself: of whole lives exchanged, the first value would tell whose they are."""
    task, held, model = lives
    shuffled = task.data(seed=0, scored_on="test")
    for attribute, shift in enumerate((1, 2, 3, 4, 5, 5)):  # who works where follows from for whom
        shuffled.facts[:, attribute] = np.roll(held.facts[:, attribute], shift, axis=0)
    shuffled.inputs, targets, shuffled.tells = shuffled._render(np.arange(6), -1)
    shuffled.targets = np.where(shuffled.tells < PRONOUN, targets, IGNORE)
    metrics = shuffled.evaluate(model)
    assert sum(part["bits"] for part in metrics["slices"] if part["value"] != "pronoun") <= 0
