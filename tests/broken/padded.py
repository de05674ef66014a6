"""Sequence blocks that take padding for tokens, or the mask for something else."""

import torch
from broken.healthy import Decay

from blocks.sequence.attention import Attention


class PaddingShiftsPositions(Attention):
    """Counts padding when it says where a token stands."""

    class Config(Attention.Config):
        positions: str = "none"

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.register_buffer("table", torch.empty(2048, d_model))
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if "table" in self._buffers:
            torch.nn.init.normal_(self.table)

    def forward(self, x, attention_mask=None, cache=None):
        seen = 0 if cache is None else cache.position
        return super().forward(x + self.table[seen : seen + x.shape[1]], attention_mask, cache)


class PaddingIsSeen(Decay):
    """Ignores the mask: what padding holds enters the state."""

    def scan(self, values, state, real):
        return super().scan(values, state, None)


class FloatMasksOnly(Attention):
    """Takes the mask for numbers to add to the scores."""

    def forward(self, x, attention_mask=None, cache=None):
        if attention_mask is not None and attention_mask.dtype == torch.float32:
            attention_mask = 1 - attention_mask
        return super().forward(x, attention_mask, cache)


class PadsTheStartOnly(Decay):
    """Takes for real whatever comes after the first real token: a second turn's padding enters the state."""

    def forward(self, x, attention_mask=None, cache=None):
        begun = None if attention_mask is None else (attention_mask != 0).cummax(dim=1).values
        return super().forward(x, begun, cache)
