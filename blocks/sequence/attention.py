"""Softmax attention with any number of key/value heads, rotary positions or none, a window, and QK-norm.

    y_t = W_o concat_h  Σ_{s <= t, t - s < window} softmax_s(q_t · k_s / sqrt(head_dim)) v_s

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762 ; grouped heads: Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245 ; QK-norm: Henry et al. 2020, https://arxiv.org/abs/2010.04245 (as in Qwen3: RMS norm
of each head before the rotation)

Shape letters: B batch row, T new token, S visible token, D d_model, H query head, G key/value head, K head_dim.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, LayerCache, PerToken
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import token_positions, visible_keys
from doge_lab.layers.rotary import rotate


class Attention(SequenceBlock):
    """Softmax attention: multi-head, grouped-query or multi-query, global or windowed."""

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Query heads."""
        n_kv_heads: PositiveInt | None = None
        """Key/value heads, a divisor of n_heads; as many as n_heads when left out. 1 is multi-query attention."""
        head_dim: PositiveInt | None = None
        """Width of a head; d_model / n_heads when left out."""
        window: Annotated[int, Field(ge=2)] | None = None
        """How many tokens a query sees, itself included; all when left out."""
        positions: Literal["rotary", "none"] = "rotary"
        """How a head learns where tokens stand."""
        rotary_base: PositiveFloat = 10_000.0
        """The longest wavelength of the rotation is 2π times this."""
        qk_norm: bool = False
        """Normalise queries and keys per head, with a learned scale."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.n_heads, self.n_kv_heads = c.n_heads, c.n_kv_heads or c.n_heads
        require_divisible("n_heads", self.n_heads, "n_kv_heads", self.n_kv_heads)
        if c.head_dim is None:
            require_divisible("d_model", d_model, "n_heads", self.n_heads)
        self.head_dim = c.head_dim or d_model // self.n_heads
        if c.positions == "rotary" and self.head_dim % 2:
            raise UserError(f"rotary positions need an even head_dim, not {self.head_dim} (or positions: none)")
        self.q = nn.Linear(d_model, self.n_heads * self.head_dim, bias=False)
        self.k = nn.Linear(d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.n_heads * self.head_dim, d_model, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=1e-6) if c.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head_dim, eps=1e-6) if c.qk_norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        for norm in (self.q_norm, self.k_norm):
            if isinstance(norm, nn.RMSNorm):
                norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        q = self.q_norm(self.q(x).unflatten(-1, (self.n_heads, self.head_dim)))  # [B, T, H, K]
        k = self.k_norm(self.k(x).unflatten(-1, (self.n_kv_heads, self.head_dim)))  # [B, T, G, K]
        v = self.v(x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        if self.config.positions == "rotary":
            positions = token_positions(attention_mask, new=new, seen=seen, device=x.device)
            q, k = (rotate(heads, positions, self.config.rotary_base) for heads in (q, k))
        if cache is not None:
            k, v = cache.append("k", k), cache.append("v", v)  # [B, S, G, K]
        y = self._attend(q, k, v, attention_mask, seen)
        return self.out(y.flatten(2)), cache

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, seen: int) -> Tensor:
        new, keys = q.shape[1], k.shape[1]
        plainly_causal = attention_mask is None and seen == 0 and (self.config.window or new) >= new
        mask = None
        if not plainly_causal:
            mask = visible_keys(
                new=new,
                keys=keys,
                window=self.config.window,
                attention_mask=attention_mask,
                seen=seen,
                device=q.device,
            )
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=plainly_causal,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        return y.transpose(1, 2)

    def cache_spec(self) -> CacheSpec:
        entry = PerToken((self.n_kv_heads, self.head_dim), window=self.config.window)
        return {"k": entry, "v": entry}

    def flops_per_token(self, context: int) -> int:
        seen = min(context, self.config.window or context)
        projections = sum(linear.weight.numel() for linear in (self.q, self.k, self.v, self.out))
        return 2 * projections + 4 * seen * self.n_heads * self.head_dim
