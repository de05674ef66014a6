"""HGRN2: a gated recurrence whose state is expanded by an outer product, the key being what the gate forgets.

    f_t = b + (1 - b) sigmoid(W_f x_t)        b: lower bound, l / L in layer l of L
    S_t = diag(f_t) S_{t-1} + (1 - f_t)ᵀ v_t        v_t = W_v x_t
    y_t = W_o norm(concat_h q_t S_t)                q_t = swish(W_q x_t)

per head of `expand_ratio` channels; the norm is over all of them. Bounds that grow with depth let deep layers remember
longer. The published models learn them, by a cumulative softmax over layers that starts at l / L: what spans layers is
no part of one layer, so they stay there.

Source: Qin et al. 2024, https://arxiv.org/abs/2404.07904 ; lower bounds: Qin et al. 2023,
https://arxiv.org/abs/2311.04823

Shape letters: B batch row, T new token, D d_model, H head, K channel of a head (key and value).
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.norm import RMSNorm
from doge_lab.ops.gated_recurrence import gated_recurrence


class Hgrn2(SequenceBlock):
    """A gated recurrence with a matrix for a state; one gate both forgets and writes."""

    class Config(BlockConfig):
        expand_ratio: PositiveInt = 16
        """Channels of a head, a divisor of d_model (published: 128); the state is this times d_model."""
        lower_bound: Annotated[float, Field(ge=0, lt=1)] | None = None
        """The least share of the state that every token keeps; layer_idx / n_layers when left out."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "expand_ratio": {"choice": [4, 8, 16]},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        require_divisible("d_model", d_model, "expand_ratio", c.expand_ratio)
        self.lower_bound = self.layer_idx / self.n_layers if c.lower_bound is None else c.lower_bound
        self.q, self.forget, self.v, self.out = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.norm = RMSNorm(d_model, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.q, self.forget, self.v):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        self.norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        q, logit, v = (
            channels.unflatten(-1, (-1, self.config.expand_ratio)).float()
            for channels in (F.silu(self.q(x)), self.forget(x), self.v(x))
        )  # [B, T, H, K]
        k, log_decay = self._gate(logit)
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=0 if cache is None else cache.position)
        if real is not None:  # padding writes nothing and decays nothing
            k, log_decay = k * real[..., None], log_decay * real[..., None]
        o, state = gated_recurrence(q, k, v, log_decay, None if cache is None else cache["state"])
        if cache is not None:
            cache["state"] = state
        return self.out(self.norm(o.to(x.dtype).flatten(2))), cache

    def _gate(self, logit: Tensor) -> tuple[Tensor, Tensor]:
        """What is written, 1 - f, and log f, each exact where it is next to nothing."""
        write = (1 - self.lower_bound) * (-logit).sigmoid()
        if self.lower_bound == 0:
            return write, F.logsigmoid(logit)
        bound = logit.new_full((), math.log(self.lower_bound))
        return write, torch.logaddexp(bound, math.log1p(-self.lower_bound) + F.logsigmoid(logit))

    def cache_spec(self) -> CacheSpec:
        width = self.config.expand_ratio
        return {"state": Fixed((self.d_model // width, width, width))}

    def flops_per_token(self, context: int) -> int:
        projections = sum(linear.weight.numel() for linear in (self.q, self.forget, self.v, self.out))
        return 2 * projections + 2 * self.d_model * self.config.expand_ratio + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.d_model * self.config.expand_ratio  # the outer product that the state takes up
