"""MAD's noisy recall: in-context recall with tokens between the pairs that mean nothing, of a vocabulary of their own.

    inputs   3 9  17  1 8  21 30  3 9  1 8        keys 0 .. 7, values 8 .. 15, noise 16 .. 31
    targets  . .  .   . .  .  .   9 .  8 .

    bits per sequence = answers·log2(values) − Σ −log2 p(value)

Source: Poli et al. 2024, https://arxiv.org/abs/2403.17844 (noisy in-context recall).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from doge_lab.tasks.mad import SMALLER_SETS
from doge_lab.tasks.mad_pairs import Form, PairsTask


class MadNoisyRecall(PairsTask):
    """Recall of values by single keys, among noise."""

    ladder: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n_tokens": (48, 80, 144),
        "length": (256, 512, 1024),
        "n_train": SMALLER_SETS,
        "noise": (0.4, 0.6, 0.8),
    }
    type: Literal["mad_noisy_recall"] = "mad_noisy_recall"
    n_tokens: int = Field(default=32, ge=5)
    """Vocabulary: noise, and of the rest half keys, half values (the paper: 32)."""
    n_noise_tokens: PositiveInt = 16
    """Tokens of the vocabulary that are noise (the paper: 16)."""
    noise: float = Field(default=0.2, ge=0, lt=1)
    """Share of noise in a sequence on average (the paper: 0.2)."""

    @model_validator(mode="after")
    def _fits(self) -> "MadNoisyRecall":
        self.check_form()
        return self

    @property
    def form(self) -> Form:
        told = self.n_tokens - self.n_noise_tokens
        return Form(told // 2, told - told // 2, n_noise=self.n_noise_tokens, noise=self.noise)
