"""Retention (RetNet): linear attention whose heads forget at fixed rates, each half as fast as the one before.

    S_t = g_h S_{t-1} + k_tᵀ v_t        o_t = q_t S_t / sqrt(K)        g_h = 1 - 2^-(decay_exponent + h)
    y_t = W_o (swish(W_g x_t) ⊙ group_norm(concat_h o_t))

with q and k rotated by their positions, and one group of the norm per head. The group norm does not see how a head is
scaled, so the divisors that the paper adds for numerical range (its section 2.4) would change nothing.

Source: Sun et al. 2023, https://arxiv.org/abs/2307.08621

Shape letters: B batch row, T new token, D d_model, H head, K key channel, V value channel.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens, token_positions
from doge_lab.layers.rotary import rotate
from doge_lab.ops.scalar_recurrence import scalar_recurrence


class Retention(SequenceBlock):
    """Linear attention with a fixed decay per head: a state of fixed size that forgets at many rates."""

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads; fewer heads have a larger state, expand_v * d_model² / n_heads numbers."""
        expand_v: PositiveFloat = 2.0
        """Width of all values together, times d_model."""
        decay_exponent: Annotated[float, Field(ge=0.1)] = 5.0
        """The first head keeps 1 - 2^-this of its state at each token; the next ones forget half as fast each."""
        positions: Literal["rotary", "none"] = "rotary"
        """How a head learns where tokens stand, beside the decay."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "expand_v": {"choice": [1.0, 2.0]},
        "decay_exponent": {"float": [2.0, 7.0]},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        require_divisible("d_model", d_model, "n_heads", c.n_heads)
        self.n_heads, self.head_k = c.n_heads, d_model // c.n_heads
        self.head_v = self._head_v(c.expand_v)
        if c.positions == "rotary" and self.head_k % 2:
            raise UserError(
                f"rotary positions need an even d_model / n_heads, not {d_model} / {c.n_heads} = {self.head_k}; "
                "say another n_heads, or positions: none"
            )
        values = self.n_heads * self.head_v
        self.q, self.k = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.v, self.gate = (nn.Linear(d_model, values, bias=False) for _ in range(2))
        self.norm = nn.GroupNorm(self.n_heads, values)
        self.out = nn.Linear(values, d_model, bias=False)
        self.reset_parameters()

    def _head_v(self, expand_v: float) -> int:
        width = round(expand_v * self.d_model)
        if width < 2 * self.n_heads:
            raise UserError(
                f"expand_v={expand_v} of d_model={self.d_model} leaves fewer than 2 channels for each of "
                f"n_heads={self.n_heads}, and the norm of one channel is always 0; say a larger expand_v"
            )
        require_divisible("expand_v * d_model", width, "n_heads", self.n_heads)
        return width // self.n_heads

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v, self.gate):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        self.norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        q, k, v = (linear(x).unflatten(-1, (self.n_heads, -1)).float() for linear in (self.q, self.k, self.v))
        if self.config.positions == "rotary":
            positions = token_positions(attention_mask, new=new, seen=seen, device=x.device)
            q, k = rotate(q, positions), rotate(k, positions)  # [B, T, H, K]
        log_decay = self._log_decay(x.device).expand(1, new, -1)
        real = new_real_tokens(attention_mask, new=new, seen=seen)
        if real is not None:  # padding writes nothing and decays nothing
            k, log_decay = k * real[..., None], log_decay * real
        o, state = scalar_recurrence(q * self.head_k**-0.5, k, v, log_decay, None if cache is None else cache["state"])
        if cache is not None:
            cache["state"] = state
        normed = self.norm(o.to(x.dtype).flatten(2).flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.out(F.silu(self.gate(x)) * normed), cache

    def _log_decay(self, device: torch.device) -> Tensor:
        """The logarithm of g_h, [H]."""
        exponent = self.config.decay_exponent + torch.arange(self.n_heads, device=device)
        return torch.log1p(-torch.exp2(-exponent))

    def cache_spec(self) -> CacheSpec:
        return {"state": Fixed((self.n_heads, self.head_k, self.head_v))}

    def flops_per_token(self, context: int) -> int:
        linears = (self.q, self.k, self.v, self.gate, self.out)
        counted = 2 * sum(linear.weight.numel() for linear in linears) + 2 * self.n_heads * self.head_k * self.head_v
        return counted + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.n_heads * self.head_k * self.head_v  # the outer product that the state takes up
