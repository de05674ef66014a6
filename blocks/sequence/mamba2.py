"""Mamba-2 (state-space duality): heads of linear attention that decay by one number per token, chosen by the token.

    [z, u, b, c, s]_t = W_in x_t        u, b, c ← silu(conv([u, b, c]))        Δ_t = softplus(s_t + bias)
    S_t = exp(Δ_t A) S_{t-1} + b_tᵀ (Δ_t u_t)        o_t = c_t S_t + D u_t        A < 0
    y_t = W_out norm(o_t ⊙ silu(z_t))

per head; the heads of a group share b and c, and the norm takes a group's channels together.

Source: Dao & Gu 2024, https://arxiv.org/abs/2405.21060

Shape letters: B batch row, T new token, D d_model, I inner channel, G group, H head, P channel of a head, N d_state.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear, init_step_size
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.short_conv import CausalConv
from doge_lab.ops.scalar_recurrence import scalar_recurrence


class Mamba2(SequenceBlock):
    """A selective state-space model in the form of linear attention: d_state numbers of memory per inner channel."""

    class Config(BlockConfig):
        expand: PositiveFloat = 2.0
        """Inner channels, times d_model."""
        n_heads: PositiveInt = 4
        """Heads; each decays at a rate of its own, and has expand * d_model / n_heads channels."""
        n_groups: PositiveInt = 1
        """Groups of heads that share what they write and read by; a divisor of n_heads."""
        d_state: PositiveInt = 32
        """Numbers that each inner channel remembers."""
        kernel_size: Annotated[int, Field(ge=2)] = 4
        """How many tokens the convolution sees, itself included."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "d_state": {"choice": [8, 16, 32, 64]},
        "n_heads": {"choice": [2, 4, 8]},
        "expand": {"choice": [1.0, 2.0]},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.d_inner = round(c.expand * d_model)
        if self.d_inner < 1:
            raise UserError(f"expand={c.expand} of d_model={d_model} leaves no channel; the least is {1 / d_model}")
        require_divisible("expand * d_model", self.d_inner, "n_heads", c.n_heads)
        require_divisible("n_heads", c.n_heads, "n_groups", c.n_groups)
        self.head_dim = self.d_inner // c.n_heads
        d_conv = self.d_inner + 2 * c.n_groups * c.d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + d_conv + c.n_heads, bias=False)
        self.conv = CausalConv(d_conv, c.kernel_size, bias=True)
        self.dt_bias = nn.Parameter(torch.empty(c.n_heads))
        self.a_log = nn.Parameter(torch.empty(c.n_heads))
        self.skip = nn.Parameter(torch.empty(c.n_heads))
        self.norm_scale = nn.Parameter(torch.empty(self.d_inner))
        self.out = nn.Linear(self.d_inner, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear(self.in_proj)
        init_linear(self.out, self.output_scale)
        self.conv.reset_parameters()
        init_step_size(self.dt_bias)
        with torch.no_grad():
            self.a_log.uniform_(1, 16).log_()
        nn.init.ones_(self.skip)
        nn.init.ones_(self.norm_scale)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        c = self.config
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=0 if cache is None else cache.position)
        z, ubc, step = self.in_proj(x).split([self.d_inner, self.conv.weight.shape[1], c.n_heads], dim=-1)
        ubc, tail = self.conv(ubc, None if cache is None else cache["conv"], real)
        u, write, read = F.silu(ubc).float().split([self.d_inner, *[c.n_groups * c.d_state] * 2], dim=-1)
        delta = F.softplus(step.float() + self.dt_bias.float())  # [B, T, H]
        if real is not None:  # a step of no length writes nothing and decays nothing
            delta = delta * real
        y, state = self._scan(u, write, read, delta, None if cache is None else cache["state"])
        if cache is not None:
            cache["conv"], cache["state"] = tail, state
        gated = (y * F.silu(z.float())).unflatten(-1, (c.n_groups, -1))
        y = F.rms_norm(gated, gated.shape[-1:], eps=1e-5).flatten(-2) * self.norm_scale
        return self.out(y.to(x.dtype)), cache

    def _scan(
        self, u: Tensor, write: Tensor, read: Tensor, delta: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Inputs u [B, T, I], write and read [B, T, G * N], delta [B, T, H] -> outputs like u, state [B, H, N, P]."""
        c = self.config
        values = u.unflatten(-1, (c.n_heads, self.head_dim))  # [B, T, H, P]
        log_decay = -self.a_log.float().exp() * delta
        # Each group is a batch row of its own, whose heads share one query and one key.
        q, k = (self._groups_to_rows(heads.unflatten(-1, (c.n_groups, -1))) for heads in (read, write))
        v, log_decay = self._groups_to_rows(values * delta[..., None]), self._groups_to_rows(log_decay)
        if state is not None:
            state = state.unflatten(1, (c.n_groups, -1)).flatten(0, 1)
        o, state = scalar_recurrence(q, k, v, log_decay, state)
        o = o.unflatten(0, (-1, c.n_groups)).transpose(1, 2).flatten(2, 3)  # [B, T, H, P]
        o = torch.addcmul(o, self.skip.float()[:, None], values)
        return o.flatten(2), state.unflatten(0, (-1, c.n_groups)).flatten(1, 2)

    def _groups_to_rows(self, heads: Tensor) -> Tensor:
        """[B, T, groups * each, ...] -> [B * groups, T, each, ...]."""
        return heads.unflatten(2, (self.config.n_groups, -1)).transpose(1, 2).flatten(0, 1)

    def cache_spec(self) -> CacheSpec:
        return {
            "conv": Fixed(self.conv.tail_shape, dtype=None),
            "state": Fixed((self.config.n_heads, self.config.d_state, self.head_dim)),
        }

    def flops_per_token(self, context: int) -> int:
        counted = 2 * (self.in_proj.weight.numel() + self.out.weight.numel() + self.d_inner * self.config.d_state)
        return counted + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.d_inner * self.config.d_state  # the outer product that the state takes up
