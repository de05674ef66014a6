"""Blocks that are broken in some situation only, as a branch that nobody visited is."""

import torch
from broken.healthy import Decay, Experts
from pydantic import PositiveInt

from blocks.state.mlp import MLP


class _Triggered(Decay):
    """Sees the last token of the call where `triggered` says so."""

    def forward(self, x, attention_mask=None, cache=None):
        self.room = 0 if cache is None else cache.capacity - cache.position - x.shape[1]
        try:
            return super().forward(x, attention_mask, cache)
        finally:
            del self.room

    def scan(self, values, state, real):
        states = super().scan(values, state, real)
        return states + 0.3 * values[:, -1:] if self.triggered(values) else states

    def triggered(self, values):
        raise NotImplementedError


class LongLeak(_Triggered):
    def triggered(self, values):
        return values.shape[1] > 520


class MultipleOf128(_Triggered):
    def triggered(self, values):
        return values.shape[1] % 128 == 0


class LargeBatch(_Triggered):
    def triggered(self, values):
        return len(values) >= 8


class DeepLayer(_Triggered):
    def triggered(self, values):
        return self.layer_idx == 2


class DeepModel(_Triggered):
    def triggered(self, values):
        return self.n_layers > 2


class WithGradients(_Triggered):
    def triggered(self, values):
        return torch.is_grad_enabled() and not self.training


class InInferenceMode(_Triggered):
    def triggered(self, values):
        return torch.is_inference_mode_enabled()


class RoomToSpare(_Triggered):
    def triggered(self, values):
        return self.room > 30


class UnderAutocast(_Triggered):
    def triggered(self, values):
        return torch.is_autocast_enabled("cpu")


class InBfloat16(_Triggered):
    def triggered(self, values):
        return self.write.weight.dtype == torch.bfloat16


class OpenedGate(Decay):
    """Leaks through a gate that starts closed and that a few steps of training do not open."""

    def scan(self, values, state, real):
        states = super().scan(values, state, real)
        return states + (self.decay - 2).relu() * values[:, -1:]


class BetweenOptions(_Triggered):
    class Config(Decay.Config):
        n_heads: PositiveInt = 1
        """Heads that there are none of."""

    def triggered(self, values):
        return self.config.n_heads in (3, 5, 6, 9, 10, 11)


class BreaksTiesByChunk(Decay):
    """Adds the smallest of the last values seen twice, which only repeated tokens have, counted within the call."""

    def scan(self, values, state, real):
        states = super().scan(values, state, real)
        again = torch.zeros_like(values[..., :1])
        for t in range(1, values.shape[1]):
            again[:, t] = (values[:, :t] == values[:, t : t + 1]).all(-1).any(1, keepdim=True)
        return states + again


class Noise(MLP):
    """Adds a little noise, in evaluation too."""

    def forward(self, x):
        y = super().forward(x)
        return y + 1e-3 * torch.randn_like(y)


class LateTokenShared(Experts):
    """A state block that, in long rows, scales by what the first token holds."""

    def forward(self, x):
        y = super().forward(x)
        return y * (1 + x[:, :1, :1].sigmoid()) if x.shape[1] > 400 else y


class WritesToItsInputWhenCached(Decay):
    """Leaves its input alone until it is given a cache."""

    def forward(self, x, attention_mask=None, cache=None):
        if cache is None or cache.position == 0:
            return super().forward(x, attention_mask, cache)
        kept = x.clone()
        x += 1
        return super().forward(kept, attention_mask, cache)
