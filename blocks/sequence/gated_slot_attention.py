"""Gated slot attention: attention over a few slots, each a gated average of the keys and values so far.

    K_t = diag(a_t) K_{t-1} + (1 - a_t)ᵀ k_t        a_t = sigmoid(W_a x_t)^(1 / normaliser), one gate per slot
    V_t = diag(a_t) V_{t-1} + (1 - a_t)ᵀ v_t        q, k, v = swish of linear maps of x_t
    o_t = softmax(q_t K_tᵀ) V_t                     y_t = W_o norm(swish(o_t))

per head; the norm spans all heads. Both lines are recurrences with gates, so that training takes two passes over
chunks with a softmax over the slots between them.

Source: Zhang et al. 2024, https://arxiv.org/abs/2409.07146

Shape letters: B batch row, T new token, D d_model, H head, K head_dim, M slot.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.norm import RMSNorm
from doge_lab.ops.gated_recurrence import gated_recurrence
from doge_lab.ops.value_gated_recurrence import value_gated_recurrence


class GatedSlotAttention(SequenceBlock):
    """Attention over a fixed number of gated memory slots."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "n_slots": {"int": [4, 64], "log": True},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads, a divisor of d_model."""
        n_slots: Annotated[int, Field(ge=2)] = 16
        """Slots of each head; what is remembered is 2 * n_slots * d_model numbers."""
        gate_normaliser: PositiveFloat = 8.0
        """The larger, the nearer to 1 decays start."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.n_heads, self.n_slots = self.config.n_heads, self.config.n_slots
        require_divisible("d_model", d_model, "n_heads", self.n_heads)
        self.head_dim = d_model // self.n_heads
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.k = nn.Linear(d_model, d_model, bias=False)
        self.v = nn.Linear(d_model, d_model, bias=False)
        self.decay = nn.Linear(d_model, self.n_heads * self.n_slots, bias=False)
        self.norm = RMSNorm(d_model, eps=1e-5)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v, self.decay):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        self.norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        seen = 0 if cache is None else cache.position
        q, k, v = (
            F.silu(linear(x)).unflatten(-1, (self.n_heads, self.head_dim)).float()
            for linear in (self.q, self.k, self.v)
        )  # [B, T, H, K]
        decay = self.decay(x).unflatten(-1, (self.n_heads, self.n_slots)).float()  # [B, T, H, M]
        log_decay = F.logsigmoid(decay) / self.config.gate_normaliser
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=seen)
        if real is not None:  # a gate of 1 writes nothing and forgets nothing
            log_decay = log_decay * real[..., None]
        o = self._attend(q, k, v, log_decay, cache)
        return self.out(self.norm(F.silu(o.flatten(2)).to(x.dtype))), cache

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, cache: LayerCache | None) -> Tensor:
        write = -torch.expm1(log_decay)
        scores, keys = value_gated_recurrence(q, k, write, log_decay, None if cache is None else cache["keys"])
        weights = scores.softmax(dim=-1)  # [B, T, H, M]
        o, values = gated_recurrence(weights, write, v, log_decay, None if cache is None else cache["values"])
        if cache is not None:
            cache["keys"], cache["values"] = keys, values
        return o

    def cache_spec(self) -> CacheSpec:
        return {
            "keys": Fixed((self.n_heads, self.head_dim, self.n_slots)),
            "values": Fixed((self.n_heads, self.n_slots, self.head_dim)),
        }

    def flops_per_token(self, context: int) -> int:
        projections = sum(linear.weight.numel() for linear in (self.q, self.k, self.v, self.decay, self.out))
        return 2 * projections + 4 * self.n_slots * self.d_model + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 4 * self.n_slots * self.d_model  # the outer products that the two memories take up
