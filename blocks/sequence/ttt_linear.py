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
from doge_lab.layers.masks import new_real_tokens, token_positions
from doge_lab.layers.mini_batches import MiniBatches
from doge_lab.layers.rotary import rotate

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
        impl: Literal["chunked", "reference"] = "chunked"
        """`reference` goes token by token: the definition. `chunked` goes by mini-batches, in the paper's dual form."""

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
        weight, total = self._state(len(x), cache)
        with torch.autocast(x.device.type, enabled=False):  # summed into over the whole sequence, hence float32
            if c.impl == "reference" or new == 1:
                first = (place == 0) if real is None else (place == 0) & real[..., 0]
                o, weight, total = self._recurrent(q, k, v, rate, place, first, weight, total)
            else:
                batches = MiniBatches(c.mini_batch, attention_mask, new=new, seen=seen, device=x.device)
                o, weight, total = self._chunked(q, k, v, rate, batches, weight, total)
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

    def _gradient(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The gradient of |LN(prediction) - target|² / 2 with respect to the prediction, [..., H, C, K]."""
        scale, shift = self.inner_scale.float(), self.inner_shift.float()
        centred = prediction - prediction.mean(-1, keepdim=True)
        rstd = (centred.square().mean(-1, keepdim=True) + _EPS).rsqrt()
        normal = centred * rstd
        error = (normal * scale + shift - target) * scale
        along = (error * normal).mean(-1, keepdim=True)
        return (error - error.mean(-1, keepdim=True) - normal * along) * rstd

    def _read(self, q: Tensor, prediction: Tensor) -> Tensor:
        normal = F.layer_norm(prediction, prediction.shape[-1:], eps=_EPS)
        return q + normal * self.inner_scale.float() + self.inner_shift.float()

    def _recurrent(
        self, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, place: Tensor, first: Tensor, weight: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The definition; `first` [B or 1, T] marks the real tokens that are the first of a mini-batch."""
        scale, outputs = self._token_scale().flatten(), []
        for t in range(q.shape[1]):
            q_t, k_t, v_t = (heads[:, t, :, None] for heads in (q, k, v))  # [B, H, 1, K]
            first_t = first[:, t, None, None, None]
            weight = torch.where(first_t, weight - scale[-1] * total, weight)
            total = total.masked_fill(first_t, 0.0)
            gradient = self._gradient(_with_one(k_t) @ weight, v_t - k_t)
            total = total + rate[:, t, :, None, None] * _with_one(k_t).mT * gradient
            weight_t = weight - scale[place[:, t]][:, None, None, None] * total
            outputs.append(self._read(q_t, _with_one(q_t) @ weight_t))
        return torch.cat(outputs, dim=2).transpose(1, 2), weight, total

    def _chunked(
        self, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, batches: MiniBatches, weight: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same by mini-batches: attention within each to its gradients, from one to the next through W."""
        scale = self._token_scale()
        q, k, v = (batches.arrange(heads).transpose(2, 3) for heads in (q, k, v))  # [B, N, H, C, K]
        rate = batches.arrange(rate).mT[..., None, :]  # [B, N, H, 1, C]
        keys, queries = _with_one(k), _with_one(q)
        scores = (queries @ keys.mT).tril() * rate
        writes = keys.mT * rate
        begins = batches.begins[..., None, None, None]  # [B or 1, N, 1, 1, 1]
        predictions = []
        for n in range(q.shape[1]):
            weight = torch.where(begins[:, n], weight - scale[0, -1] * total, weight)
            total = total.masked_fill(begins[:, n], 0.0)
            gradient = self._gradient(keys[:, n] @ weight, v[:, n] - k[:, n])
            step = scores[:, n] @ gradient
            if n == 0:  # only the first mini-batch may have begun in an earlier call
                step = step + queries[:, n] @ total
            predictions.append(queries[:, n] @ weight - scale * step)
            total = total + writes[:, n] @ gradient
        o = self._read(q, torch.stack(predictions, dim=1))
        return batches.restore(o.transpose(2, 3)), weight, total

    def cache_spec(self) -> CacheSpec:
        entry = Fixed(tuple(self.initial.shape))
        return {"learned": entry, "total": entry}

    def flops_per_token(self, context: int) -> int:
        linears = (self.qkv, self.rate, self.gate, self.out)
        counted = 2 * sum(linear.weight.numel() for linear in linears if linear is not None) + 4 * self.initial.numel()
        return counted + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.initial.numel()  # the outer product of a gradient


def _with_one(heads: Tensor) -> Tensor:
    return F.pad(heads, (0, 1), value=1.0)
