"""Parameter-efficient expert retrieval (PEER): very many experts of one neuron each, found by product keys.

    q_h = norm(W_h x)                                         two halves per head
    c, e = the k best of  <q_h1, K_h1i> + <q_h2, K_h2j>       over all n² pairs; expert e = i n + j
    y = Σ_h Σ_k w(c) act(<x, D_e>) U_e                        w: softmax over a head's chosen, or sigmoid

Source: He 2024, https://arxiv.org/abs/2407.04153 ; product keys: Lample et al. 2019, https://arxiv.org/abs/1907.05242

Published with 1024² experts, 8 heads of 16 experts each, and batch normalisation of the queries, which makes a
token depend on the others of its batch: here each query is normalised by itself (`query_norm`).

Shape letters: N token, P pick (heads times picks of a head).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from doge_lab.block import BlockConfig, RouterStats, Routing, StateBlock
from doge_lab.layers.activations import Activation, activation
from doge_lab.layers.init import init_weight
from doge_lab.layers.product_key_router import ProductKeyRouter, QueryNorm, check_product_keys
from doge_lab.layers.routing import Normalisation
from doge_lab.ops.picks import pick_dot, pick_sum


class PEER(StateBlock):
    """A perceptron put together for each token, of hidden units that its queries retrieve."""

    weight_matrices = ("down", "up")
    width_option = "n_keys"
    search_space: ClassVar[Mapping[str, Any]] = {"n_heads": {"choice": [1, 2, 4]}, "top_k": {"choice": [2, 4, 8, 16]}}

    class Config(BlockConfig):
        n_keys: PositiveInt | None = None
        """Keys of either half, so that there are n_keys² experts; 16 when left out."""
        n_heads: PositiveInt = 4
        """Queries per token."""
        top_k: PositiveInt = 4
        """Experts that each query retrieves."""
        d_query: PositiveInt | None = None
        """Width of a head's query, two halves; d_model / 2 when left out."""
        query_norm: QueryNorm = "rms"
        """What is done to each query: scaled to unit size, centred besides, or nothing."""
        activation: Activation = "gelu"
        """The function inside an expert."""
        normalisation: Normalisation = "softmax_chosen"
        """How scores become weights: a softmax over a head's chosen, over all experts, or a sigmoid of each."""
        balance_loss_weight: NonNegativeFloat = 0.0
        """Weight of the balance loss in the training loss."""

        @model_validator(mode="after")
        def _choices(self) -> "PEER.Config":
            check_product_keys(self.n_keys, self.top_k, self.normalisation)
            return self

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.act = activation(c.activation)
        self.router = ProductKeyRouter(
            d_model,
            n_keys=c.n_keys,
            n_heads=c.n_heads,
            top_k=c.top_k,
            d_query=c.d_query,
            normalisation=c.normalisation,
            query_norm=c.query_norm,
        )
        self.down = nn.Parameter(torch.empty(self.router.n_slots, d_model))
        self.up = nn.Parameter(torch.empty(self.router.n_slots, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.router.init()
        init_weight(self.down, self.d_model)
        init_weight(self.up, self.d_model, self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        found = self.router(tokens)
        weight = self.config.balance_loss_weight
        self.router_stats = RouterStats.balanced(weight, found.balance_loss, found.usage())
        hidden = self.act(pick_dot(tokens, self.down, found.picks)) * found.weights  # [N, P]
        return pick_sum(hidden, self.up, found.picks).view_as(x)

    def routing(self, x: Tensor) -> Routing:
        return Routing(*self.router.choice(x), self.config.normalisation)

    def active_params(self) -> int:
        return self.num_params() - 2 * self.router.inactive_rows() * self.d_model

    def flops_per_token(self, context: int) -> int:
        return self.router.flops + 4 * self.router.n_picks * self.d_model
