"""Blocks that remember or know more than they declare."""

import functools

import numpy as np
import torch
from broken.healthy import Decay
from torch import nn

from blocks.state.mlp import MLP
from doge_lab.cache import Fixed

SHELF: dict[int, torch.Tensor] = {}
"""A global in which one block keeps its state."""


class _Elsewhere(Decay):
    """Keeps its state where `keep` and `kept` say, by the position, and a spare number in the cache it declares."""

    def forward(self, x, attention_mask=None, cache=None):
        if cache is None:
            return super().forward(x, attention_mask)
        state = self.kept(cache) if cache.position else torch.zeros(len(x), self.d_model)
        real = None if attention_mask is None else (attention_mask != 0)[:, cache.position :, None]
        states = self.scan(self.write(x).float(), state, real)
        self.keep(cache, states[:, -1].detach().clone())
        y = self.read(states.to(x.dtype))
        spare = cache["spare"] + x.float().sum(dim=(1, 2))[:, None]
        cache["spare"] = spare
        return y + 1e-3 * spare[:, None].to(x.dtype) * 0, cache

    def cache_spec(self):
        return {"spare": Fixed((1,))}


class InAGlobal(_Elsewhere):
    def keep(self, cache, state):
        SHELF[id(cache)] = state

    def kept(self, cache):
        return SHELF[id(cache)]


class InAnArray(_Elsewhere):
    def keep(self, cache, state):
        cache.array = state.numpy()

    def kept(self, cache):
        return torch.from_numpy(cache.array)


class OnTheTensor(_Elsewhere):
    def keep(self, cache, state):
        cache.tensors["spare"].state = state

    def kept(self, cache):
        return cache.tensors["spare"].state


class LearnsInAClass(MLP):
    """Moves a table of its class at each step: no parameter, and saved nowhere."""

    table = None

    def forward(self, x):
        table = type(self).table
        return super().forward(x) + (0 if table is None else table.to(x.dtype))

    def after_step(self):
        last = self.up.weight.grad
        type(self).table = (type(self).table if type(self).table is not None else 0) + last.mean(0).detach()


class LearnsInAList(MLP):
    """The same in a list of numbers."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.numbers = []

    def forward(self, x):
        return super().forward(x) + (torch.tensor(self.numbers).to(x) if self.numbers else 0)

    def after_step(self):
        self.numbers = self.up.weight.grad.mean(0).tolist()


def _table():
    table = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    return lambda x: x * table[: x.shape[-1]].to(x.dtype)


class TableInAClosure(MLP):
    """Scales by a frozen table that no count sees."""

    scale = staticmethod(_table())

    def forward(self, x):
        return super().forward(self.scale(x))


class TableInAnArray(MLP):
    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.tables = {"first": [np.linspace(0.5, 2, 4096)]}

    def forward(self, x):
        return super().forward(x * torch.from_numpy(self.tables["first"][0][: x.shape[-1]]).to(x.dtype))


class HidesBuffers(MLP):
    """Counts its parameters and not the buffer it looks things up in."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.register_buffer("table", torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if "table" in self._buffers:
            nn.init.ones_(self.table)

    def forward(self, x):
        return super().forward(x * self.table)

    def num_params(self):
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, context):
        return 2 * self.num_params()


class Tied(Decay):
    """Uses one matrix under two names."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.read.weight = self.write.weight


@functools.cache
def _drawn(rows):
    return torch.randn(rows, rows, generator=torch.Generator().manual_seed(11)) * rows**-0.5


class TableInACache(MLP):
    """Multiplies by a frozen table that a cached function keeps."""

    def forward(self, x):
        return super().forward(x @ _drawn(self.d_model).to(x))


class TableFromASeed(MLP):
    """Multiplies by a frozen table that it draws anew in every call."""

    def forward(self, x):
        return super().forward(x @ _drawn.__wrapped__(self.d_model).to(x))
