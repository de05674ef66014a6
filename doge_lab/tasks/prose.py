"""Words and sentences for made-up people: the same in every run, all invented here, no lists to fetch.

    birth city    " Lorvaton", ...        " was born in{}."        " She was born in Lorvaton."
    university    " Opri College", ...    " studied at{}."

Everything is written with the space before it, so that texts are put together by writing pieces one after another.
What follows makes a text readable piece by piece, so that a value's cost holds nothing but the value:

    no value is the beginning of another value of its list        "1," and "14,", not "1" and "14"
    no text before a value is the beginning of another such text  so it says which attribute follows, and that it does
    no sentence has a full stop but its last character            so it is known where the next subject begins

Source: the attributes and how many values each has are bioS of Allen-Zhu & Li 2024, https://arxiv.org/abs/2404.05405.
"""

from functools import lru_cache
from itertools import cycle
from typing import NamedTuple

import numpy as np

from doge_lab.tasks.base import Tokens, rng
from doge_lab.tasks.tokenisers import Bytes, Pieces, SentencePiece, Tokeniser


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(","))


_STARTS = _listed(
    "b, br, c, ch, d, dr, f, fl, g, gr, h, j, k, l, m, n, p, pr, qu, r, s, sh, sl, st, t, th, tr, v, w, z,"
)
_MIDDLES = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_BRIDGES = ("b", "d", "g", "l", "ll", "m", "n", "nd", "r", "rv", "s", "st", "t", "v", "x", "lm", "rn", "pp")


def invent(kind: str, count: int, endings: tuple[str, ...]) -> tuple[str, ...]:
    """`count` pronounceable words, all different and none the beginning of another."""
    draw = rng("prose", kind)
    words: dict[str, None] = {}
    beginnings: set[str] = set()
    while len(words) < count:
        parts = (_STARTS, _MIDDLES, _BRIDGES, _MIDDLES[:5], endings)
        word = "".join(part[draw.integers(len(part))] for part in parts).capitalize()
        mine = {word[:length] for length in range(1, len(word) + 1)}
        if word not in beginnings and not mine & words.keys():
            words[word] = None
            beginnings |= mine
    return tuple(words)


def _written(words: tuple[str, ...], *patterns: str) -> tuple[str, ...]:
    """Each word with a space before it, or in one of the patterns in turn."""
    return tuple(pattern.format(word) for pattern, word in zip(cycle(patterns or (" {}",)), words, strict=False))


FIRST_NAMES = _written(invent("first", 400, ("", "n", "l", "s")))
MIDDLE_NAMES = _written(invent("middle", 400, ("ra", "na", "th", "ne")))
LAST_NAMES = _written(invent("last", 2000, ("son", "mann", "ley", "sen", "ski", "ard", "wick")))
"""Twice as many as published: half of them are for validation's people and half for test's."""
PRONOUNS = (" He", " She")
MONTHS = _written(
    _listed("January, February, March, April, May, June, July, August, September, October, November, December"),
)
DAYS = tuple(f" {day}," for day in range(1, 29))
YEARS = tuple(f" {year}" for year in range(1900, 2100))
CITIES = _written(invent("city", 200, ("ton", "ville", "burg", "ford", "mouth", "stead")))
UNIVERSITIES = _written(invent("university", 300, ("", "m", "x")), " {} College", " University of {}", " {} Institute")
EMPLOYERS = _written(invent("employer", 263, ("", "c", "t")), " {} Systems", " {} Foods", " {} Partners", " {} Motors")
HEADQUARTERS: Tokens = rng("prose", "headquarters").integers(len(CITIES), size=len(EMPLOYERS))
"""The city of each employer, where its people work."""
MAJORS = _written(
    _listed("""
Accounting, Acoustics, Aerodynamics, Agronomy, Algebra, Anatomy, Animation, Anthropology, Archaeology, Architecture,
Astronomy, Bacteriology, Ballet, Banking, Biochemistry, Biology, Biophysics, Botany, Cartography, Ceramics, Chemistry,
Choreography, Cinema, Climatology, Composition, Computing, Criminology, Cryptography, Dentistry, Design, Dietetics,
Drama, Ecology, Economics, Education, Electronics, Entomology, Epidemiology, Ethics, Ethnology, Fashion, Finance,
Fisheries, Folklore, Forestry, Genetics, Geography, Geology, Geometry, Geophysics, Gerontology, Glaciology, Grammar,
Graphics, Greek, History, Horticulture, Hydrology, Immunology, Insurance, Journalism, Jurisprudence, Kinesiology, Latin,
Law, Linguistics, Literature, Logic, Logistics, Management, Marketing, Mathematics, Mechanics, Medicine, Metallurgy,
Meteorology, Microbiology, Mineralogy, Music, Nursing, Nutrition, Oceanography, Optics, Painting, Palaeontology,
Pathology, Pharmacy, Philosophy, Phonetics, Photography, Physics, Poetry, Politics, Psychology, Robotics, Sculpture,
Sociology, Statistics, Surveying, Theology
"""),
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "birth date": (
        " was born on{}.",
        " came into the world on{}.",
        " celebrates a birthday that goes back to{}.",
        " has a birth certificate dated{}.",
        " first saw daylight on{}.",
        " arrived as a baby on{}.",
        " counts the years from{}.",
        " entered the parish register on{}.",
    ),
    "birth city": (
        " was born in{}.",
        " is a native of{}.",
        " spent the first days of life in{}.",
        " comes from the city of{}.",
        " took a first breath in{}.",
        " calls{} the place of birth.",
        " has roots in{}, where life began.",
        " names{} as the birthplace.",
    ),
    "university": (
        " studied at{}.",
        " graduated from{}.",
        " took a degree at{}.",
        " holds a diploma from{}.",
        " spent the student years at{}.",
        " was educated at{}.",
        " sat in the lecture halls of{}.",
        " owes a fine education to{}.",
    ),
    "major": (
        " majored in{}.",
        " completed a degree in{}.",
        " specialised in{}.",
        " devoted years of study to{}.",
        " chose{} as a field of study.",
        " trained in{} as a student.",
        " passed the examinations in{}.",
        " wrote a thesis in{}.",
    ),
    "employer": (
        " works for{}.",
        " is employed by{}.",
        " has a job at{}.",
        " earns a living at{}.",
        " joined the staff of{}.",
        " draws a salary from{}.",
        " found a position with{}.",
        " built a career at{}.",
    ),
    "working city": (
        " works in{}.",
        " commutes to{}.",
        " has an office in{}.",
        " moved to{} for work.",
        " is employed in{}.",
        " spends every working day in{}.",
        " holds a post in{}.",
        " pursues a career in{}.",
    ),
}
"""Attribute -> sentences without their subject, the same number for each."""
N_TEMPLATES = len(TEMPLATES["major"])

