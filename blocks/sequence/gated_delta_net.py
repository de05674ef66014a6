"""Gated DeltaNet: the delta rule on a state that also decays, by one number per head that the token sets.

    S_t = a_t S_{t-1} + b_t k_tᵀ (v_t - k_t a_t S_{t-1})        b_t = sigmoid(W_b x_t)
    a_t = exp(-r softplus(W_a x_t + β))                         r learned per head
    q, k, v = silu(conv(W x))                                   with q and k of length 1
    y_t = W_o (norm(q_t S_t / sqrt(head_dim)) ⊙ silu(W_g x_t))

per value head; several value heads may share a query and key head, as in Qwen3-Next.

Source: Yang et al. 2024, https://arxiv.org/abs/2412.06464

Shape letters: B batch row, T new token, D d_model, G query and key head, H value head, K key channel, V value channel.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.norm import RMSNorm, unit
from doge_lab.layers.short_conv import CausalConv
from doge_lab.layers.softplus_decay import SoftplusDecay
from doge_lab.ops.delta_rule import delta_rule


class GatedDeltaNet(SequenceBlock):
    """The delta rule with a decay per head: single keys are overwritten, and whole states forgotten."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "head_dim": {"choice": [8, 16, 32]},
        "value_dim": {"choice": [8, 16, 32]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads of queries and keys."""
        n_value_heads: PositiveInt | None = None
        """Heads of values, a multiple of n_heads, each with a state of its own; as many as n_heads when left out."""
        head_dim: PositiveInt | None = None
        """Width of a head's keys; d_model / n_heads when left out."""
        value_dim: PositiveInt | None = None
        """Width of a value head; when left out, all values together are twice as wide as all keys."""
        kernel_size: Annotated[int, Field(ge=2)] = 4
        """Tokens that the convolutions of queries, keys and values see, the new one included."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.n_heads, self.n_value_heads = c.n_heads, c.n_value_heads or c.n_heads
        require_divisible("n_value_heads", self.n_value_heads, "n_heads", self.n_heads)
        if c.head_dim is None:
            require_divisible("d_model", d_model, "n_heads", self.n_heads)
        self.head_k = c.head_dim or d_model // self.n_heads
        if self.head_k == 1:
            raise UserError(
                "head_dim=1 leaves keys of one channel, which scaled to length 1 are a sign; take 2 or more"
            )
        key_width = self.n_heads * self.head_k
        if c.value_dim is None:
            require_divisible("2 * n_heads * head_dim", 2 * key_width, "n_value_heads", self.n_value_heads)
        self.head_v = c.value_dim or 2 * key_width // self.n_value_heads
        value_width = self.n_value_heads * self.head_v
        self.widths = [key_width, key_width, value_width]
        self.qkv = nn.Linear(d_model, sum(self.widths), bias=False)
        self.conv = CausalConv(sum(self.widths), c.kernel_size)
        self.strength = nn.Linear(d_model, self.n_value_heads, bias=False)
        self.step = nn.Linear(d_model, self.n_value_heads, bias=False)
        self.decay = SoftplusDecay(self.n_value_heads)
        self.gate = nn.Linear(d_model, value_width, bias=False)
        self.norm = RMSNorm(self.head_v, eps=1e-6)
        self.out = nn.Linear(value_width, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.qkv, self.strength, self.step, self.gate):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        for module in (self.conv, self.decay, self.norm):
            module.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        seen = 0 if cache is None else cache.position
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=seen)
        q, k, v = self._heads(x, real, cache)
        strength = self.strength(x).float().sigmoid()[..., None]  # [B, T, H, 1]
        log_decay = self.decay(self.step(x)[..., None])
        if real is not None:  # padding writes nothing and decays nothing
            strength, log_decay = strength * real[..., None], log_decay * real[..., None]
        state = None if cache is None else cache["state"]
        o, state = delta_rule(q, k, v, k * strength, log_decay, state)
        if cache is not None:
            cache["state"] = state
        return self.out(self.norm(o.to(x.dtype)).flatten(2) * F.silu(self.gate(x))), cache

    def _heads(self, x: Tensor, real: Tensor | None, cache: LayerCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys [B, T, H, K] and values [B, T, H, V], in float32."""
        qkv, tail = self.conv(self.qkv(x), None if cache is None else cache["conv"], real)
        if cache is not None:
            cache["conv"] = tail
        q, k, v = F.silu(qkv).split(self.widths, dim=-1)
        q, k = (
            unit(heads.unflatten(-1, (self.n_heads, self.head_k))).repeat_interleave(
                self.n_value_heads // self.n_heads, dim=2
            )
            for heads in (q, k)
        )
        return q * self.head_k**-0.5, k, v.unflatten(-1, (self.n_value_heads, self.head_v)).float()

    def cache_spec(self) -> CacheSpec:
        return {
            "state": Fixed((self.n_value_heads, self.head_k, self.head_v)),
            "conv": Fixed(self.conv.tail_shape, dtype=None),
        }

    def flops_per_token(self, context: int) -> int:
        linears = (self.qkv, self.strength, self.step, self.gate, self.out)
        projections = sum(linear.weight.numel() for linear in linears)
        reads = 4 * self.n_value_heads * self.head_k * self.head_v
        return 2 * projections + reads + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.n_value_heads * self.head_k * self.head_v  # the outer product that the state takes up
