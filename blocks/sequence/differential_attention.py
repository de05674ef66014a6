"""Differential attention: each head subtracts a second softmax from its first, so that what both attend to cancels.

    o_t = Σ_{s <= t} (softmax_s(q1_t · k1_s / sqrt(head_dim)) - λ softmax_s(q2_t · k2_s / sqrt(head_dim))) v_s
    λ = exp(λ_q1 · λ_k1) - exp(λ_q2 · λ_k2) + λ_init        λ_init = 0.8 - 0.6 exp(-0.3 layer_idx)
    y_t = W_o concat_h  (1 - λ_init) norm(o_t)              norm: RMS, per head

per head, with values twice as wide as queries and keys; the λ are shared by a layer's heads.

Source: Ye et al. 2024, https://arxiv.org/abs/2410.05258 (as in transformers' DiffLlama the norm has no scale of its
own: W_o, which follows, can hold it)

Shape letters: B batch row, T new token, S visible token, D d_model, H head, G key/value head, K head_dim.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, LayerCache, PerToken
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import token_positions, visible_keys
from doge_lab.layers.rotary import rotate


class DifferentialAttention(SequenceBlock):
    """The difference of two softmax attentions over the same values."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_kv_heads": {"choice": [1, 2]},
        "lambda_init": {"choice": [None, 0.5, 0.8]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 2
        """Heads, each of two queries: half as many as ordinary attention has at the same head_dim."""
        n_kv_heads: PositiveInt | None = None
        """Heads of keys (two each) and values, a divisor of n_heads; as many as n_heads when left out."""
        head_dim: PositiveInt | None = None
        """Width of a query and a key, even; values are twice as wide. d_model / (2 n_heads) when left out."""
        lambda_init: Annotated[float, Field(gt=0, lt=1)] | None = None
        """How much of the second attention is subtracted at first; grows with the layer's depth when left out."""
        rotary_base: PositiveFloat = 10_000.0
        """The longest wavelength of the rotation is 2π times this."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.n_heads, self.n_kv_heads = c.n_heads, c.n_kv_heads or c.n_heads
        require_divisible("n_heads", self.n_heads, "n_kv_heads", self.n_kv_heads)
        if c.head_dim is None:
            require_divisible("d_model", d_model, "2 * n_heads", 2 * self.n_heads)
        self.head_dim = c.head_dim or d_model // (2 * self.n_heads)
        if self.head_dim % 2:
            raise UserError(f"rotary positions need an even head_dim, not {self.head_dim}; set it, or another n_heads")
        self.lambda_init = c.lambda_init or 0.8 - 0.6 * math.exp(-0.3 * self.layer_idx)
        self.q = nn.Linear(d_model, 2 * self.n_heads * self.head_dim, bias=False)
        self.k = nn.Linear(d_model, 2 * self.n_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(d_model, 2 * self.n_kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(2 * self.n_heads * self.head_dim, d_model, bias=False)
        self.lambda_q = nn.Parameter(torch.empty(2, self.head_dim))
        self.lambda_k = nn.Parameter(torch.empty(2, self.head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        for vectors in (self.lambda_q, self.lambda_k):
            nn.init.normal_(vectors, std=0.1)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        positions = token_positions(attention_mask, new=new, seen=seen, device=x.device)
        q, k = (
            rotate(heads.unflatten(-1, (-1, self.head_dim)), positions, self.config.rotary_base)
            for heads in (self.q(x), self.k(x))
        )  # [B, T, 2 H or 2 G, K], all first ones in front
        v = self.v(x).unflatten(-1, (self.n_kv_heads, 2 * self.head_dim))  # [B, T, G, 2 K]
        if cache is not None:
            k, v = cache.append("k", k), cache.append("v", v)  # [B, S, ...]
        visible = None
        if attention_mask is not None or seen:
            visible = visible_keys(new=new, keys=k.shape[1], attention_mask=attention_mask, seen=seen, device=x.device)
        first, second = (
            self._attend(each_q, each_k, v, visible)
            for each_q, each_k in zip(q.chunk(2, dim=2), k.chunk(2, dim=2), strict=True)
        )
        y = F.rms_norm(first - self._lambda().to(x.dtype) * second, (2 * self.head_dim,), eps=1e-5)
        return self.out((1 - self.lambda_init) * y.flatten(2)), cache

    def _lambda(self) -> Tensor:
        """λ, a scalar in float32."""
        first, second = (self.lambda_q.float() * self.lambda_k.float()).sum(dim=-1).exp()
        return first - second + self.lambda_init

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """One of the two softmaxes: q [B, T, H, K], k [B, S, G, K], v [B, S, G, 2 K] -> [B, T, H, 2 K]."""
        if q.shape[1] > 1:  # fused kernels, of no use to a single query, want equal widths
            q, k = F.pad(q, (0, self.head_dim)), F.pad(k, (0, self.head_dim))
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=visible,
            is_causal=visible is None,
            scale=self.head_dim**-0.5,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        return y.transpose(1, 2)

    def cache_spec(self) -> CacheSpec:
        return {
            "k": PerToken((2 * self.n_kv_heads, self.head_dim)),
            "v": PerToken((self.n_kv_heads, 2 * self.head_dim)),
        }

    def flops_per_token(self, context: int) -> int:
        projections = sum(linear.weight.numel() for linear in (self.q, self.k, self.v, self.out))
        return 2 * projections + 2 * context * 2 * self.n_heads * 3 * self.head_dim
