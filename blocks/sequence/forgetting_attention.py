"""Forgetting attention: softmax attention whose scores fall with all that was forgotten since, by gates of the tokens.

    f_t = sigmoid(W_f x_t + b_f)                    a forget gate per head
    y_t = W_o concat_h  Σ_{s <= t} softmax_s(q_t · k_s / sqrt(head_dim) + Σ_{s < r <= t} log f_r) v_s

The cache keeps each token's log gate rather than their sum so far, which float32 would round ever more coarsely as the
sequence grows; the sum over the visible tokens is taken in float64.

Source: Lin et al. 2025, https://arxiv.org/abs/2503.02130

Shape letters: B batch row, T new token, S visible token, D d_model, H query head, G key/value head, K head_dim.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, LayerCache, PerToken
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens, token_positions, visible_keys
from doge_lab.layers.norm import RMSNorm
from doge_lab.layers.rotary import rotate

_QUERIES = 64  # of a block


class ForgettingAttention(SequenceBlock):
    """Softmax attention with a forget gate per head and token; needs no positions besides."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_kv_heads": {"choice": [1, 2, 4]},
        "positions": {"choice": ["none", "rotary"]},
        "qk_norm": {"choice": [False, True]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Query heads, each with a forget gate."""
        n_kv_heads: PositiveInt | None = None
        """Key/value heads, a divisor of n_heads; as many as n_heads when left out."""
        head_dim: PositiveInt | None = None
        """Width of a head; d_model / n_heads when left out."""
        positions: Literal["none", "rotary"] = "none"
        """Whether heads learn where tokens stand by more than what was forgotten since."""
        rotary_base: PositiveFloat = 10_000.0
        """The longest wavelength of the rotation is 2π times this."""
        qk_norm: bool = False
        """Normalise queries and keys per head, with a learned scale."""
        forget_bias: float = 3.0
        """Logit of the forget gates at first. At 0 half of everything is forgotten at each token."""

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
        self.forget = nn.Linear(d_model, self.n_heads)
        self.out = nn.Linear(self.n_heads * self.head_dim, d_model, bias=False)
        self.q_norm = RMSNorm(self.head_dim, eps=1e-6) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, eps=1e-6) if c.qk_norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v, self.forget):
            init_linear(linear)
        nn.init.constant_(self.forget.bias, self.config.forget_bias)
        init_linear(self.out, self.output_scale)
        for norm in (self.q_norm, self.k_norm):
            if isinstance(norm, RMSNorm):
                norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        q = self.q_norm(self.q(x).unflatten(-1, (self.n_heads, self.head_dim)))  # [B, T, H, K]
        k = self.k_norm(self.k(x).unflatten(-1, (self.n_kv_heads, self.head_dim)))  # [B, T, G, K]
        v = self.v(x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        log_forget = F.logsigmoid(self.forget(x).float())  # [B, T, H]
        real = new_real_tokens(attention_mask, new=new, seen=seen)
        if real is not None:  # padding forgets nothing
            log_forget = log_forget * real
        if self.config.positions == "rotary":
            positions = token_positions(attention_mask, new=new, seen=seen, device=x.device)
            q, k = (rotate(heads, positions, self.config.rotary_base) for heads in (q, k))
        if cache is not None:  # [B, S, ...]
            k, v = cache.append("k", k), cache.append("v", v)
            log_forget = cache.append("log_forget", log_forget)
        kept = log_forget.double().cumsum(dim=1).mT  # [B, H, S]
        visible = visible_keys(new=new, keys=k.shape[1], attention_mask=attention_mask, seen=seen, device=x.device)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v.to(q.dtype)))
        attend = self._attend_in_blocks if new > 1 and _full_precision(q) else self._attend_biased
        return self.out(attend(q, k, v, kept, visible).transpose(1, 2).flatten(2)), cache

    def _attend_biased(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, visible: Tensor) -> Tensor:
        """What was forgotten is a bias [B, H, T, S]: q [B, H, T, K], k and v [B, G, S, K] -> like q."""
        bias = kept[..., -q.shape[2] :, None] - kept[..., None, :]
        bias = torch.where(visible, bias, -torch.inf).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=self.n_kv_heads != self.n_heads)

    def _attend_in_blocks(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, visible: Tensor) -> Tensor:
        """The same for a fused kernel, which takes no bias that wants a gradient: it rides in one more key channel.

        There it is what a key has lost by the middle of a block of queries, where it should be by each query: a softmax
        does not see the difference, and float32 rounds no more than what is forgotten within half a block.
        """
        new, keys, scale = q.shape[2], k.shape[2], self.head_dim**-0.5
        k, v = (heads.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1) for heads in (k, v))
        q, v = F.pad(q, (0, 1), value=1.0), F.pad(v, (0, 1))  # fused kernels want equal widths
        outputs = []
        for start in range(0, new, _QUERIES):
            end = keys - new + min(start + _QUERIES, new)
            lost = kept[..., (end + keys - new + start) // 2, None] - kept[..., :end]
            block_k = torch.cat([k[:, :, :end], (lost / scale).to(k.dtype)[..., None]], dim=-1)
            rows = slice(start, start + _QUERIES)
            outputs.append(
                F.scaled_dot_product_attention(
                    q[:, :, rows], block_k, v[:, :, :end], attn_mask=visible[:, :, rows, :end], scale=scale
                )
            )
        return torch.cat(outputs, dim=2)[..., : self.head_dim]

    def cache_spec(self) -> CacheSpec:
        heads = PerToken((self.n_kv_heads, self.head_dim))
        return {"k": heads, "v": heads, "log_forget": PerToken((self.n_heads,), dtype=torch.float32)}

    def flops_per_token(self, context: int) -> int:
        projections = sum(linear.weight.numel() for linear in (self.q, self.k, self.v, self.forget, self.out))
        return 2 * projections + 4 * context * self.n_heads * self.head_dim


def _full_precision(x: Tensor) -> bool:
    """Whether attention over `x` is computed in float32 or more; less is exact enough for differences alone."""
    return x.dtype.itemsize >= 4 and not torch.is_autocast_enabled(x.device.type)
