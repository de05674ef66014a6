"""TTT-Linear: a linear model per head as hidden state, trained on the tokens it reads while it reads them.

    f(u; W) = u + LN([u, 1] W)                           l(W; k, v) = |f(k; W) - v|² / 2
    W_t = W_m - s_i Σ_{m < j <= t} η_j ∇l(W_m; k_j, v_j)      η_t = base_lr sigmoid(w x_t + b) / head_dim
    o_t = f(q_t; W_t)                                    y_t = W_o LN(o_t)

per head, W with its bias as last row. The gradients of a mini-batch of `mini_batch` tokens are taken at the weights W_m
that the one before has left; its token i (from 0) scales their sum by s_i = max(1 / (i + 1) + learned, 0). The cache
holds W_m and the sum, which is subtracted when the next mini-batch begins. Mini-batches count real tokens only: the
tokens of a padded row are moved to the places that they would have without padding, and the outputs back.

Source: Sun et al. 2024, https://arxiv.org/abs/2407.04620 ; the scale s and the rotation of queries and keys by their
place in the mini-batch as in the authors' code, https://github.com/test-time-training/ttt-lm-pytorch

Shape letters: B batch row, T new token, H head, K head channel, U head channel and the constant 1, N mini-batch,
C token of a mini-batch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens, real_tokens, token_positions
from doge_lab.layers.rotary import rotate
from doge_lab.ops.inner_training import inner_training

_EPS = 1e-6


class TttLinear(SequenceBlock):
    """A hidden state that is a model: by gradient descent it learns to reconstruct values from keys."""

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads; fewer heads have a larger state, of 2 * d_model * (d_model / n_heads + 1) numbers."""
        mini_batch: Annotated[int, Field(ge=2)] = 16
        """Tokens whose gradients are taken at the same weights: the fewer, the better it learns, and the slower."""
        base_lr: Annotated[float, Field(gt=0, le=10)] = 1.0
        """Learning rate of a token whose gate is open, times the channels of a head."""
        positions: Literal["rotary", "none"] = "rotary"
        """How queries and keys tell where in their mini-batch they stand."""
        gate: bool = False
        """Multiply what W_o reads by gelu(W_g x), as the authors do in Mamba's place."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "mini_batch": {"choice": [4, 16]},
        "gate": {"choice": [False, True]},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        require_divisible("d_model", d_model, "n_heads", c.n_heads)
        width = d_model // c.n_heads
        if width < 3:
            raise UserError(f"n_heads={c.n_heads} of d_model={d_model} leaves {width} channels to a head; LN needs 3")
        if c.positions == "rotary" and width % 2:
            raise UserError(f"positions=rotary needs an even d_model / n_heads, not {width} (or positions: none)")
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.rate = nn.Linear(d_model, c.n_heads)
        self.token_scale = nn.Parameter(torch.empty(1, c.mini_batch, 1))
        self.initial = nn.Parameter(torch.empty(c.n_heads, width + 1, width))
        self.inner_scale = nn.Parameter(torch.empty(c.n_heads, 1, width))
        self.inner_shift = nn.Parameter(torch.empty(c.n_heads, 1, width))
        self.norm = nn.LayerNorm(d_model, eps=_EPS)
        self.gate = nn.Linear(d_model, d_model, bias=False) if c.gate else None
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.qkv, self.rate, self.gate):
            if linear is not None:
                init_linear(linear)
        init_linear(self.out, self.output_scale)
        nn.init.normal_(self.initial, std=0.02)
        nn.init.zeros_(self.initial[:, -1:])
        nn.init.zeros_(self.token_scale)
        nn.init.ones_(self.inner_scale)
        nn.init.zeros_(self.inner_shift)
        self.norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        c, new, seen = self.config, x.shape[1], 0 if cache is None else cache.position
        place = token_positions(attention_mask, new=new, seen=seen, device=x.device) % c.mini_batch  # [B or 1, T]
        q, k, v = self.qkv(x).float().unflatten(-1, (3, c.n_heads, -1)).unbind(2)  # [B, T, H, K]
        if c.positions == "rotary":
            q, k = rotate(q, place), rotate(k, place)
        rate = self.rate(x).float().sigmoid() * (c.base_lr / q.shape[-1])  # [B, T, H]
        real = new_real_tokens(attention_mask, new=new, seen=seen)
        if real is not None:
            rate = rate * real
        with torch.autocast(x.device.type, enabled=False):  # summed into over the whole sequence, hence float32
            o, weight, total = inner_training(
                q,
                k,
                v,
                rate,
                *self._state(len(x), cache),
                self._token_scale(),
                (self.inner_scale.float(), self.inner_shift.float()),
                place,
                None if attention_mask is None else real_tokens(attention_mask, new=new, seen=seen),
                seen,
            )
        if cache is not None:
            cache["learned"], cache["total"] = weight - self.initial.float(), total
        y = self.norm(o.flatten(2).to(x.dtype))
        return self.out(y if self.gate is None else y * F.gelu(self.gate(x), approximate="tanh")), cache

    def _state(self, batch: int, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        """The weights at which gradients are taken and the sum of those gradients so far, both [B, H, U, K]."""
        initial = self.initial.float().expand(batch, -1, -1, -1)
        if cache is None:
            return initial, torch.zeros_like(initial)
        return initial + cache["learned"], cache["total"]

    def _token_scale(self) -> Tensor:
        """How much of the sum each token of a mini-batch sees, [1, C, 1]."""
        count = torch.arange(1, self.config.mini_batch + 1, device=self.token_scale.device)
        return (1 / count[:, None] + self.token_scale.float()).clamp(min=0)

    def cache_spec(self) -> CacheSpec:
        entry = Fixed(tuple(self.initial.shape))
        return {"learned": entry, "total": entry}

    def flops_per_token(self, context: int) -> int:
        linears = (self.qkv, self.rate, self.gate, self.out)
        counted = 2 * sum(linear.weight.numel() for linear in linears if linear is not None) + 4 * self.initial.numel()
        return counted + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.initial.numel()  # the outer product of a gradient
