"""Dynamic mask attention: a token's values rate it as a key, and each head attends to the best-rated keys alone.

    z_s = A ⊙ softplus(W_dt v_s)                    v_s: the values of all key/value heads; one rating for each
    y_t = W_o concat_h  Σ_{s in K_t} softmax_s(q_t · k_s / sqrt(head_dim) + exp(min(z_s, 8))) v_s
    K_t = the keep_window_size keys s <= t of largest z_s; of equal ones, the latest

A rating knows nothing of the query, so a key that better ones push out of K_t is out for good: it is dropped from the
cache, which never holds more than keep_window_size keys, values and ratings per head. A starts at zero, where all keys
are equal and K_t is the window of the latest. Equal tokens have equal ratings, but a product of matrices rounds a row
otherwise when there are other rows: ratings are computed in float64 and compared to 12 bits, so that ties stay ties.

Source: Shi et al. 2025, https://arxiv.org/abs/2508.02124

Shape letters: B batch row, T new token, S visible token (kept and new), D d_model, H query head, G key/value head,
K head_dim.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, LayerCache, PerToken
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens, token_positions
from doge_lab.layers.norm import RMSNorm
from doge_lab.layers.rotary import rotate

_LARGEST_RATING = 8.0
_RATING_BITS = 12  # compared: coarse beside what float32 makes of equal tokens in the layers before


class DynamicMaskAttention(SequenceBlock):
    """Attention to the keys that the dynamic mask of each head keeps."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_kv_heads": {"choice": [1, 2, 4]},
        "keep_window_size": {"choice": [8, 16, 32, 64]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Query heads."""
        n_kv_heads: PositiveInt | None = None
        """Key/value heads, a divisor of n_heads; as many as n_heads when left out. Each keeps keys of its own."""
        head_dim: PositiveInt | None = None
        """Width of a head; d_model / n_heads when left out."""
        keep_window_size: Annotated[int, Field(ge=2)] = 64
        """How many keys each head keeps."""
        positions: Literal["rotary", "none"] = "rotary"
        """How a head learns where tokens stand."""
        rotary_base: PositiveFloat = 10_000.0
        """The longest wavelength of the rotation is 2π times this."""
        qk_norm: bool = True
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
        kv_dim = self.n_kv_heads * self.head_dim
        self.q = nn.Linear(d_model, self.n_heads * self.head_dim, bias=False)
        self.k = nn.Linear(d_model, kv_dim, bias=False)
        self.v = nn.Linear(d_model, kv_dim, bias=False)
        self.dt = nn.Linear(kv_dim, self.n_kv_heads, bias=False)
        self.a = nn.Parameter(torch.empty(self.n_kv_heads))
        self.out = nn.Linear(self.n_heads * self.head_dim, d_model, bias=False)
        self.q_norm = RMSNorm(self.head_dim, eps=1e-6) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, eps=1e-6) if c.qk_norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v, self.dt):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        nn.init.zeros_(self.a)
        for norm in (self.q_norm, self.k_norm):
            if isinstance(norm, RMSNorm):
                norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        q = self.q_norm(self.q(x).unflatten(-1, (self.n_heads, self.head_dim)))  # [B, T, H, K]
        k = self.k_norm(self.k(x).unflatten(-1, (self.n_kv_heads, self.head_dim)))  # [B, T, G, K]
        exact = F.linear(x.double(), self.v.weight.double())
        v = exact.to(k.dtype).unflatten(-1, (self.n_kv_heads, self.head_dim))
        if self.config.positions == "rotary":
            positions = token_positions(attention_mask, new=new, seen=seen, device=x.device)
            q, k = (rotate(heads, positions, self.config.rotary_base) for heads in (q, k))
        rating = self._rate(exact, new_real_tokens(attention_mask, new=new, seen=seen))
        plainly_causal = new > 1 and seen == 0 and attention_mask is None and new <= self.config.keep_window_size
        if cache is not None:
            k, v, rating = self._remember(k, v, rating, cache)
        q, k, v, rating = (heads.transpose(1, 2) for heads in (q, k, v, rating))  # [B, H or G, T or S, ...]
        y = self._attend(q, k, v, rating, plainly_causal)
        return self.out(y.transpose(1, 2).flatten(2)), cache

    def _rate(self, v: Tensor, real: Tensor | None) -> Tensor:
        """Each key's rating [B, T, G] from its values [B, T, G * K] in float64; -inf for padding."""
        rating = (self.a.double() * F.softplus(F.linear(v, self.dt.weight.double()))).float()
        return rating if real is None else rating.masked_fill(~real, -torch.inf)

    def _remember(self, k: Tensor, v: Tensor, rating: Tensor, cache: LayerCache) -> tuple[Tensor, Tensor, Tensor]:
        """Store the best of the kept and the new keys; returns all that the new queries may look at, [B, S, G, ...]."""
        new, seen = k.shape[1], cache.position
        size = self.config.keep_window_size
        entries = {"k": k, "v": v, "rating": rating}
        if kept := min(seen, size):
            entries = {
                name: torch.cat([cache[name][:, :kept].to(heads.dtype), heads], dim=1)
                for name, heads in entries.items()
            }
        best = entries
        if kept + new > size:
            chosen = _best(entries["rating"], size)  # [B, W, G]
            best = {
                "rating": entries["rating"].gather(1, chosen),
                **{
                    name: entries[name].gather(1, chosen[..., None].expand(-1, -1, -1, self.head_dim))
                    for name in ("k", "v")
                },
            }
        for name, heads in best.items():
            cache[name][:, : heads.shape[1]] = heads.detach()
        # A single query sees what is kept; the first of several also what the later ones push out.
        visible = best if new == 1 else entries
        return visible["k"], visible["v"], visible["rating"]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, rating: Tensor, plainly_causal: bool) -> Tensor:
        """Attend with q [B, H, T, K], the last of the tokens behind k, v [B, G, S, K] and rating [B, G, S]."""
        groups = self.n_heads // self.n_kv_heads
        if q.shape[2] == 1:
            # finite for padding, so that a query that sees nothing else has a softmax
            bias = torch.where(rating.isneginf(), torch.finfo(q.dtype).min, _mask(rating)).to(q.dtype)
            bias = bias[:, :, None].repeat_interleave(groups, dim=1)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=groups > 1)
        # The mask rides in one more key channel: added to the scores, its gradient would cost a fused kernel.
        scale = self.head_dim**-0.5
        k = torch.cat([k, (_mask(rating) / scale)[..., None].to(k.dtype)], dim=-1)
        q = torch.cat([q, q.new_ones(()).expand(*q.shape[:3], 1)], dim=-1)
        visible = None
        if not plainly_causal:
            visible = _visible(rating, q.shape[2], self.config.keep_window_size).repeat_interleave(groups, dim=1)
        y = F.scaled_dot_product_attention(
            q, k, F.pad(v, (0, 1)), attn_mask=visible, is_causal=plainly_causal, scale=scale, enable_gqa=groups > 1
        )
        return y[..., : self.head_dim]

    def cache_spec(self) -> CacheSpec:
        window = self.config.keep_window_size
        entry = PerToken((self.n_kv_heads, self.head_dim), window=window)
        # Rounded, ratings would tie and other keys be kept.
        rating = PerToken((self.n_kv_heads,), window=window, dtype=torch.float32)
        return {"k": entry, "v": entry, "rating": rating}

    def flops_per_token(self, context: int) -> int:
        seen = min(context, self.config.keep_window_size)
        projections = sum(linear.weight.numel() for linear in (self.q, self.k, self.v, self.dt, self.out))
        return 2 * projections + 4 * seen * self.n_heads * self.head_dim


