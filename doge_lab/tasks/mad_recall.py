"""MAD's in-context recall: pairs of one key and one value, and from a key's second time on its value is asked.

    inputs   3 9  1 8  3 9  0 8  1 8        keys 0 1 2 3 .. 7, values 8 9 .. 15
    targets  . .  . .  9 .  . .  8 .

    bits per sequence = answers·log2(values) − Σ −log2 p(value)

`recall` asks every key once at chosen distances; here keys come back at random, as many times as the length allows.

Source: Poli et al. 2024, https://arxiv.org/abs/2403.17844 (in-context recall).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from doge_lab.tasks.mad import SMALLER_SETS
from doge_lab.tasks.mad_pairs import Form, PairsTask


class MadRecall(PairsTask):
    """Recall of values by single keys."""

    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n_tokens": (32, 64, 128),
        "length": (256, 512, 1024),
        "n_train": SMALLER_SETS,
    }
    type: Literal["mad_recall"] = "mad_recall"
    n_tokens: int = Field(default=16, ge=4)
    """Vocabulary: half of it keys, half of it values (the paper: 16)."""

    @model_validator(mode="after")
    def _fits(self) -> "MadRecall":
        self.check_form()
        return self

    @property
    def form(self) -> Form:
        return Form(self.n_tokens // 2, self.n_tokens - self.n_tokens // 2)
