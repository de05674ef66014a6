"""MAD's fuzzy recall: keys and values are motifs of one to several tokens, so where a key ends is to be found out.

    inputs   3 1 9  2 8 8  3 1 9  1 9 8  2 8 8        keys 3 1, 2 and 1; values 9, 8 8 and 9 8
    targets  . . .  . . .  . 9 .  . . .  8 8 .

    bits per sequence = answers·log2(values) − Σ −log2 p(token)

A value is asked token by token from a key's second time on, the earlier tokens visible. A sequence has as many keys as
there are tokens to write them with, of all lengths in equal shares; that is ours, so that keys come back often enough.
Tokens of a value are independent, also where the paper takes different ones.

Source: Poli et al. 2024, https://arxiv.org/abs/2403.17844 (fuzzy in-context recall).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from doge_lab.tasks.mad import SMALLER_SETS
from doge_lab.tasks.mad_pairs import Form, PairsTask


class MadFuzzyRecall(PairsTask):
    """Recall of values by keys, both of several tokens."""

    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n_tokens": (32, 64, 128),
        "length": (256, 512, 1024),
        "n_train": SMALLER_SETS,
    }
    type: Literal["mad_fuzzy_recall"] = "mad_fuzzy_recall"
    n_tokens: int = Field(default=16, ge=4)
    """Vocabulary: half of it writes keys, half of it values (the paper: 16)."""
    motif: PositiveInt = 3
    """Tokens of the longest key and the longest value (the paper: 3); 1 is `mad_recall`."""

    @model_validator(mode="after")
    def _fits(self) -> "MadFuzzyRecall":
        self.check_form()
        return self

    @property
    def form(self) -> Form:
        return Form(self.n_tokens // 2, self.n_tokens - self.n_tokens // 2, motif=self.motif)
