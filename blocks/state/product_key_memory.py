"""Product-key memory: each token reads a few of very many values, found by product keys.

    q_h = norm(W_h x)                                         two halves per head
    c, e = the k best of  <q_h1, K_h1i> + <q_h2, K_h2j>       over all n² pairs; value e = i n + j
    y = Σ_h Σ_k w(c) V_e                                      w: softmax over a head's chosen; V shared by the heads

Source: Lample et al. 2019, https://arxiv.org/abs/1907.05242

Published with 512² values, 4 heads of 32 values each, and batch normalisation of the queries, which makes a token
depend on the others of its batch: here each query is normalised by itself (`query_norm`).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from doge_lab.block import BlockConfig, RouterStats, Routing, StateBlock
from doge_lab.layers.init import init_weight
from doge_lab.layers.product_key_router import ProductKeyRouter, QueryNorm, check_product_keys
from doge_lab.layers.routing import Normalisation
from doge_lab.ops.picks import pick_sum


class ProductKeyMemory(StateBlock):
    """A large table of values of which each token reads the few that its queries retrieve."""

    weight_matrices = ("values",)
    width_option = "n_keys"
    search_space: ClassVar[Mapping[str, Any]] = {"n_heads": {"choice": [1, 2, 4]}, "top_k": {"choice": [4, 8, 16, 32]}}

    class Config(BlockConfig):
        n_keys: PositiveInt | None = None
        """Keys of either half, so that there are n_keys² values; 16 when left out."""
        n_heads: PositiveInt = 4
        """Queries per token."""
        top_k: PositiveInt = 8
        """Values that each query retrieves."""
        d_query: PositiveInt | None = None
        """Width of a head's query, two halves; d_model / 2 when left out."""
        query_norm: QueryNorm = "rms"
        """What is done to each query: scaled to unit size, centred besides, or nothing."""
        normalisation: Normalisation = "softmax_chosen"
        """How scores become weights: a softmax over a head's chosen, over all values, or a sigmoid of each."""
        balance_loss_weight: NonNegativeFloat = 0.0
        """Weight of the balance loss in the training loss."""

        @model_validator(mode="after")
        def _choices(self) -> "ProductKeyMemory.Config":
            check_product_keys(self.n_keys, self.top_k, self.normalisation)
            return self

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.router = ProductKeyRouter(
            d_model,
            n_keys=c.n_keys,
            n_heads=c.n_heads,
            top_k=c.top_k,
            d_query=c.d_query,
            normalisation=c.normalisation,
            query_norm=c.query_norm,
        )
        self.values = nn.Parameter(torch.empty(self.router.n_slots, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.router.init()
        init_weight(self.values, self.d_model, self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        found = self.router(x.flatten(0, -2))
        weight = self.config.balance_loss_weight
        self.router_stats = RouterStats.balanced(weight, found.balance_loss, found.usage())
        return pick_sum(found.weights, self.values, found.picks).view_as(x)

    def routing(self, x: Tensor) -> Routing:
        return Routing(*self.router.choice(x), self.config.normalisation)

    def active_params(self) -> int:
        return self.num_params() - self.router.inactive_rows() * self.d_model

    def flops_per_token(self, context: int) -> int:
        return self.router.flops + 2 * self.router.n_picks * self.d_model
