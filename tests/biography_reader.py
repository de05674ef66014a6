"""A reader of biographies that knows the language exactly, and of the people what it is told to believe.

It is given the tokens of a text up to a place and says how probable each next token is: exactly, by walking a trie of
everything that may follow there.
"""

import contextlib
import math
from collections import defaultdict

import numpy as np
import torch

from doge_lab.tasks.prose import FIRST_NAMES, HEADQUARTERS, LAST_NAMES, MIDDLE_NAMES, N_TEMPLATES, TEMPLATES, VALUES
from doge_lab.tasks.tokenisers import BLANK

TOLD = [["month", "day", "year"], ["birth city"], ["university"], ["major"], ["employer"], ["working city"]]


def ignorant(name):
    """Holds every value equally likely."""
    return {value: np.ones(len(words)) / len(words) for value, words in VALUES.items()}


def believer(table, sure):
    """Believes `table` (name tokens -> the place of each value in its list), as far as it is `sure`."""

    def believe(name):
        beliefs = {value: (1 - sure) * weights for value, weights in ignorant(name).items()}
        for value, place in table[name].items():
            beliefs[value][place] += sure
        return beliefs

    return believe


class Reader:
    """Predicts every next token of a row of inputs from those before it."""

    def __init__(self, task, believe, last_names=LAST_NAMES):
        self.task, self.believe = task, believe
        self.language = task.language
        words = {**VALUES, "first": FIRST_NAMES, "middle": MIDDLE_NAMES}
        self.words = {kind: self._encoded(kind, len(texts)) for kind, texts in words.items()}
        lasts = self._encoded("last", len(LAST_NAMES))
        self.words["last"] = [lasts[LAST_NAMES.index(name)] for name in last_names]
        self.words["working city"] = self.words["birth city"]
        count = N_TEMPLATES * len(TEMPLATES)
        self.before, self.after = self._encoded("before", count), self._encoded("after", count)

    def _encoded(self, kind, count):
        return [tuple(self.language.pieces.tokens(i).tolist()) for i in self.language.indices(kind, count)]

    def __call__(self, inputs):
        logits = torch.full((*inputs.shape, self.task.vocab_size), -torch.inf)
        logits[..., BLANK] = -1e4  # what is not read is not asked
        for row, tokens in enumerate(inputs.tolist()):
            for place, probabilities in self.walk(tokens):
                for token, probability in probabilities.items():
                    logits[row, place, token] = math.log(probability)
        return logits

    def walk(self, tokens):
        """(place, {next token: probability}) for every place of a text, one after another."""
        self.tokens, self.at, self.said = [*tokens[1:], BLANK], 0, []
        with contextlib.suppress(EOFError):
            self._read_text()
        return self.said

    def _read_text(self):
        name = ()
        for part in ("first", "middle", "last"):
            name += self.words[part][self._read(part)]
        beliefs = self.believe(name)
        while True:
            template = self._read("before", self.before)
            for value in TOLD[template // N_TEMPLATES]:
                self._read_value(value, beliefs)
            self._read("after", [self.after[template]])
            if self.task.subject == "name":
                self._read("name", [name])
            else:
                self._read_value("pronoun", beliefs)

    def _read_value(self, value, beliefs):
        if value == "working city":
            cities = np.bincount(HEADQUARTERS, weights=beliefs["employer"], minlength=200)
            city = self._read(value, weights=cities)
            beliefs["employer"] = np.where(city == HEADQUARTERS, beliefs["employer"], 0)
        else:
            read = self._read(value, weights=beliefs[value])
            beliefs[value] = np.where(np.arange(len(beliefs[value])) == read, 1.0, 0.0)

    def _read(self, kind, options=None, weights=None):
        """Reads one of the options, weighted; says before each token what it may be; returns which it was."""
        options = options or self.words[kind]
        weights = np.ones(len(options)) if weights is None else weights
        left = [index for index in range(len(options)) if weights[index] > 0]
        for depth in range(max(map(len, options))):
            if len(left) == 1 and len(options[left[0]]) == depth:
                break
            chances = defaultdict(float)
            for index in left:
                assert len(options[index]) > depth, "an option is the beginning of another"
                chances[options[index][depth]] += weights[index]
            total = sum(chances.values())
            self.said.append((self.at, {token: chance / total for token, chance in chances.items()}))
            token = self.tokens[self.at]
            if token == BLANK:
                raise EOFError
            left = [index for index in left if options[index][depth] == token]
            self.at += 1
        (chosen,) = left
        return chosen
