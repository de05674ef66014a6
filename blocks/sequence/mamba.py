"""Mamba (S6): a state-space model in every channel, whose step size and projections each token chooses.

    [u, z]_t = W_in x_t        u ← silu(conv(u))        [r, b, c]_t = W_x u_t        Δ_t = softplus(W_Δ r_t + bias)
    h_t = exp(Δ_t A) ⊙ h_{t-1} + (Δ_t u_t) b_tᵀ        y_t = W_out ((h_t c_t + D ⊙ u_t) ⊙ silu(z_t))        A < 0

Source: Gu & Dao 2023, https://arxiv.org/abs/2312.00752

Shape letters: B batch row, T new token, D d_model, I inner channel, N number of a channel's state, R dt_rank.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear, init_step_size
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.short_conv import CausalConv
from doge_lab.ops.selective_scan import selective_scan


class Mamba(SequenceBlock):
    """A selective state-space model: d_state numbers of memory per inner channel, and no heads."""

    class Config(BlockConfig):
        expand: PositiveFloat = 2.0
        """Inner channels, times d_model."""
        d_state: PositiveInt = 16
        """Numbers that each inner channel remembers."""
        kernel_size: Annotated[int, Field(ge=2)] = 4
        """How many tokens the convolution sees, itself included."""
        dt_rank: PositiveInt | None = None
        """Width from which step sizes are projected; d_model / 16, rounded up, when left out."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "d_state": {"choice": [4, 8, 16, 32]},
        "expand": {"choice": [1.0, 2.0]},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.d_inner = round(c.expand * d_model)
        if self.d_inner < 1:
            raise UserError(f"expand={c.expand} of d_model={d_model} leaves no channel; the least is {1 / d_model}")
        self.dt_rank = c.dt_rank or math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv = CausalConv(self.d_inner, c.kernel_size, bias=True)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * c.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.a_log = nn.Parameter(torch.empty(c.d_state, self.d_inner))
        self.skip = nn.Parameter(torch.empty(self.d_inner))
        self.out = nn.Linear(self.d_inner, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.in_proj, self.x_proj, self.dt_proj):
            init_linear(linear)
        init_step_size(self.dt_proj.bias)
        init_linear(self.out, self.output_scale)
        self.conv.reset_parameters()
        nn.init.ones_(self.skip)
        with torch.no_grad():  # the real part of S4D's diagonal: -1, -2, ...
            self.a_log.copy_(torch.arange(1, self.config.d_state + 1, device=self.a_log.device).log()[:, None])

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=0 if cache is None else cache.position)
        u, z = self.in_proj(x).chunk(2, dim=-1)  # [B, T, I]
        u, tail = self.conv(u, None if cache is None else cache["conv"], real)
        u = F.silu(u)
        step, b, c = self.x_proj(u).split([self.dt_rank, self.config.d_state, self.config.d_state], dim=-1)
        delta = F.softplus(self.dt_proj(step).float())
        if real is not None:  # a step of no length writes nothing and decays nothing
            delta = delta * real
        decay_rate = -self.a_log.float().exp()
        state = None if cache is None else cache["state"]
        y, state = selective_scan(u.float(), delta, decay_rate, b.float(), c.float(), state)
        if cache is not None:
            cache["conv"], cache["state"] = tail, state
        y = torch.addcmul(y, self.skip, u).to(x.dtype)
        return self.out(y * F.silu(z)), cache

    def cache_spec(self) -> CacheSpec:
        return {
            "conv": Fixed(self.conv.tail_shape, dtype=None),
            "state": Fixed((self.config.d_state, self.d_inner)),
        }

    def flops_per_token(self, context: int) -> int:
        linears = (self.in_proj, self.x_proj, self.dt_proj, self.out)
        counted = 2 * sum(linear.weight.numel() for linear in linears) + 2 * self.d_inner * self.config.d_state
        return counted + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.d_inner * self.config.d_state  # the outer product that the state takes up