def _mask(rating: Tensor) -> Tensor:
    """What is added to a key's scores, exp(rating); beyond exp(8) a key has won, and half precision ends."""
    return rating.clamp(max=_LARGEST_RATING).exp()


def _comparable(rating: Tensor) -> Tensor:
    """Ratings rounded so that those of equal tokens are equal, in whatever call they were computed."""
    mantissa, exponent = rating.detach().frexp()
    return torch.ldexp((mantissa * 2**_RATING_BITS).round(), exponent - _RATING_BITS)


def _best(rating: Tensor, size: int) -> Tensor:
    """Which `size` of the keys [B, S, G] each head keeps after the last of them, the oldest first, [B, W, G]."""
    latest_first = _comparable(rating).flip(1).sort(dim=1, descending=True, stable=True).indices[:, :size]
    return (rating.shape[1] - 1 - latest_first).sort(dim=1).values


def _visible(rating: Tensor, new: int, size: int) -> Tensor:
    """True where one of the last `new` tokens looks at a key of [B, G, S], [B, G, T, S]: real, not later, kept."""
    keys = rating.shape[-1]
    index = torch.arange(keys, device=rating.device)
    key, query = index[:, None], index[keys - new :]
    visible = key <= query  # keys first, [S, T]: sums along the last dimension are the quickest
    if keys > size:
        ascending = _comparable(rating).sort(dim=-1, stable=True).indices
        place = torch.empty_like(ascending).scatter_(-1, ascending, index.expand_as(ascending)).float()
        better = place[..., None, :] > place[..., :, None]  # [B, G, S, S]
        visible = visible & (better.cumsum(dim=-1, dtype=torch.int32)[..., keys - new :] < size)
    real = ~rating.isneginf()[..., None]
    return ((visible & real) | ((key == query) & ~real)).mT  # padding sees itself