VALUES: dict[str, tuple[str, ...]] = {
    "month": MONTHS,
    "day": DAYS,
    "year": YEARS,
    "birth city": CITIES,
    "university": UNIVERSITIES,
    "major": MAJORS,
    "employer": EMPLOYERS,
    "pronoun": PRONOUNS,
}
"""What there is to know of a person; each is uniform and independent of the others."""
_NAMES = {"first": FIRST_NAMES, "middle": MIDDLE_NAMES, "last": LAST_NAMES}


class Language(NamedTuple):
    """All words, tokenised. first: kind -> index of its first piece; a template's halves are `before` and `after`."""

    tokeniser: Tokeniser
    pieces: Pieces
    first: dict[str, int]

    def indices(self, kind: str, count: int) -> Tokens:
        return self.first[kind] + np.arange(count)

    def longest_value(self, name: str) -> int:
        """Tokens of the longest value of that name."""
        return int(self.pieces.length[self.indices(name, len(VALUES[name]))].max())

    def longest(self, *, repeats_name: bool) -> int:
        """Tokens that no text exceeds."""
        n_attributes, length = len(TEMPLATES), self.pieces.length
        before, after = (length[self.indices(half, n_attributes * N_TEMPLATES)] for half in ("before", "after"))
        wording = int((before + after).reshape(n_attributes, -1).max(axis=1).sum())
        told = sum(self.longest_value(name) for name in VALUES if name != "pronoun") + self.longest_value("birth city")
        name = sum(int(length[self.indices(part, len(words))].max()) for part, words in _NAMES.items())
        later = name if repeats_name else self.longest_value("pronoun")
        return wording + told + name + (n_attributes - 1) * later


@lru_cache(maxsize=8)
def language(tokeniser: str, n_tokens: int) -> Language:
    spoken: Tokeniser = Bytes() if tokeniser == "byte" else SentencePiece(_corpus(), n_tokens)
    halves = [template.split("{}") for templates in TEMPLATES.values() for template in templates]
    lists = {**VALUES, **_NAMES, "before": [before for before, _ in halves], "after": [after for _, after in halves]}
    first, texts = {}, list[str]()
    for kind, words in lists.items():
        first[kind] = 1 + len(texts)  # piece 0 is the empty one
        texts += words
    return Language(spoken, Pieces(spoken, texts), first)


def _corpus() -> list[str]:
    """Every name and every value in a sentence, so that words of templates are as frequent as in a life."""
    told = {
        "birth date": [MONTHS[year % 12] + DAYS[year % 28] + written for year, written in enumerate(YEARS)],
        **{name: VALUES[name] for name in ("birth city", "university", "major", "employer")},
        "working city": CITIES,
    }
    names = [FIRST_NAMES[index % 400] + MIDDLE_NAMES[index % 400] + last for index, last in enumerate(LAST_NAMES)]
    sentences = [
        PRONOUNS[index % 2] + TEMPLATES[attribute][index % N_TEMPLATES].format(value)
        for attribute, values in told.items()
        for index, value in enumerate(values)
    ]
    return names + sentences
