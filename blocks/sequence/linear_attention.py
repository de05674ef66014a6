"""Linear attention: weights are products of features of query and key, so the past is a sum of fixed size.

    y_t = W_o concat_h  Σ_{s <= t} (φ(q_t) · φ(k_s)) v_s / Σ_{s <= t} φ(q_t) · φ(k_s)

    elu1       φ(x) = elu(x) + 1
    relu       φ(x) = max(x, 0)
    hedgehog   φ(x) = [softmax(W x), softmax(-W x)], W learned for the queries and for the keys of each head
    identity   φ(x) = x, whose weights may be negative: with `normalise: output` alone

`normalise: output` drops the denominator and takes the RMS norm of each head instead.

Source: Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236 ; hedgehog: Zhang et al. 2024,
https://arxiv.org/abs/2402.04347 ; normalised outputs: Qin et al. 2022, https://arxiv.org/abs/2210.10340

Shape letters: B batch row, T new token, D d_model, H head, K channel of a head, F feature.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.kernel_attention import kernel_attention
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.norm import RMSNorm


class LinearAttention(SequenceBlock):
    """Attention by products of features: a state of fixed size instead of keys and values."""

    weight_matrices = ("q_features", "k_features")

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads; fewer heads have a larger state, about d_model² / n_heads numbers."""
        feature_map: Literal["elu1", "relu", "hedgehog", "identity"] = "elu1"
        """φ, what queries and keys become before they are multiplied; hedgehog learns it and doubles the state."""
        normalise: Literal["keys", "output"] = "keys"
        """Divide by the sum of the weights, which the state then carries, or normalise each head's output."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4, 8]},
        "feature_map": {"choice": ["elu1", "relu", "hedgehog"]},
        "normalise": {"choice": ["keys", "output"]},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        require_divisible("d_model", d_model, "n_heads", c.n_heads)
        if c.feature_map == "identity" and c.normalise == "keys":
            raise UserError(
                "feature_map=identity gives weights of either sign, whose sum may be 0 and cannot be divided by; "
                "say normalise: output, or feature_map: elu1"
            )
        self.n_heads, self.head_dim = c.n_heads, d_model // c.n_heads
        if c.normalise == "output" and self.head_dim == 1:
            raise UserError(
                f"normalise: output with n_heads={c.n_heads} of d_model={d_model} leaves heads of one channel, "
                "of which the norm leaves a sign; take fewer heads"
            )
        if c.feature_map == "hedgehog" and self.head_dim == 1:
            raise UserError(
                f"feature_map=hedgehog is a softmax over the d_model / n_heads channels of a head, of which "
                f"d_model={d_model} and n_heads={c.n_heads} leave one: always 1; use fewer heads"
            )
        self.q, self.k, self.v, self.out = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        learned = c.feature_map == "hedgehog"
        shape = (self.n_heads, self.head_dim, self.head_dim)
        self.q_features = nn.Parameter(torch.empty(shape)) if learned else None
        self.k_features = nn.Parameter(torch.empty(shape)) if learned else None
        self.norm = RMSNorm(self.head_dim, eps=1e-6) if c.normalise == "output" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        for features in (self.q_features, self.k_features):
            if features is not None:
                with torch.no_grad():
                    features.copy_(torch.eye(self.head_dim))
        if self.norm is not None:
            self.norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        q, k, v = (
            linear(x).unflatten(-1, (self.n_heads, self.head_dim)).float() for linear in (self.q, self.k, self.v)
        )  # [B, T, H, K]
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=0 if cache is None else cache.position)
        # The state is summed into over the whole sequence, so it is float32 whatever the type around it.
        with torch.autocast(x.device.type, enabled=False):
            q, k = self._features(q, self.q_features), self._features(k, self.k_features)  # [B, T, H, F]
            o, state = kernel_attention(
                q,
                k if real is None else k * real[..., None],  # padding writes nothing
                v,
                None if cache is None else cache["state"],
                normalise=self.norm is None,
            )
        if cache is not None:
            cache["state"] = state
        o = o.to(x.dtype) if self.norm is None else self.norm(o.to(x.dtype))
        return self.out(o.flatten(2)), cache

    def _features(self, x: Tensor, learned: Tensor | None) -> Tensor:
        """φ of every head, [B, T, H, K] -> [B, T, H, F]."""
        if learned is not None:
            logits = torch.einsum("bthk,hkf->bthf", x, learned.float())
            return torch.cat([logits.softmax(-1), (-logits).softmax(-1)], dim=-1)
        if self.config.feature_map == "elu1":
            return F.elu(x) + 1
        return F.relu(x) if self.config.feature_map == "relu" else x

    @property
    def _state_shape(self) -> tuple[int, int, int]:
        features = self.head_dim * (1 if self.q_features is None else 2)
        return self.n_heads, features, (self.norm is None) + self.head_dim

    def cache_spec(self) -> CacheSpec:
        return {"state": Fixed(self._state_shape)}

    def flops_per_token(self, context: int) -> int:
        weights = [linear.weight for linear in (self.q, self.k, self.v, self.out)]
        weights += [features for features in (self.q_features, self.k_features) if features is not None]
        counted = 2 * sum(weight.numel() for weight in weights) + 2 * math.prod(self._state_shape)
        return counted + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * math.prod(self._state_shape)  # the outer product that the state takes up
