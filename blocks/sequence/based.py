"""Based: linear attention whose weights are the second-order Taylor series of softmax attention's exponential.

    y_t = W_o concat_h  Σ_{s <= t} w_ts v_s / Σ_{s <= t} w_ts        w_ts = 1 + x + x²/2,  x = q_t · k_s / sqrt(K)

The weight is a product of features, w = φ(q) · φ(k), of which K small channels give 1 + K + K(K + 1)/2:

    φ(x) = [1, u, u_i² / sqrt(2), u_i u_j]        i < j,  u = x / K^(1/4)

x² is also the sum over all K² ordered pairs; each pair once gives exactly the same weight from about half the state.
The published models alternate this layer with a softmax attention over the last tokens: here that is `attention` with
its option `window`, a layer of its own.

Source: Arora et al. 2024, https://arxiv.org/abs/2402.18668

Shape letters: B batch row, T new token, D d_model, H head, K channel of a query or key, F feature, V value channel.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.layers.init import init_linear
from doge_lab.layers.kernel_attention import kernel_attention
from doge_lab.layers.masks import new_real_tokens, tokens_before


class Based(SequenceBlock):
    """Linear attention with weights 1 + x + x²/2: a state of fixed size, near to softmax attention."""

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads; values share d_model between them, while every head has its own feature_dim."""
        feature_dim: PositiveInt = 8
        """Channels of a query and of a key, per head (published: 16); the state grows with the square."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4, 8]},
        "feature_dim": {"int": [2, 16], "log": True},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        require_divisible("d_model", d_model, "n_heads", c.n_heads)
        self.n_heads, self.head_v = c.n_heads, d_model // c.n_heads
        self.q = nn.Linear(d_model, c.n_heads * c.feature_dim, bias=False)
        self.k = nn.Linear(d_model, c.n_heads * c.feature_dim, bias=False)
        self.v = nn.Linear(d_model, d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v):
            init_linear(linear)
        init_linear(self.out, self.output_scale)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        q, k = (taylor_features(linear(x).unflatten(-1, (self.n_heads, -1)).float()) for linear in (self.q, self.k))
        v = self.v(x).unflatten(-1, (self.n_heads, self.head_v)).float()  # [B, T, H, V]
        new, seen = x.shape[1], 0 if cache is None else cache.position
        real = new_real_tokens(attention_mask, new=new, seen=seen)
        if real is not None:  # padding writes nothing
            k = k * real[..., None]
        state = None
        if cache is not None:
            state = self._unpacked(cache["state"], tokens_before(attention_mask, new=new, seen=seen))
        o, state = kernel_attention(q, k, v, state)
        if cache is not None:
            cache["state"] = state.flatten(2)[..., 1:]
        return self.out(o.to(x.dtype).flatten(2)), cache

    def _unpacked(self, packed: Tensor, before: Tensor | int) -> Tensor:
        """The state [B, H, F, 1 + V]. Its first number, the constant feature's sum, counts the tokens: not stored."""
        count = (packed.new_zeros(len(packed), 1) + before)[..., None].expand(*packed.shape[:2], 1)
        return torch.cat([count, packed], dim=-1).unflatten(-1, self._state_shape[1:])

    @property
    def _state_shape(self) -> tuple[int, int, int]:
        width = self.config.feature_dim
        return self.n_heads, 1 + width + width * (width + 1) // 2, 1 + self.head_v

    def cache_spec(self) -> CacheSpec:
        heads, features, columns = self._state_shape
        return {"state": Fixed((heads, features * columns - 1))}

    def flops_per_token(self, context: int) -> int:
        projections = sum(linear.weight.numel() for linear in (self.q, self.k, self.v, self.out))
        return 2 * projections + 2 * math.prod(self._state_shape) + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * math.prod(self._state_shape)  # the outer product that the state takes up


def taylor_features(x: Tensor) -> Tensor:
    """φ with φ(q) · φ(k) = 1 + x + x²/2, x = q · k / sqrt(K): [..., K] -> [..., 1 + K + K(K + 1)/2]."""
    width = x.shape[-1]
    x = x * width**-0.25
    # Channel i times channel i + s, round the ring: shifts up to K/2 meet each pair once, the last of an even K twice.
    pairs = [x * x.roll(-shift, dims=-1) for shift in range(1, width // 2 + 1)]
    if pairs and width % 2 == 0:
        pairs[-1] = pairs[-1][..., : width // 2]
    return torch.cat([torch.ones_like(x[..., :1]), x, x.square() * 0.5**0.5, *pairs], dim=-1)
