"""Kimi Delta Attention: the delta rule on a state that decays by a gate of its own in every key channel.

    S_t = diag(a_t) S_{t-1} + b_t k_tᵀ (v_t - k_t diag(a_t) S_{t-1})        b_t = sigmoid(W_b x_t)
    a_t = exp(-r softplus(W_a2 W_a1 x_t + β))                               r learned per head, β per channel
    q, k, v = silu(conv(W x))                                               with q and k of length 1
    y_t = W_o (norm(q_t S_t / sqrt(head_dim)) ⊙ sigmoid(W_g2 W_g1 x_t))

per head.

Source: Kimi Team 2025, https://arxiv.org/abs/2510.26692

Shape letters: B batch row, T new token, D d_model, H head, K key and value channel.
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


class KimiDeltaAttention(SequenceBlock):
    """The delta rule with a decay per channel: keys overwritten, and each channel forgotten at its own pace."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "head_dim": {"choice": [8, 16, 32]},
        "gate_low_rank": {"choice": [4, 8, 16]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads, each with a state of head_dim * head_dim numbers."""
        head_dim: PositiveInt | None = None
        """Width of a head's keys and of its values; d_model / n_heads when left out."""
        gate_low_rank: PositiveInt | None = None
        """Width between the two projections of the decay, and of the output gate; head_dim when left out."""
        kernel_size: Annotated[int, Field(ge=2)] = 4
        """Tokens that the convolutions of queries, keys and values see, the new one included."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        if c.head_dim is None:
            require_divisible("d_model", d_model, "n_heads", c.n_heads)
        self.n_heads, self.head_dim = c.n_heads, c.head_dim or d_model // c.n_heads
        if self.head_dim == 1:
            raise UserError(
                "head_dim=1 leaves keys of one channel, which scaled to length 1 are a sign; take 2 or more"
            )
        width, rank = self.n_heads * self.head_dim, c.gate_low_rank or self.head_dim
        self.qkv = nn.Linear(d_model, 3 * width, bias=False)
        self.conv = CausalConv(3 * width, c.kernel_size)
        self.strength = nn.Linear(d_model, self.n_heads, bias=False)
        self.step_down = nn.Linear(d_model, rank, bias=False)
        self.step_up = nn.Linear(rank, width, bias=False)
        self.decay = SoftplusDecay(self.n_heads, self.head_dim)
        self.gate_down = nn.Linear(d_model, rank, bias=False)
        self.gate_up = nn.Linear(rank, width, bias=False)
        self.norm = RMSNorm(self.head_dim, eps=1e-6)
        self.out = nn.Linear(width, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.qkv, self.strength, self.step_down, self.step_up, self.gate_down, self.gate_up):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        for module in (self.conv, self.decay, self.norm):
            module.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        seen, heads = 0 if cache is None else cache.position, (self.n_heads, self.head_dim)
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=seen)
        qkv, tail = self.conv(self.qkv(x), None if cache is None else cache["conv"], real)
        q, k, v = F.silu(qkv).unflatten(-1, (3, *heads)).unbind(dim=2)  # [B, T, H, K]
        strength = self.strength(x).float().sigmoid()[..., None]
        log_decay = self.decay(self.step_up(self.step_down(x)).unflatten(-1, heads))
        if real is not None:  # padding writes nothing and decays nothing
            strength, log_decay = strength * real[..., None], log_decay * real[..., None]
        q, k, state = unit(q) * self.head_dim**-0.5, unit(k), None if cache is None else cache["state"]
        o, state = delta_rule(q, k, v.float(), k * strength, log_decay, state)
        if cache is not None:
            cache["state"], cache["conv"] = state, tail
        gate = self.gate_up(self.gate_down(x)).sigmoid()
        return self.out(self.norm(o.to(x.dtype)).flatten(2) * gate), cache

    def cache_spec(self) -> CacheSpec:
        return {
            "state": Fixed((self.n_heads, self.head_dim, self.head_dim)),
            "conv": Fixed(self.conv.tail_shape, dtype=None),
        }

    def flops_per_token(self, context: int) -> int:
        gates = (self.strength, self.step_down, self.step_up, self.gate_down, self.gate_up)
        projections = sum(linear.weight.numel() for linear in (self.qkv, *gates, self.out))
        return 2 * projections + 4 * self.n_heads * self.head_dim**2 + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.n_heads * self.head_dim**2  # the outer product that the state takes up
