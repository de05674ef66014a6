"""Biographies: the language is exact, facts are worth what is written, and nothing else earns bits."""

import math
from itertools import pairwise

import numpy as np
import pytest
from biography_reader import Reader, believer, ignorant

from doge_lab.errors import UserError
from doge_lab.tasks import parse, prose
from doge_lab.tasks.base import IGNORE
from doge_lab.tasks.biography import EMPLOYER, N_NAMES, PRONOUN
from doge_lab.tasks.prose import HEADQUARTERS, TEMPLATES, VALUES
from doge_lab.tasks.tokenisers import SentencePiece

LIVES = {"type": "biography", "n_people": 40}
FORMS = [
    LIVES,
    {**LIVES, "tokeniser": "byte"},
    {**LIVES, "subject": "name"},
    {**LIVES, "renderings": 2, "permuted": False, "n_tokens": 4096, "loss": "values"},
]


def data(task, seed=0, scored_on="test"):
    return parse(task).data(seed=seed, scored_on=scored_on)


def texts(held, targets):
    return [held.task.language.tokeniser.decode(row[row != IGNORE].tolist()) for row in targets]


def table_of(held):
    """Name tokens -> place of each value in its list, read off the table."""
    language = held.task.language
    pieces = [*held.facts[:, 0].T, *held.facts[:, 1:5, 0].T, held.pronouns]
    places = np.stack([piece - language.first[name] for name, piece in zip(VALUES, pieces, strict=True)], axis=1)
    names = [tuple(np.concatenate([language.pieces.tokens(part) for part in parts]).tolist()) for parts in held.people]
    return {name: dict(zip(VALUES, row, strict=True)) for name, row in zip(names, places.tolist(), strict=True)}


def test_a_person_is_worth_what_was_published():
    assert parse(LIVES).bits_per_entry == pytest.approx(math.log2(2 * 12 * 28 * 200 * 200 * 300 * 100 * 263))
    assert round(parse(LIVES).bits_per_entry, 1) == 47.6
    assert round(parse({**LIVES, "subject": "name"}).bits_per_entry, 1) == 46.6
    assert len(prose.FIRST_NAMES) * len(prose.MIDDLE_NAMES) * len(prose.LAST_NAMES) // 2 == N_NAMES


def test_no_value_and_no_beginning_of_a_template_begins_another():
    befores = [template.split("{}")[0] for templates in TEMPLATES.values() for template in templates]
    for words in (*VALUES.values(), prose.FIRST_NAMES, prose.MIDDLE_NAMES, prose.LAST_NAMES, befores):
        ordered = sorted(words)
        assert not any(after.startswith(before) for before, after in pairwise(ordered))
        assert all(word.startswith(" ") and "." not in word for word in words)
    for template in (template for templates in TEMPLATES.values() for template in templates):
        assert template.count("{}") == 1
        assert template.index(".") == len(template) - 1


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_reader_of_the_language_who_knows_nobody_earns_nothing(form):
    held = data(form)
    reader = Reader(held.task, ignorant, prose.LAST_NAMES[1::2])
    paid = {}
    for row, tokens in enumerate(held.inputs.tolist()):
        for place, chances in reader.walk(tokens):
            if held.tells[row, place] <= PRONOUN and held.targets[row, place] != IGNORE:
                told = int(held.tells[row, place])
                paid[told] = paid.get(told, 0) - math.log2(chances[int(held.targets[row, place])])
    for told, size in enumerate(held.task.sizes):  # of every value, not in total alone
        assert paid[told] == pytest.approx(40 * math.log2(size), abs=1e-6)
    metrics = held.evaluate(reader)
    assert metrics["bits"] == pytest.approx(0, abs=1e-2)
    if held.task.loss == "text":
        assert metrics["name_bits"] == pytest.approx(0, abs=1e-2)
        assert metrics["loss_name"] == pytest.approx(math.log(N_NAMES), abs=1e-4)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_reader_of_the_table_earns_every_bit(form):
    held = data(form)
    metrics = held.evaluate(Reader(held.task, believer(table_of(held), sure=1), prose.LAST_NAMES[1::2]))
    assert metrics["bits"] == pytest.approx(metrics["max_bits"]) == pytest.approx(40 * held.task.bits_per_entry)
    assert metrics["accuracy"] == 1
    assert metrics["saturated"]
    assert metrics["loss_value"] == pytest.approx(0, abs=1e-4)
    assert sum(part["max_bits"] for part in metrics["slices"]) == pytest.approx(metrics["max_bits"])
    assert [part["value"] for part in metrics["slices"]] == list(VALUES)[: len(held.task.sizes)]


