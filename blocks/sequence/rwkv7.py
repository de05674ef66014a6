"""RWKV-7's time mixing: a state that decays per channel and unlearns along one key what it learns along another.

    S_t = diag(w_t) S_{t-1} - (a_t ⊙ κ_t)ᵀ κ_t S_{t-1} + k̃_tᵀ v_t
    w_t = exp(-e^{-1/2} sigmoid(λ_w + W_w2 tanh(W_w1 x^w_t)))         a_t = sigmoid(λ_a + W_a2 W_a1 x^a_t)
    κ_t = ξ ⊙ k_t, of length 1         k̃_t = k_t ⊙ (1 + α ⊙ (a_t - 1))         g_t = W_g2 sigmoid(W_g1 x^g_t)
    y_t = W_o (g_t ⊙ (norm(r_t S_t) + (r_t · (ρ ⊙ k̃_t)) v_t))

per head, with r, k, v = W_r x^r, W_k x^k, W_v x^v, and x^□_t = x_t + μ_□ ⊙ (x_{t-1} - x_t) the token shift. One part
of the published model is left out: there, values of later layers are mixed with those of the first layer, but a block
is given its own input alone.

Source: Peng et al. 2025, https://arxiv.org/abs/2503.14456

Shape letters: B batch row, T new token, D d_model, H head, K key and value channel.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.norm import unit
from doge_lab.layers.packing import Packing
from doge_lab.ops.delta_rule import delta_rule

_STRONGEST_LOG_DECAY = -math.exp(-0.5)
# How the shift starts: channel i of D mixes in 1 - (i / D)^(exponent * share of layers above) of the token before.
_SHIFT_EXPONENTS = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}


class Rwkv7(SequenceBlock):
    """The generalised delta rule with a token shift, a bonus for the present token and an output gate."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "decay_rank": {"choice": [4, 8, 16]},
        "rate_rank": {"choice": [4, 8, 16]},
        "gate_rank": {"choice": [8, 16, 32]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads; fewer heads have a larger state, d_model^2 / n_heads."""
        decay_rank: PositiveInt = 8
        """Width between the two projections of the decay w."""
        rate_rank: PositiveInt = 8
        """Width between the two projections of the rate a, at which a key is unlearnt."""
        gate_rank: PositiveInt = 16
        """Width between the two projections of the output gate g."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        require_divisible("d_model", d_model, "n_heads", c.n_heads)
        self.n_heads, self.head_dim = c.n_heads, d_model // c.n_heads
        if self.head_dim == 1:
            raise UserError(
                f"n_heads={c.n_heads} of d_model={d_model} leaves heads of one channel, which their norm makes 0; "
                "take fewer heads"
            )
        self.shift = nn.Parameter(torch.empty(len(_SHIFT_EXPONENTS), d_model))
        self.r, self.k, self.v, self.out = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.decay_down = nn.Linear(d_model, c.decay_rank, bias=False)
        self.decay_up = nn.Linear(c.decay_rank, d_model)
        self.rate_down = nn.Linear(d_model, c.rate_rank, bias=False)
        self.rate_up = nn.Linear(c.rate_rank, d_model)
        self.gate_down = nn.Linear(d_model, c.gate_rank, bias=False)
        self.gate_up = nn.Linear(c.gate_rank, d_model, bias=False)
        self.unlearning = nn.Parameter(torch.empty(d_model))  # ξ
        self.learning = nn.Parameter(torch.empty(d_model))  # α
        self.bonus = nn.Parameter(torch.empty(self.n_heads, self.head_dim))  # ρ
        self.norm = nn.GroupNorm(self.n_heads, d_model, eps=1e-5 * self.head_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in self._linears():
            init_linear(linear, self.output_scale if linear is self.out else 1.0)
        self.norm.reset_parameters()
        with torch.no_grad():
            channel = torch.arange(self.d_model, device=self.shift.device) / self.d_model
            layers_above = 1 - self.layer_idx / self.n_layers
            for shift, exponent in zip(self.shift, _SHIFT_EXPONENTS.values(), strict=True):
                shift.copy_(1 - channel ** (exponent * layers_above))
            self.decay_up.bias.copy_(torch.linspace(-5.5, 0.5, self.d_model))
        nn.init.constant_(self.unlearning, 0.85)
        nn.init.ones_(self.learning)
        nn.init.zeros_(self.bonus)

    def _linears(self) -> tuple[nn.Linear, ...]:
        low_rank = (self.decay_down, self.decay_up, self.rate_down, self.rate_up, self.gate_down, self.gate_up)
        return (self.r, self.k, self.v, *low_rank, self.out)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=0 if cache is None else cache.position)
        x_r, x_w, x_k, x_v, x_a, x_g = self._shifted(x, real, cache)
        k, rate = self.k(x_k), self.rate_up(self.rate_down(x_a)).sigmoid()
        log_decay = _STRONGEST_LOG_DECAY * self.decay_up(self.decay_down(x_w).tanh()).float().sigmoid()
        r, v, unlearnt, learnt, rate, log_decay = (
            channels.unflatten(-1, (self.n_heads, self.head_dim)).float()
            for channels in (
                self.r(x_r),
                self.v(x_v),
                k * self.unlearning,
                k * (1 + self.learning * (rate - 1)),
                rate,
                log_decay,
            )
        )  # [B, T, H, K]
        unlearnt = unit(unlearnt)
        if real is not None:  # padding writes nothing and decays nothing
            unlearnt, learnt, log_decay = (heads * real[..., None] for heads in (unlearnt, learnt, log_decay))
        o, state = delta_rule(
            r,
            unlearnt * (-log_decay).exp(),  # the paper reads the state before it decays
            torch.zeros_like(v),
            rate * unlearnt,
            log_decay,
            None if cache is None else cache["state"],
            added=(learnt, v),
            strongest=_STRONGEST_LOG_DECAY,
        )
        if cache is not None:
            cache["state"] = state
        bonus = (r * learnt * self.bonus).sum(dim=-1, keepdim=True) * v
        normed = self.norm(o.to(x.dtype).flatten(2).flatten(0, 1)).view_as(x)
        gate = self.gate_up(self.gate_down(x_g).sigmoid())
        return self.out((normed + bonus.flatten(2).to(x.dtype)) * gate), cache

    def _shifted(self, x: Tensor, real: Tensor | None, cache: LayerCache | None) -> tuple[Tensor, ...]:
        """What r, w, k, v, a and g see of each token and the one before, [B, T, D] each."""
        before = torch.zeros_like(x[:, :1]) if cache is None else cache["shift"].to(x.dtype)
        packing = Packing.behind_tail(1, real)
        packed = packing.pack(torch.cat([before, x], dim=1))
        difference = packing.unpack(packed[:, :-1]) - x
        if cache is not None:
            cache["shift"] = packed[:, -1:]
        return tuple(torch.addcmul(x, difference, share) for share in self.shift.unbind())

    def cache_spec(self) -> CacheSpec:
        return {
            "state": Fixed((self.n_heads, self.head_dim, self.head_dim)),
            "shift": Fixed((1, self.d_model), dtype=None),
        }

    def flops_per_token(self, context: int) -> int:
        counted = 2 * sum(linear.weight.numel() for linear in self._linears()) + 4 * self.d_model * self.head_dim
        return counted + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 4 * self.d_model * self.head_dim  # two outer products: what is unlearned, and the value
