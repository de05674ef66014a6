"""Blocks in which a token or a row learns what it must not."""

import torch
from broken.healthy import Decay, Experts
from torch import nn

from blocks.sequence.attention import Attention
from blocks.state.mlp import MLP


class FutureToken(Attention):
    """Reads one token ahead."""

    def forward(self, x, attention_mask=None, cache=None):
        return super().forward(x + 0.01 * x.roll(-1, dims=1), attention_mask, cache)


class NormOverTime(Attention):
    """Divides by a norm over all tokens of the call."""

    def forward(self, x, attention_mask=None, cache=None):
        return super().forward(x / x.square().mean(dim=1, keepdim=True).add(1e-6).sqrt(), attention_mask, cache)


class FutureThroughAChunk(Decay):
    """Looks ahead inside chunks of 16 tokens, as a chunked algorithm with a wrong mask does."""

    def scan(self, values, state, real):
        ahead = torch.zeros_like(values)
        for start in range(0, values.shape[1] - 15, 16):
            ahead[:, start] = values[:, start + 15]
        return super().scan(values + 1e-3 * ahead, state, real)


class FutureInTrainingOnly(Decay):
    """Is causal when it is evaluated, and not when it is trained."""

    def scan(self, values, state, real):
        states = super().scan(values, state, real)
        return states + states[:, -1:] if self.training else states


class FutureByRouting(Decay):
    """Moves no gradient from the future, only a choice: scales by a power of two that the last token sets."""

    def scan(self, values, state, real):
        return super().scan(values, state, real) * torch.where(values[:, -1:, :1] > 2.5, 2.0, 1.0)


class LengthDependent(Decay):
    """Divides by the number of tokens in the call."""

    def scan(self, values, state, real):
        return super().scan(values, state, real) / values.shape[1]


class BatchStatistics(MLP):
    """Normalises over the batch, in training only, as batch norm does."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.norm = nn.BatchNorm1d(d_model, affine=False)

    def reset_parameters(self):
        super().reset_parameters()
        if "norm" in self._modules:
            self.norm.reset_running_stats()

    def forward(self, x):
        return super().forward(self.norm(x.transpose(1, 2)).transpose(1, 2))


class RowMean(Attention):
    """Subtracts the mean over the rows."""

    def forward(self, x, attention_mask=None, cache=None):
        return super().forward(x - 0.01 * x.mean(dim=0, keepdim=True), attention_mask, cache)


class RoutesAcrossRows(Experts):
    """Splits the scores so that a token is routed by those of the same position in another row."""

    def choose(self, scores):
        return super().choose(scores.transpose(0, 1).reshape(scores.shape[1], -1, scores.shape[0]).permute(2, 0, 1))


class RoutesAcrossTokens(Experts):
    """Splits the scores so that a token is routed by those of other tokens in its row."""

    def choose(self, scores):
        return super().choose(scores.transpose(1, 2).reshape(scores.shape))


class DropsOverflow(Experts):
    """Gives each expert a capacity: crowded tokens lose their pick to other tokens."""

    def choose(self, scores):
        weight, index = super().choose(scores)
        order = torch.nn.functional.one_hot(index[..., 0], scores.shape[-1]).flatten(0, 1).cumsum(0)
        place = order.view_as(scores).gather(-1, index[..., :1])
        return weight * (place <= 100), index


class NoMixing(Decay):
    """Forgets the past at once: a sequence block that moves nothing between tokens."""

    def scan(self, values, state, real):
        return values + 0 * state[:, None] + 0 * self.decay