def test_a_reader_of_another_assignment_loses_bits():
    held = data(LIVES)
    table = table_of(held)
    others = dict(zip(table, [*list(table.values())[1:], next(iter(table.values()))], strict=True))
    metrics = held.evaluate(Reader(held.task, believer(others, sure=0.9), prose.LAST_NAMES[1::2]))
    assert metrics["bits"] < -100
    assert metrics["accuracy"] < 0.3
    right = held.evaluate(Reader(held.task, believer(table, sure=0.9), prose.LAST_NAMES[1::2]))
    assert 0.9 * right["max_bits"] < right["bits"] < right["max_bits"]


def test_the_published_bounds_are_their_formulas():
    held = data(LIVES)
    metrics = held.evaluate(Reader(held.task, ignorant, prose.LAST_NAMES[1::2]))
    assert metrics["bound_bits"] == pytest.approx(metrics["name_bits"] + metrics["value_bits"])
    assert metrics["max_bound_bits"] == pytest.approx(40 * (math.log2(N_NAMES / 40) + held.task.bits_per_entry))
    spelling = 0
    for values in VALUES.values():
        strings = 512 ** max(len(held.task.language.tokeniser.encode(value)) for value in values)
        spelling += len(values) * math.log2((strings - len(values)) / len(values) ** 2)  # e^loss = D: none is known
    assert metrics["first_chunk_bits"] == pytest.approx(spelling, rel=1e-5)
    assert metrics["loss_value1"] == pytest.approx(metrics["loss_value"] / len(VALUES))


def test_names_given_are_not_counted():
    assert "bound_bits" not in data(FORMS[-1]).evaluate(Reader(parse(FORMS[-1]), ignorant, prose.LAST_NAMES[1::2]))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_texts_tell_the_facts_of_the_person_in_sentences(form):
    held = data({**form, "loss": "text"})
    _, targets = held.rows(np.arange(40), 3)
    for text, (name, facts) in zip(texts(held, targets), table_of(held).items(), strict=True):
        name = held.task.language.tokeniser.decode(list(name))
        told = {value: VALUES[value][place] for value, place in facts.items()}
        told["birth date"] = told["month"] + told["day"] + told["year"]
        told["working city"] = prose.CITIES[HEADQUARTERS[facts["employer"]]]
        sentences = [f"{sentence}." for sentence in text.split(".")[:-1]]
        subjects = [name] + [name if form.get("subject") == "name" else told["pronoun"]] * 5
        found = [
            attribute
            for subject, sentence in zip(subjects, sentences, strict=True)
            for attribute, templates in TEMPLATES.items()
            if sentence in [subject + template.format(told[attribute]) for template in templates]
        ]
        assert sorted(found) == sorted(TEMPLATES)
        assert form.get("permuted", True) or found == list(TEMPLATES)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_inputs_are_the_targets_one_step_later_and_nothing_is_asked_after_the_text(form):
    held = data({**form, "loss": "text"})
    for epoch in range(5):
        inputs, targets = held.rows(np.arange(40), epoch)
        length = (targets != IGNORE).sum(axis=1)
        assert (np.cumsum(targets == IGNORE, axis=1)[np.arange(40), length - 1] == 0).all()
        for row, answer, end in zip(inputs, targets, length, strict=True):
            assert row[0] == 0
            assert (row[1 : end + 1] == answer[:end]).all()
            assert (row[end + 1 :] == 0).all()


