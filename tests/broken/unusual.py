"""Good blocks of unusual forms: no check may take them for broken."""

from typing import ClassVar, Literal

import torch
from broken.healthy import Decay
from torch import nn

from blocks.sequence.attention import Attention
from blocks.state.mlp import MLP
from doge_lab.cache import Fixed
from doge_lab.layers.init import init_linear, init_weight
from doge_lab.layers.masks import new_real_tokens, real_tokens


class ALiBiWithSinks(Attention):
    """Scores fall with the distance in real tokens, a slope for each head; a learned sink takes what is left."""

    class Config(Attention.Config):
        positions: Literal["none"] = "none"
        sinks: Literal[True] = True
        window: None = None

    search_space: ClassVar = {"n_heads": {"choice": [2, 4]}}

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.register_buffer("slopes", torch.empty(self.n_heads), persistent=False)
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if "slopes" in self._buffers:
            self.slopes.copy_(2.0 ** -torch.arange(1, self.n_heads + 1))

    def forward(self, x, attention_mask=None, cache=None):
        seen = 0 if cache is None else cache.position
        total = seen + x.shape[1]
        real = (
            torch.ones(1, total, dtype=torch.bool)
            if attention_mask is None
            else real_tokens(attention_mask, new=x.shape[1], seen=seen)
        )
        self_positions = real.long().cumsum(1)
        distance = self_positions[:, seen:, None] - self_positions[:, None]  # [B, T, S]
        bias = -distance[:, None] * self.slopes[:, None, None]  # [B, H, T, S]
        q, k, v = (linear(x).unflatten(-1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        if cache is not None:
            k, v = cache.append("k", k), cache.append("v", v)
        k, v = (heads.repeat_interleave(self.n_heads // self.n_kv_heads, dim=2) for heads in (k, v))
        visible = self._visible(attention_mask, x.shape[1], total, seen, x.device)
        scores = torch.einsum("bthk,bshk->bhts", q * self.head_dim**-0.5, k) + bias.to(x.dtype)
        scores = scores.masked_fill(~visible, -torch.inf)
        sinks = self.sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(-1, dtype=torch.float32).to(v.dtype)[..., :-1]
        y = torch.einsum("bhts,bshk->bthk", weights, v)
        return self.out(y.flatten(2)), cache


class ComplexState(Decay):
    """A complex state that turns as it decays: s_t = a exp(i w) s_{t-1} + (W x_t), y_t = V Re(s_t)."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.angle = nn.Parameter(torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if "angle" in self._parameters:
            nn.init.uniform_(self.angle, 0.1, 1.5)

    def forward(self, x, attention_mask=None, cache=None):
        seen = 0 if cache is None else cache.position
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=seen)
        values = self.write(x).float()
        state = torch.zeros(len(x), self.d_model, dtype=torch.complex64) if cache is None else cache["state"]
        turn = torch.polar(self.decay.float().sigmoid(), self.angle.float())
        states = []
        for t in range(values.shape[1]):
            following = turn * state + values[:, t]
            state = following if real is None else torch.where(real[:, t], following, state)
            states.append(state)
        if cache is not None:
            cache["state"] = state
        return self.read(torch.stack(states, dim=1).real.to(x.dtype)), cache

    def cache_spec(self):
        return {"state": Fixed((self.d_model,), torch.complex64)}


class TwoWindows(Decay):
    """The sum over the last three tokens and, of other channels, over the last seven."""

    windows = (3, 7)

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        del self.decay

    def reset_parameters(self):
        init_linear(self.write)
        init_linear(self.read, self.output_scale)

    def forward(self, x, attention_mask=None, cache=None):
        seen, new = 0 if cache is None else cache.position, x.shape[1]
        real = torch.ones(len(x), seen + new, dtype=torch.bool)
        if attention_mask is not None:
            real = real_tokens(attention_mask, new=new, seen=seen)
        sums = []
        for window, part in zip(self.windows, self.write(x).tensor_split(2, dim=-1), strict=True):
            name = f"last_{window}"
            summed, kept = self.sum_last(part, window, real[:, seen:], None if cache is None else cache[name])
            sums.append(summed)
            if cache is not None:
                cache[name] = kept
        return self.read(torch.cat(sums, dim=-1)), cache

    def sum_last(self, part, window, real, kept):
        """Row by row over the real tokens alone, so that padding pushes nothing out."""
        kept = part.new_zeros(len(part), window - 1, part.shape[-1]) if kept is None else kept.to(part.dtype)
        sums, tails = torch.zeros_like(part), []
        for row, new in enumerate(real):
            tokens = torch.cat([kept[row], part[row, new]])
            tails.append(tokens[len(tokens) - window + 1 :])
            if new.any():
                sums[row, new] = tokens.unfold(0, window, 1).sum(-1)
        return sums, torch.stack(tails)

    def cache_spec(self):
        half = self.d_model // 2
        return {f"last_{window}": Fixed((window - 1, half), dtype=None) for window in self.windows}


class SharedTable(MLP):
    """A perceptron whose hidden units are scaled by a table that the first layer owns and all layers use."""

    first = None

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        if self.layer_idx == 0:
            self.table = nn.Parameter(torch.empty(self.up.out_features))
            SharedTable.first = self
            self.owner = ()
        else:
            self.owner = (SharedTable.first,)
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if "table" in self._parameters:
            init_weight(self.table, 1)

    def forward(self, x):
        owner = self.owner[0] if self.owner else self
        return self.down(self.act(self.up(x)) * owner.table)

    def flops_per_token(self, context):
        return 2 * (self.up.weight.numel() + self.down.weight.numel())
