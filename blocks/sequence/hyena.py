"""Hyena of order 2: one long convolution between two gates, with a filter that a small network computes.

    x1, x2, v = short convolution of W_in x                     u = x2 ⊙ v
    y_t = W_out (x1_t ⊙ (Σ_{l < window} h_l ⊙ u_{t-l} + b ⊙ u_t))
    h_l = network(features of l) ⊙ exp(-δ l / time_scale)       δ from slow to fast over the channels

The network takes l / time_scale with its sines and cosines, and has sines for activations; δ lets the slowest channel
fall to 1 % in 1.5 time_scale, the fastest in 0.3. Nothing of the past can be summed up, so that all of u is
remembered, d_model numbers per token, and decoding costs more with every token: the filter, computed anew at each
step, more than the convolution.

Source: Poli et al. 2023, https://arxiv.org/abs/2302.10866 (order 2 as in the published code)

Shape letters: B batch row, T new token, S visible token, D d_model, L lag of the filter, E feature of a lag.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock
from doge_lab.cache import CacheSpec, Fixed, LayerCache, PerToken
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import key_positions, new_real_tokens
from doge_lab.layers.packing import Packing
from doge_lab.layers.short_conv import CausalConv
from doge_lab.ops.long_convolution import long_convolution

_FALLEN = -math.log(0.01)
_SLOWEST, _FASTEST = 1.5, 0.3  # time scales after which a channel's filter has fallen to 1 %


class Hyena(SequenceBlock):
    """A gated long convolution with an implicit filter."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "window": {"choice": [8, 32, None]},
        "time_scale": {"choice": [16.0, 64.0, 256.0]},
        "filter_dim": {"int": [4, 32], "log": True},
    }

    class Config(BlockConfig):
        window: Annotated[int, Field(ge=2)] | None = None
        """How many tokens the filter covers, the present one included; all when left out."""
        time_scale: Annotated[float, Field(ge=2)] = 64.0
        """Tokens that are one unit of the filter's time; the larger, the longer its memory."""
        filter_dim: PositiveInt = 16
        """Width of the network that computes the filter."""
        filter_depth: PositiveInt = 2
        """Layers of that network with sines for activations, before its last, linear one."""
        filter_bands: PositiveInt = 4
        """Frequencies 1, 2, ... per time_scale of the sines and cosines that the network is given."""
        filter_frequency: Annotated[float, Field(gt=0, le=30)] = 10.0
        """How fast the network's sines are at first; the faster, the less smooth the filter."""
        short_kernel: Annotated[int, Field(ge=2)] = 3
        """Tokens that the short convolution of the projections covers."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.project_in = nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv = CausalConv(3 * d_model, c.short_kernel)
        widths = [1 + 2 * c.filter_bands, *[c.filter_dim] * c.filter_depth]
        self.filter = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.filter_out = nn.Linear(c.filter_dim, d_model, bias=False)
        self.frequency = nn.Parameter(torch.empty(c.filter_dim))
        self.bias = nn.Parameter(torch.empty(d_model))
        self.project_out = nn.Linear(d_model, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.project_in, *self.filter, self.filter_out):
            init_linear(linear)
        init_linear(self.project_out, self.output_scale)
        self.conv.reset_parameters()
        nn.init.constant_(self.frequency, self.config.filter_frequency)
        nn.init.normal_(self.bias)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        real = new_real_tokens(attention_mask, new=new, seen=seen)
        mixed, tail = self.conv(self.project_in(x), None if cache is None else cache["tail"], real)
        x1, x2, v = mixed.chunk(3, dim=-1)
        u = x2 * v if real is None else x2 * v * real
        past = u
        if cache is not None:
            cache["tail"], past = tail, cache.append("u", u, attention_mask)
        packing = Packing(self._real(attention_mask, new=new, slots=past.shape[1], seen=seen))
        # The filter is exact in its lags and the sum long, so that both are float32 whatever the type around them.
        with torch.autocast(x.device.type, enabled=False):
            taps = self._filter(min(past.shape[1], self.config.window or past.shape[1]), x.device)
            y = packing.unpack(long_convolution(packing.pack(past.float()), taps, new)).to(x.dtype)
        return self.project_out(x1 * (y + self.bias * u)), cache

    def _real(self, attention_mask: Tensor | None, *, new: int, slots: int, seen: int) -> Tensor | None:
        """Which of the remembered and new slots hold real tokens, [B, S]; None when nothing is padded."""
        if attention_mask is None:
            return None
        windowed = self.config.window is not None
        return key_positions(attention_mask, new=new, keys=slots, seen=seen, windowed=windowed) >= 0

    def _filter(self, lags: int, device: torch.device) -> Tensor:
        """The filter's taps [L, D] in float32, the present token's first."""
        time = torch.arange(lags, device=device)[:, None] / self.config.time_scale
        angle = 2 * math.pi * time * torch.arange(1, self.config.filter_bands + 1, device=device)
        hidden = torch.cat([time, angle.cos(), angle.sin()], dim=-1)  # [L, E]
        for linear in self.filter:
            hidden = torch.sin(self.frequency.float() * _in_float32(linear, hidden))
        decay = torch.linspace(_FALLEN / _SLOWEST, _FALLEN / _FASTEST, self.d_model, device=device)
        return _in_float32(self.filter_out, hidden) * (-decay * time).exp()

    def cache_spec(self) -> CacheSpec:
        u = PerToken((self.d_model,), window=self.config.window)
        return {"u": u, "tail": Fixed(self.conv.tail_shape, dtype=None)}

    def flops_per_token(self, context: int) -> int:
        lags = min(context, self.config.window or context)
        projections = self.project_in.weight.numel() + self.project_out.weight.numel()
        network = sum(linear.weight.numel() for linear in (*self.filter, self.filter_out))
        return 2 * (projections + lags * (network + self.d_model))


def _in_float32(linear: Any, x: Tensor) -> Tensor:
    return F.linear(x, linear.weight.float(), None if linear.bias is None else linear.bias.float())
