"""The published bounds of biographies, calculated again from texts and losses alone."""

import math
import re

import numpy as np
import pytest
import torch

from doge_lab.tasks import parse
from doge_lab.tasks.base import IGNORE
from doge_lab.tasks.prose import TEMPLATES, VALUES

DATE = ("month", "day", "year")


def pattern(attribute, template):
    """A sentence of that attribute: a group for its pronoun, and one for each value."""
    before, after = map(re.escape, template.split("{}"))
    kinds = DATE if attribute == "birth date" else (attribute,)
    words = (VALUES["birth city" if kind == "working city" else kind] for kind in kinds)
    values = "".join(f"({'|'.join(map(re.escape, some))})" for some in words)
    told = tuple("employer" if kind == "working city" else kind for kind in kinds)
    return told, re.compile(f"( He| She)?{before}{values}{after}")


PATTERNS = [pattern(attribute, template) for attribute, all_ in TEMPLATES.items() for template in all_]


def told_in(text, name):
    """Characters [from, to) of everything that a life tells, found in its sentences."""
    spans, start = {"name": [(0, len(name))]}, len(name)
    for sentence in re.findall(r"[^.]*\.", text[start:]):
        told, found = next((told, found) for told, form in PATTERNS if (found := form.fullmatch(sentence)))
        for group, kind in enumerate(told, start=2):
            spans.setdefault(kind, []).append((start + found.start(group), start + found.end(group)))
        if found[1]:
            spans.setdefault("pronoun", [(start, start + found.end(1))])
        start += len(sentence)
    return spans


def test_the_published_formulas_term_by_term():
    """Definition 4.3 and the last term of theorem 3.2, from texts alone, for a model that says anything."""
    held = parse({"type": "biography", "n_people": 3, "tokeniser": "byte"}).data(seed=0, scored_on="test")
    language = held.task.language
    some = torch.randn(257, 257, generator=torch.Generator().manual_seed(0))
    metrics = held.evaluate(lambda inputs: some[inputs])
    nats = torch.nn.functional.cross_entropy(some[held.inputs].mT, torch.from_numpy(held.targets), reduction="none")
    loss = dict.fromkeys(("name", *VALUES), 0.0)
    _, targets, _ = held._render(np.arange(3), -1)
    for row, answers in enumerate(targets):
        text = language.tokeniser.decode(answers[answers != IGNORE].tolist())
        name = "".join(language.tokeniser.decode(language.pieces.tokens(part)) for part in held.people[row])
        for kind, spans in told_in(text, name).items():
            loss[kind] += sum(float(nats[row, start:end].sum()) for start, end in spans) / 3
    loss_name = loss.pop("name")
    n, n0, s0 = 3, 400 * 400 * 1000, 2 * 12 * 28 * 200 * 200 * 300 * 100 * 263
    by_names = n * (math.log2(n0) - loss_name / math.log(2))
    by_values = n * (math.log2(s0) - sum(loss.values()) / math.log(2))
    assert metrics["loss_name"] == pytest.approx(loss_name, rel=1e-5)
    assert metrics["loss_value"] == pytest.approx(sum(loss.values()), rel=1e-5)
    assert metrics["loss_value1"] == pytest.approx(sum(loss.values()) / 8, rel=1e-5)
    assert metrics["name_bits"] == pytest.approx(by_names, rel=1e-5)
    assert metrics["bits"] == metrics["value_bits"] == pytest.approx(by_values, rel=1e-5)
    assert metrics["bound_bits"] == pytest.approx(by_names + by_values, rel=1e-5)
    assert metrics["max_bound_bits"] == pytest.approx(n * (math.log2(n0 / n) + math.log2(s0)))
    spelling = 0.0
    for kind, words in VALUES.items():
        d, strings = len(words), 257 ** max(len(word.encode()) for word in words)
        spelling += d * (math.log2(strings - d) - math.log2(d) - loss[kind] / math.log(2))
    assert metrics["first_chunk_bits"] == pytest.approx(spelling, rel=1e-5)
