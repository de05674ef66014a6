"""Softmax attention with any number of key/value heads, rotary positions or none, a window, sinks, a cap, and a gate.

    y_t = W_o concat_h  g_t ⊙ Σ_{s visible} p_ts v_s
    p_ts = exp(a_ts) / (exp(sink_h) + Σ_{r visible} exp(a_tr))        a_ts = cap tanh(q_t · k_s / (cap sqrt(head_dim)))

Visible are s <= t with t - s < window, and the `keep_first` first tokens. Without `sinks`, `soft_cap` and `gate`,
exp(sink_h) is 0, a_ts is q_t · k_s / sqrt(head_dim) and g_t is 1.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762 ; grouped heads: Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245 ; QK-norm: Henry et al. 2020, https://arxiv.org/abs/2010.04245 (as in Qwen3: RMS norm
of each head before the rotation) ; first tokens: Xiao et al. 2023, https://arxiv.org/abs/2309.17453 (there positions
count within the cache, here within the text) ; sinks: OpenAI 2025, https://arxiv.org/abs/2508.10925 ; cap: Gemma Team
2024, https://arxiv.org/abs/2408.00118 ; gate: Qiu et al. 2025, https://arxiv.org/abs/2505.06708

Shape letters: B batch row, T new token, S visible token, D d_model, H query head, G key/value head, R query heads of
a key/value head, K head_dim, N kept first token.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache, PerToken
from doge_lab.errors import UserError
from doge_lab.layers.first_tokens import store_first, visible_with_first
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import token_positions, visible_keys
from doge_lab.layers.norm import RMSNorm
from doge_lab.layers.rotary import rotate


class Attention(SequenceBlock):
    """Softmax attention: multi-head, grouped-query or multi-query, global or windowed."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_kv_heads": {"choice": [1, 2, 4]},
        "window": {"choice": [None, 8, 32]},
        "sinks": {"choice": [False, True]},
        "gate": {"choice": ["none", "head"]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Query heads."""
        n_kv_heads: PositiveInt | None = None
        """Key/value heads, a divisor of n_heads; as many as n_heads when left out. 1 is multi-query attention."""
        head_dim: PositiveInt | None = None
        """Width of a head; d_model / n_heads when left out."""
        window: Annotated[int, Field(ge=2)] | None = None
        """How many tokens a query sees, itself included; all when left out."""
        keep_first: NonNegativeInt = 0
        """How many tokens at the beginning stay visible, and in the cache, whatever the window."""
        positions: Literal["rotary", "none"] = "rotary"
        """How a head learns where tokens stand."""
        rotary_base: PositiveFloat = 10_000.0
        """The longest wavelength of the rotation is 2π times this."""
        qk_norm: bool = False
        """Normalise queries and keys per head, with a learned scale."""
        sinks: bool = False
        """A learned score per head, in the softmax's sum alone, so that a head may attend to nothing."""
        soft_cap: PositiveFloat | None = None
        """Scores stay below this in absolute value; unbounded when left out. Gemma 2 has 50."""
        gate: Literal["none", "head", "channel"] = "none"
        """Scale what a head, or each of its channels, found by a sigmoid of the token."""

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
        if c.keep_first and c.window is None:
            raise UserError(f"keep_first={c.keep_first} needs a window; without one every token stays visible")
        self.q = nn.Linear(d_model, self.n_heads * self.head_dim, bias=False)
        self.k = nn.Linear(d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.n_heads * self.head_dim, d_model, bias=False)
        self.q_norm = RMSNorm(self.head_dim, eps=1e-6) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, eps=1e-6) if c.qk_norm else nn.Identity()
        self.sinks = nn.Parameter(torch.empty(self.n_heads)) if c.sinks else None
        gates = {"none": 0, "head": self.n_heads, "channel": self.n_heads * self.head_dim}[c.gate]
        self.gate = nn.Linear(d_model, gates, bias=False) if gates else None
        self.reset_parameters()

    def _linears(self) -> list[nn.Linear]:
        return [linear for linear in (self.q, self.k, self.v, self.gate, self.out) if linear is not None]

    def reset_parameters(self) -> None:
        for linear in self._linears():
            init_linear(linear, self.output_scale if linear is self.out else 1.0)
        for norm in (self.q_norm, self.k_norm):
            if isinstance(norm, RMSNorm):
                norm.reset_parameters()
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

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
        if cache is not None:  # [B, S, G, K]
            k, v = (self._remember(name, heads, attention_mask, cache) for name, heads in (("k", k), ("v", v)))
        y = self._attend(q, k, v, attention_mask, seen)  # [B, T, H, K]
        if self.gate is not None:
            y = y * self.gate(x).unflatten(-1, (self.n_heads, -1)).sigmoid()
        return self.out(y.flatten(2)), cache

    def _remember(self, name: str, heads: Tensor, attention_mask: Tensor | None, cache: LayerCache) -> Tensor:
        """Store the new keys or values; returns all that may be looked at, the kept first tokens in front."""
        visible = cache.append(name, heads, attention_mask)
        if self.config.keep_first:
            kept = cache[f"first_{name}"]
            if cache.position + heads.shape[1] > visible.shape[1]:
                visible = torch.cat([kept.to(heads.dtype), visible], dim=1)
            cache[f"first_{name}"] = store_first(kept, heads, attention_mask, seen=cache.position)
        return visible

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, seen: int) -> Tensor:
        new, keys = q.shape[1], k.shape[1]
        if self.sinks is not None or self.config.soft_cap is not None:
            return self._attend_by_scores(q, k, v, self._visible(attention_mask, new, keys, seen, q.device))
        plainly_causal = attention_mask is None and seen == 0 and (self.config.window or new) >= new
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=None if plainly_causal else self._visible(attention_mask, new, keys, seen, q.device),
            is_causal=plainly_causal,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        return y.transpose(1, 2)

    def _attend_by_scores(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        """What no fused kernel offers: a sink in the softmax's sum, a cap on the scores."""
        q = q.unflatten(2, (self.n_kv_heads, -1)) * self.head_dim**-0.5  # [B, T, G, R, K]
        scores = torch.einsum("btgrk,bsgk->bgrts", q, k)
        if self.config.soft_cap is not None:
            scores = self.config.soft_cap * (scores / self.config.soft_cap).tanh()
        scores = scores.masked_fill(~visible[:, None], -torch.inf)
        if self.sinks is not None:
            sinks = self.sinks.view(*q.shape[2:4], 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)[..., : k.shape[1]]
        return torch.einsum("bgrts,bsgk->btgrk", weights, v).flatten(2, 3)

    def _visible(self, attention_mask: Tensor | None, new: int, keys: int, seen: int, device: torch.device) -> Tensor:
        """True where a query may look at a key, [B or 1, 1, T, S]."""
        c = self.config
        if not c.keep_first:
            return visible_keys(
                new=new, keys=keys, window=c.window, attention_mask=attention_mask, seen=seen, device=device
            )
        return visible_with_first(
            new=new,
            keys=new + min(seen, c.window - 1),
            window=c.window,
            first=c.keep_first,
            attention_mask=attention_mask,
            seen=seen,
            device=device,
        )

    def cache_spec(self) -> CacheSpec:
        heads = (self.n_kv_heads, self.head_dim)
        entry, first = PerToken(heads, window=self.config.window), Fixed((self.config.keep_first, *heads), dtype=None)
        spec: dict[str, Fixed | PerToken] = {"k": entry, "v": entry}
        return spec | {"first_k": first, "first_v": first} if self.config.keep_first else spec

    def flops_per_token(self, context: int) -> int:
        seen = min(context, self.config.window or context)
        if seen < context:
            seen += self.config.keep_first
        return 2 * sum(linear.weight.numel() for linear in self._linears()) + 4 * seen * self.n_heads * self.head_dim
