"""Titans' long-term memory with a matrix as memory: a delta rule whose writes have momentum and fade.

    S_t = η_t S_{t-1} - θ_t ∇l(M_{t-1}; k_t, v_t)        l(M; k, v) = |k M - v|² / 2
    M_t = (1 - α_t) M_{t-1} + S_t                         o_t = q_t M_t        M_0 = S_0 = 0
    y_t = W_o (norm(o_t) ⊙ swish(W_g x_t))                α, η, θ = sigmoid(W x_t + b)

per head; q, k and v pass through a short convolution and a swish, and q and k are scaled to length 1.

Every gradient is taken at M_{t-1}, token by token. The paper takes those of a chunk at the chunk's start, which is
another function, to train in parallel; a matrix can be trained in parallel as it is defined. Nothing bounds the memory:
where momentum hardly fades (η near 1, α near 0) it can grow from token to token, as gradient descent can diverge.

Source: Behrouz et al. 2024, https://arxiv.org/abs/2501.00663 (the memory module with a linear memory: no persistent
tokens, no attention beside it)

Shape letters: B batch row, T new token, H head, K key channel, V value channel.
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
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.norm import RMSNorm
from doge_lab.layers.short_conv import CausalConv
from doge_lab.ops.momentum_recurrence import momentum_recurrence

_FORGET_BIAS = -4.0  # memories start out fading by 2 % a token


class TitansMemory(SequenceBlock):
    """A matrix that learns to map keys to values as it reads, by gradient descent with momentum and weight decay."""

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads; fewer heads have a larger memory, key_dim * value_dim / n_heads."""
        expand_k: PositiveFloat = 1.0
        """Width of all keys together, times d_model."""
        expand_v: PositiveFloat = 1.0
        """Width of all values together, times d_model."""
        kernel_size: Annotated[int, Field(ge=2)] = 4
        """How many tokens the convolution before queries, keys and values sees."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "expand_k": {"choice": [0.5, 1.0]},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.key_dim, self.value_dim = (self._width(name, getattr(c, name)) for name in ("expand_k", "expand_v"))
        if self.key_dim == c.n_heads:
            raise UserError(f"n_heads={c.n_heads} leaves one channel to a key, which scaled to length 1 says nothing")
        self.qkv = nn.Linear(d_model, 2 * self.key_dim + self.value_dim, bias=False)
        self.conv = CausalConv(2 * self.key_dim + self.value_dim, c.kernel_size)
        self.rates = nn.Linear(d_model, 3 * c.n_heads)  # of forgetting, momentum and learning
        self.gate = nn.Linear(d_model, self.value_dim, bias=False)
        self.norm = RMSNorm(self.value_dim // c.n_heads, eps=1e-6)
        self.out = nn.Linear(self.value_dim, d_model, bias=False)
        self.reset_parameters()

    def _width(self, name: str, expand: float) -> int:
        width = round(expand * self.d_model)
        if width < 1:
            raise UserError(f"{name}={expand} of d_model={self.d_model} leaves no channel")
        require_divisible(f"{name} * d_model", width, "n_heads", self.config.n_heads)
        return width

    def reset_parameters(self) -> None:
        for linear in (self.qkv, self.rates, self.gate):
            init_linear(linear)
        nn.init.constant_(self.rates.bias[: self.config.n_heads], _FORGET_BIAS)
        init_linear(self.out, self.output_scale)
        self.conv.reset_parameters()
        self.norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        real = new_real_tokens(attention_mask, new=new, seen=seen)
        qkv, tail = self.conv(self.qkv(x), None if cache is None else cache["conv"], real)
        q, k, v = (
            part.unflatten(-1, (self.config.n_heads, -1)).float()
            for part in F.silu(qkv).split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        )  # [B, T, H, K or V]
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        forget, momentum, learn = self.rates(x).float().chunk(3, dim=-1)  # [B, T, H]
        rates = torch.stack([F.logsigmoid(-forget), F.logsigmoid(momentum), learn.sigmoid(), torch.ones_like(learn)])
        if real is not None:  # padding writes nothing and decays nothing
            rates = rates * real
        o, state = momentum_recurrence(q, k, v, rates, None if cache is None else cache["memory"])
        if cache is not None:
            cache["memory"], cache["conv"] = state, tail
        y = self.norm(o.to(x.dtype)).flatten(2) * F.silu(self.gate(x))
        return self.out(y), cache

    def cache_spec(self) -> CacheSpec:
        heads = self.config.n_heads
        memory = (heads, 2, self.key_dim // heads, self.value_dim // heads)  # the memory M and its momentum S
        return {"memory": Fixed(memory), "conv": Fixed(self.conv.tail_shape, dtype=None)}

    def flops_per_token(self, context: int) -> int:
        linears = (self.qkv, self.rates, self.gate, self.out)
        memory = self.key_dim * self.value_dim // self.config.n_heads
        counted = 2 * sum(linear.weight.numel() for linear in linears) + 4 * memory
        return counted + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.key_dim * self.value_dim // self.config.n_heads  # the outer product that the momentum takes up
