"""Memory+: a product-key memory whose reading passes a gate that the token sets, and a projection.

    q_h = W_h x                                               two halves per head
    c, e = the k best of  <q_h1, K_h1i> + <q_h2, K_h2j>       over all n² pairs; value e = i n + j
    r = Σ_h Σ_k w(c) V_e                                      w: softmax over a head's chosen; V shared by the heads
    y = W_out (r ⊙ silu(W_gate x))

Source: Berges et al. 2024, https://arxiv.org/abs/2412.09764 ; product keys: Lample et al. 2019,
https://arxiv.org/abs/1907.05242

Published with 1024² values and more, 4 heads of 32 values each, and one pool of values that three layers share. Here
every layer has its own values: blocks own their parameters, so that no contract could say whose the shared ones are.
Norms on queries and keys are published for large memories that train unstably; they are on unless `qk_norm: false`.

Shape letters: N token, V d_value.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, RouterStats, Routing, StateBlock
from doge_lab.layers.init import init_linear, init_weight
from doge_lab.layers.product_key_router import ProductKeyRouter, check_product_keys
from doge_lab.layers.routing import Normalisation
from doge_lab.ops.picks import pick_sum


class MemoryPlus(StateBlock):
    """A large table of values, read by product keys, gated by the token and projected to the stream."""

    weight_matrices = ("values",)
    width_option = "n_keys"
    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "top_k": {"choice": [4, 8, 16, 32]},
        "d_value": {"choice": [16, 32, 64]},
    }

    class Config(BlockConfig):
        n_keys: PositiveInt | None = None
        """Keys of either half, so that there are n_keys² values; 16 when left out."""
        n_heads: PositiveInt = 4
        """Queries per token."""
        top_k: PositiveInt = 8
        """Values that each query retrieves."""
        d_value: PositiveInt | None = None
        """Width of a value; d_model when left out."""
        d_query: PositiveInt | None = None
        """Width of a head's query, two halves; d_model / 2 when left out."""
        qk_norm: bool = True
        """Normalise queries and keys (RMS, with a learned gain for each channel of the keys)."""
        normalisation: Normalisation = "softmax_chosen"
        """How scores become weights: a softmax over a head's chosen, over all values, or a sigmoid of each."""
        balance_loss_weight: NonNegativeFloat = 0.0
        """Weight of the balance loss in the training loss."""

        @model_validator(mode="after")
        def _choices(self) -> "MemoryPlus.Config":
            check_product_keys(self.n_keys, self.top_k, self.normalisation)
            return self

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        d_value = c.d_value or d_model
        self.router = ProductKeyRouter(
            d_model,
            n_keys=c.n_keys,
            n_heads=c.n_heads,
            top_k=c.top_k,
            d_query=c.d_query,
            normalisation=c.normalisation,
            query_norm="rms" if c.qk_norm else "none",
            key_norm=c.qk_norm,
        )
        self.values = nn.Parameter(torch.empty(self.router.n_slots, d_value))
        self.gate = nn.Linear(d_model, d_value, bias=False)
        self.project_out = nn.Linear(d_value, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.router.init()
        init_weight(self.values, self.values.shape[1])
        init_linear(self.gate)
        init_linear(self.project_out, self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        found = self.router(tokens)
        weight = self.config.balance_loss_weight
        self.router_stats = RouterStats.balanced(weight, found.balance_loss, found.usage())
        read = pick_sum(found.weights, self.values, found.picks)  # [N, V]
        return self.project_out(read * F.silu(self.gate(tokens))).view_as(x)

    def routing(self, x: Tensor) -> Routing:
        return Routing(*self.router.choice(x), self.config.normalisation)

    def active_params(self) -> int:
        return self.num_params() - self.router.inactive_rows() * self.values.shape[1]

    def flops_per_token(self, context: int) -> int:
        matrices = self.gate.weight.numel() + self.project_out.weight.numel()
        return self.router.flops + 2 * (matrices + self.router.n_picks * self.values.shape[1])
