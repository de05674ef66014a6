"""Lightning attention (MiniMax-01): linear attention whose heads forget at fixed rates, slower in deeper layers.

    S_t = exp(-s) S_{t-1} + k_tᵀ v_t    o_t = q_t S_t    [q, k, v]_t = swish(W_qkv x_t)
    s = 2^(-8 (h + 1) / H) (1 - l / (L - 1))             for head h of H in layer l of L
    y_t = W_o (sigmoid(W_g x_t) ⊙ norm(concat_h o_t))

The slope s of the last layer is next to 0: it forgets nothing.

Source: MiniMax 2025, https://arxiv.org/abs/2501.08313 ; Qin et al. 2024 (computed in blocks),
https://arxiv.org/abs/2401.04658

Shape letters: B batch row, T new token, D d_model, H head, K channel of a head.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.norm import RMSNorm
from doge_lab.ops.scalar_recurrence import scalar_recurrence

_EPS = 1e-5  # the published form keeps the last layer's slopes just above 0, and its divisor too


class LightningAttention(SequenceBlock):
    """Linear attention with a fixed decay per head and layer: a state of fixed size instead of keys and values."""

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads; with heads of d_model / n_heads, fewer have a larger state."""
        head_dim: PositiveInt | None = None
        """Width of a head; d_model / n_heads when left out."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4, 8]},
        "head_dim": {"int": [4, 32], "log": True},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        if c.head_dim is None:
            require_divisible("d_model", d_model, "n_heads", c.n_heads)
        self.n_heads, self.head_dim = c.n_heads, c.head_dim or d_model // c.n_heads
        width = self.n_heads * self.head_dim
        self.qkv = nn.Linear(d_model, 3 * width, bias=False)
        self.gate = nn.Linear(d_model, width, bias=False)
        self.norm = RMSNorm(width, eps=1e-6)
        self.out = nn.Linear(width, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear(self.qkv)
        init_linear(self.gate)
        init_linear(self.out, self.output_scale)
        self.norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        qkv = F.silu(self.qkv(x)).unflatten(-1, (3, self.n_heads, self.head_dim)).float()
        q, k, v = qkv.unbind(2)  # [B, T, H, K]
        log_decay = self._log_decay(x.device).expand(1, new, -1)
        real = new_real_tokens(attention_mask, new=new, seen=seen)
        if real is not None:  # padding writes nothing and decays nothing
            k, log_decay = k * real[..., None], log_decay * real
        o, state = scalar_recurrence(q, k, v, log_decay, None if cache is None else cache["state"])
        if cache is not None:
            cache["state"] = state
        return self.out(self.gate(x).sigmoid() * self.norm(o.to(x.dtype).flatten(2))), cache

    def _log_decay(self, device: torch.device) -> Tensor:
        """The slopes, negative, [H]."""
        depth = 1 - self.layer_idx / (self.n_layers - 1 + _EPS) + _EPS
        exponent = -8 / self.n_heads * torch.arange(1, self.n_heads + 1, device=device)
        return -depth * torch.exp2(exponent)

    def cache_spec(self) -> CacheSpec:
        return {"state": Fixed((self.n_heads, self.head_dim, self.head_dim))}

    def flops_per_token(self, context: int) -> int:
        projections = sum(linear.weight.numel() for linear in (self.qkv, self.gate, self.out))
        return 2 * projections + 2 * self.n_heads * self.head_dim**2 + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.n_heads * self.head_dim**2  # the outer product that the state takes up