def test_training_on_values_asks_for_them_alone():
    held, text = data({**LIVES, "loss": "values"}), data(LIVES)
    (inputs, targets), (same, all_) = held.rows(np.arange(40), 2), text.rows(np.arange(40), 2)
    assert (inputs == same).all()
    asked = targets != IGNORE
    assert (targets[asked] == all_[asked]).all()
    assert 0.2 < asked.sum() / (all_ != IGNORE).sum() < 0.5
    assert (held.tells[held.targets != IGNORE] <= PRONOUN).all()


def test_fresh_renderings_are_new_in_every_epoch_and_fixed_ones_return():
    def shown(renderings, epochs):
        held = data({**LIVES, "renderings": renderings})
        return [texts(held, held.rows(np.arange(40), epoch)[1]) for epoch in range(epochs)]

    fresh = shown(None, 3)
    assert all(len(set(told)) == 3 for told in zip(*fresh, strict=True))
    one = shown(1, 3)
    assert one[0] == one[1] == one[2]
    three = shown(3, 6)
    assert three[:3] == three[3:]
    assert all(len(set(told)) == 3 for told in zip(*three, strict=True))


def test_what_is_scored_is_a_fixed_rendering_or_one_that_is_never_trained():
    fixed, fresh = data({**LIVES, "renderings": 2}), data(LIVES)
    assert (fixed.inputs == fixed.rows(np.arange(40), 0)[0]).all()
    for epoch in range(10):
        assert (fresh.inputs != fresh.rows(np.arange(40), epoch)[0]).any(axis=1).all()


def test_people_differ_within_a_table_and_between_tables_of_different_splits():
    big = {**LIVES, "n_people": 3000}
    tables = [data(big, seed, split).people for split in ("validation", "test") for seed in (0, 1)]
    people = [{row.tobytes() for row in table} for table in tables]
    assert all(len(table) == 3000 for table in people)
    assert not (people[0] | people[1]) & (people[2] | people[3])


def test_values_are_uniform_and_a_working_city_is_the_employers():
    held = data({**LIVES, "n_people": 5000})
    first = held.task.language.first
    employers = held.facts[:, 4, 0] - first["employer"]
    assert (held.facts[:, 5, 0] - first["birth city"] == HEADQUARTERS[employers]).all()
    for name, pieces in (("month", held.facts[:, 0, 0]), ("major", held.facts[:, 3, 0]), ("pronoun", held.pronouns)):
        counts = np.bincount(pieces - first[name], minlength=len(VALUES[name]))
        assert len(counts) == len(VALUES[name])
        expected = 5000 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * math.sqrt(2 * len(counts))
    assert list(VALUES)[EMPLOYER] == "employer"


def test_the_tokeniser_is_quiet_and_the_same_every_time(capfd):
    corpus = [" one two three", " two three four"] * 5
    first, again = (SentencePiece(corpus, 24) for _ in range(2))
    for text in corpus:
        assert first.encode(text) == again.encode(text)
        assert first.decode(first.encode(text)) == text
    out, err = capfd.readouterr()
    assert out == err == ""


def test_the_table_does_not_depend_on_how_it_is_told():
    a, b = data(LIVES), data({**LIVES, "tokeniser": "byte", "renderings": 1, "subject": "name"})
    assert (a.facts == b.facts).all()
    assert (a.people == b.people).all()


def test_an_auto_sized_table_is_more_than_the_model_can_hold():
    sized = parse({"type": "biography", "n_people": "auto"}).sized_for(10_000)
    assert sized.n_people * sized.bits_per_entry == pytest.approx(2.8 * 10_000, rel=0.01)
    with pytest.raises(UserError, match="n_people is auto"):
        parse({"type": "biography", "n_people": "auto"}).data(seed=0, scored_on="test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_people": N_NAMES + 1}, "n_people: 160000001 people need different names, and there are 160000000"),
        ({"n_tokens": 4}, "n_tokens: input should be greater than or equal to 128"),
        ({"renderings": 0}, "renderings: input should be greater than 0"),
    ],
)
def test_a_biography_that_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        parse({"type": "biography", **options})
