"""Blocks whose parameters are not written, not learned, not saved, or not what they say."""

import random
from typing import Literal

import torch
from broken.healthy import Experts
from torch import nn

from blocks.sequence.attention import Attention
from blocks.state.mlp import MLP


class ScaledMLP(MLP):
    """A healthy perceptron with a scale, of which the blocks below break one thing each."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.scale = nn.Parameter(torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if "scale" in self._parameters:
            self.reset_scale()

    def reset_scale(self):
        nn.init.ones_(self.scale)

    def forward(self, x):
        return super().forward(x) * self.scale

    def flops_per_token(self, context):
        return 2 * (self.up.weight.numel() + self.down.weight.numel())


class Unwritten(ScaledMLP):
    """Relies on the memory it is given."""

    def reset_scale(self):
        pass


class HalfWritten(ScaledMLP):
    """Scales what it finds, in place."""

    def reset_scale(self):
        self.scale.data[1:] = 1


class UnwrittenBuffer(MLP):
    """Writes a buffer when it is constructed, and never again."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.register_buffer("table", torch.ones(d_model))

    def forward(self, x):
        return super().forward(x * self.table)


class StrayTensor(MLP):
    """Keeps a table as a plain attribute, which no model moves or fills."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.table = torch.ones(d_model)

    def forward(self, x):
        return super().forward(x * self.table)


class UnseededInit(ScaledMLP):
    """Draws from another generator than the seed's."""

    def reset_scale(self):
        nn.init.constant_(self.scale, 1 + random.random())


class SharedByLayers(ScaledMLP):
    """Keeps one scale for all its layers, so that the last one to be initialised overwrites the first."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        if self.layer_idx == 0:
            SharedByLayers.first = self
        self.reset_parameters()

    def reset_scale(self):
        nn.init.normal_(self.scale)
        if self.layer_idx > 0:
            SharedByLayers.first.scale.data.copy_(self.scale.data)


class DeadParameter(MLP):
    """Pays for a parameter that nothing uses."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.spare = nn.Parameter(torch.empty(3))
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if "spare" in self._parameters:
            nn.init.ones_(self.spare)

    def flops_per_token(self, context):
        return 2 * (self.num_params() - 3)

    def active_params(self):
        return self.num_params() - 3


class DetachedParameter(ScaledMLP):
    """Cuts the gradient off."""

    def forward(self, x):
        return MLP.forward(self, x) * self.scale.detach()


class KeyBias(Attention):
    """Adds the same number to every score of a query: a softmax takes it out again, and its gradient is rounding."""

    class Config(Attention.Config):
        positions: Literal["none"] = "none"

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.k = nn.Linear(d_model, self.k.out_features)
        self.reset_parameters()


class NotSaved(MLP):
    """Draws a buffer that it does not save."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.register_buffer("table", torch.empty(d_model), persistent=False)
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if "table" in self._buffers:
            nn.init.normal_(self.table)

    def forward(self, x):
        return super().forward(x * self.table)


class FlopsTwice(MLP):
    """Counts a multiply-add as four."""

    def flops_per_token(self, context):
        return 4 * self.num_params()


class FlopsWithoutContext(Attention):
    """Forgets that a query meets every key."""

    def flops_per_token(self, context):
        return 2 * self.num_params()


class ActiveIsEverything(Experts):
    """Says that a token touches every expert."""

    def active_params(self):
        return self.num_params()


class ActiveWithoutRouter(Experts):
    """Forgets that the router reads all of its matrix."""

    def active_params(self):
        return self.d_model * 2 * self.top_k


class ActiveHalf(MLP):
    """Says that a token touches half of a dense block."""

    def active_params(self):
        return self.num_params() // 2
