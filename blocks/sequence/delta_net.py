"""DeltaNet: linear attention that replaces what its state holds under a key instead of adding to it.

    S_t = S_{t-1} + b_t k_tᵀ (v_t - k_t S_{t-1})        b_t = sigmoid(W_b x_t)
    q, k, v = silu(conv(W x))                           with q and k of length 1
    y_t = W_o norm(q_t S_t)

per head.

Source: Yang et al. 2024, https://arxiv.org/abs/2406.06484 ; the rule: Schlag et al. 2021,
https://arxiv.org/abs/2102.11174 ; b up to 2: Grazzi et al. 2024, https://arxiv.org/abs/2411.12537

Shape letters: B batch row, T new token, D d_model, H head, K key channel, V value channel.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.norm import RMSNorm, unit
from doge_lab.layers.short_conv import CausalConv
from doge_lab.ops.delta_rule import delta_rule


class DeltaNet(SequenceBlock):
    """The delta rule without decay: a state of fixed size in which keys can be overwritten."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "head_dim": {"choice": [8, 16, 32]},
        "value_dim": {"choice": [8, 16, 32]},
        "allow_negative": {"choice": [False, True]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads, each with a state of head_dim * value_dim numbers."""
        head_dim: PositiveInt | None = None
        """Width of a head's keys; d_model / n_heads when left out."""
        value_dim: PositiveInt | None = None
        """Width of a head's values; head_dim when left out."""
        kernel_size: Annotated[int, Field(ge=2)] | None = 4
        """Tokens that the convolutions of queries, keys and values see, the new one included; null for none."""
        allow_negative: bool = False
        """Let b_t reach 2, so that a write can turn the old value's sign, which tracks parity and the like."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        if c.head_dim is None:
            require_divisible("d_model", d_model, "n_heads", c.n_heads)
        self.n_heads, self.head_k = c.n_heads, c.head_dim or d_model // c.n_heads
        self.head_v = c.value_dim or self.head_k
        self.widths = [self.n_heads * width for width in (self.head_k, self.head_k, self.head_v)]
        self.qkv = nn.Linear(d_model, sum(self.widths), bias=False)
        self.conv = None if c.kernel_size is None else CausalConv(sum(self.widths), c.kernel_size)
        self.strength = nn.Linear(d_model, self.n_heads, bias=False)
        self.norm = RMSNorm(self.head_v, eps=1e-6)
        self.out = nn.Linear(self.widths[2], d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.qkv, self.strength):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        self.norm.reset_parameters()
        if self.conv is not None:
            self.conv.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        seen = 0 if cache is None else cache.position
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=seen)
        q, k, v = self._heads(x, real, cache)
        strength = self.strength(x).float().sigmoid()  # [B, T, H]
        if self.config.allow_negative:
            strength = 2 * strength
        if real is not None:  # padding writes nothing
            strength = strength * real
        no_decay = k.new_zeros(1, x.shape[1], 1, 1)
        state = None if cache is None else cache["state"]
        o, state = delta_rule(q, k, v, k * strength[..., None], no_decay, state)
        if cache is not None:
            cache["state"] = state
        return self.out(self.norm(o.to(x.dtype)).flatten(2)), cache

    def _heads(self, x: Tensor, real: Tensor | None, cache: LayerCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys [B, T, H, K] and values [B, T, H, V], in float32."""
        qkv = self.qkv(x)
        if self.conv is not None:
            qkv, tail = self.conv(qkv, None if cache is None else cache["conv"], real)
            if cache is not None:
                cache["conv"] = tail
        q, k, v = (heads.unflatten(-1, (self.n_heads, -1)) for heads in F.silu(qkv).split(self.widths, dim=-1))
        return unit(q), unit(k), v.float()

    def cache_spec(self) -> CacheSpec:
        state = {"state": Fixed((self.n_heads, self.head_k, self.head_v))}
        return state if self.conv is None else {**state, "conv": Fixed(self.conv.tail_shape, dtype=None)}

    def flops_per_token(self, context: int) -> int:
        projections = sum(linear.weight.numel() for linear in (self.qkv, self.strength, self.out))
        return 2 * projections + 4 * self.n_heads * self.head_k * self.head_v + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.n_heads * self.head_k * self.head_v  # the outer product that the state takes up
