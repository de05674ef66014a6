"""Gated linear attention: a matrix-valued state that decays by a gate of its own in every key channel.

    S_t = diag(a_t) S_{t-1} + k_tᵀ v_t        a_t = sigmoid(W_a2 W_a1 x_t + b)^(1 / normaliser)
    o_t = q_t S_t / sqrt(key_dim)             y_t = W_o (norm(o_t) ⊙ swish(W_g x_t))

per head.

Source: Yang et al. 2023, https://arxiv.org/abs/2312.06635

Shape letters: B batch row, T new token, D d_model, H head, K key channel, V value channel.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.norm import RMSNorm
from doge_lab.ops.gated_recurrence import gated_recurrence


class GatedLinearAttention(SequenceBlock):
    """Linear attention with data-dependent decay: a state of fixed size instead of keys and values."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "expand_k": {"choice": [0.25, 0.5, 1.0]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads; fewer heads have a larger state, key_dim * value_dim / n_heads."""
        expand_k: PositiveFloat = 0.5
        """Width of all keys together, times d_model."""
        expand_v: PositiveFloat = 1.0
        """Width of all values together, times d_model."""
        gate_low_rank: PositiveInt = 16
        """Width between the two projections of the gate."""
        gate_normaliser: PositiveFloat = 16.0
        """The larger, the nearer to 1 decays start."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.n_heads = c.n_heads
        key_dim, value_dim = (self._width(name, getattr(c, name)) for name in ("expand_k", "expand_v"))
        self.head_k, self.head_v = key_dim // c.n_heads, value_dim // c.n_heads
        self.q = nn.Linear(d_model, key_dim, bias=False)
        self.k = nn.Linear(d_model, key_dim, bias=False)
        self.v = nn.Linear(d_model, value_dim, bias=False)
        self.decay_down = nn.Linear(d_model, c.gate_low_rank, bias=False)
        self.decay_up = nn.Linear(c.gate_low_rank, key_dim)
        self.gate = nn.Linear(d_model, value_dim, bias=False)
        self.norm = RMSNorm(self.head_v, eps=1e-6)
        self.out = nn.Linear(value_dim, d_model, bias=False)
        self.reset_parameters()

    def _width(self, name: str, expand: float) -> int:
        width = round(expand * self.d_model)
        if width < 1:
            raise UserError(f"{name}={expand} of d_model={self.d_model} leaves no channel")
        require_divisible(f"{name} * d_model", width, "n_heads", self.n_heads)
        return width

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v, self.decay_down, self.decay_up, self.gate):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        self.norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        seen = 0 if cache is None else cache.position
        q, k, log_decay = (
            heads.unflatten(-1, (self.n_heads, self.head_k)).float()
            for heads in (self.q(x), self.k(x), self.decay_up(self.decay_down(x)))
        )  # [B, T, H, K]
        v = self.v(x).unflatten(-1, (self.n_heads, self.head_v)).float()  # [B, T, H, V]
        q = q * self.head_k**-0.5
        log_decay = F.logsigmoid(log_decay) / self.config.gate_normaliser
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=seen)
        if real is not None:  # padding writes nothing and decays nothing
            k, log_decay = k * real[..., None], log_decay * real[..., None]
        o, state = gated_recurrence(q, k, v, log_decay, None if cache is None else cache["state"])
        if cache is not None:
            cache["state"] = state
        y = self.norm(o.to(x.dtype)).flatten(2) * F.silu(self.gate(x))
        return self.out(y), cache

    def cache_spec(self) -> CacheSpec:
        return {"state": Fixed((self.n_heads, self.head_k, self.head_v))}

    def flops_per_token(self, context: int) -> int:
        linears = (self.q, self.k, self.v, self.decay_down, self.decay_up, self.gate, self.out)
        counted = 2 * sum(linear.weight.numel() for linear in linears) + 2 * self.n_heads * self.head_k * self.head_v
        return counted + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.n_heads * self.head_k * self.head_v  # the outer product that the state takes up
