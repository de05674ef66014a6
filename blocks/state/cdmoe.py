"""Cross-domain mixture of experts: a dense perceptron for everyone, and many one-neuron experts found by product keys.

    s = W_down act(W_up x)                                    the cross domain
    q = W_q z                   two halves per head           z = x (parallel) or s (serial)
    c_h, e_h = the k best of  <q_h1, K_hi1> + <q_h2, K_hj2>   over all n² pairs; expert e = i n + j
    a = act(<z, D_e>) · w(c)    or    act(<z, D_e> · w(c))    weighed after the activation or before it
    y = s + Σ_h Σ_k a U_e       or    Σ_h Σ_k a U_e           parallel or serial

Source: Shi et al. 2024, https://arxiv.org/abs/2407.16958 ; Shi & Wu 2024, https://arxiv.org/abs/2412.11834 ;
product keys: Lample et al. 2019, https://arxiv.org/abs/1907.05242 ; one-neuron experts: He 2024,
https://arxiv.org/abs/2407.04153

The published keys start at zero: all scores tie, every token retrieves the same experts and the query projection has
no gradient at first (`fidelity: published`). Here they start at random. The form in `transformers` also splits the
router's scores across tokens, so that a token reads others; that is not offered.

Shape letters: N token, D d_model.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from doge_lab.block import BlockConfig, RouterStats, Routing, StateBlock
from doge_lab.errors import UserError
from doge_lab.layers.activations import Activation, activation
from doge_lab.layers.feed_forward import FeedForward, FeedForwardForm
from doge_lab.layers.init import init_linear, init_weight
from doge_lab.layers.product_key_router import ProductKeyRouter
from doge_lab.layers.routing import Normalisation, check_normalisation
from doge_lab.ops.picks import pick_dot, pick_sum


class CDMoE(StateBlock):
    """A shared perceptron (the cross domain) and private experts of one neuron each, retrieved by product keys."""

    weight_matrices = ("down", "up")
    width_option = "d_cross_domain"
    search_space: ClassVar[Mapping[str, Any]] = {
        "n_experts": {"choice": [16, 64, 256, 1024]},
        "n_experts_heads": {"choice": [1, 2, 4]},
        "n_experts_per_head": {"choice": [2, 4, 8]},
        "form": {"choice": ["parallel", "serial"]},
    }

    class Config(BlockConfig):
        act_fn: Activation = "silu"
        """The function inside the shared perceptron and the experts."""
        d_cross_domain: PositiveInt | None = None
        """Hidden width of the shared perceptron; 4 * d_model when left out."""
        d_private_expert: PositiveInt | None = None
        """Width of a head's query, two halves (parallel: d_model / 2 when left out); serial: must be d_model."""
        n_experts: PositiveInt = 64
        """Private experts, a square."""
        n_experts_heads: PositiveInt = 1
        """Queries per token."""
        n_experts_per_head: PositiveInt = 2
        """Experts that each query retrieves."""
        form: Literal["serial", "parallel"] = "parallel"
        """Where the experts stand: after the shared perceptron (first published) or beside it (later)."""
        cross_domain: FeedForwardForm = "mlp"
        """The shared perceptron: plain (first published) or gated (later)."""
        weigh: Literal["before_activation", "after_activation"] = "after_activation"
        """Where the router's weight enters an expert: before its activation (first published) or after it (later)."""
        normalisation: Normalisation = "softmax_chosen"
        """How scores become weights: a softmax over a head's chosen, over all experts, or a sigmoid of each."""
        fidelity: Literal["published", "working"] = "working"
        """`published` starts the keys at zero, `working` at random."""
        balance_loss_weight: NonNegativeFloat = 0.0
        """Weight of the balance loss in the training loss."""

        @model_validator(mode="after")
        def _experts(self) -> "CDMoE.Config":
            n, per_head = isqrt(self.n_experts), self.n_experts_per_head
            if n * n != self.n_experts:
                raise UserError(
                    f"n_experts={self.n_experts} must be a square, for product keys; nearest are {n * n} "
                    f"and {(n + 1) ** 2}",
                    "n_experts",
                )
            if per_head > self.n_experts:
                raise UserError(
                    f"n_experts_per_head={per_head} must be at most n_experts={self.n_experts}", "n_experts_per_head"
                )
            check_normalisation(self.normalisation, "n_experts_per_head", per_head)
            return self

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        d_query = c.d_private_expert or (d_model if c.form == "serial" else max(2, d_model // 4 * 2))
        if d_query % 2:
            raise UserError(f"d_private_expert={d_query} must be even, for its two halves", "d_private_expert")
        if c.form == "serial" and d_query != d_model:
            raise UserError(
                f"form: serial writes its experts to the stream and needs d_private_expert = d_model = {d_model}, "
                f"not {d_query}; leave it out, or say form: parallel",
                "d_private_expert",
            )
        self.act = activation(c.act_fn)
        self.shared = FeedForward(d_model, c.d_cross_domain or 4 * d_model, form=c.cross_domain, act=c.act_fn)
        self.router = ProductKeyRouter(
            d_model,
            n_keys=isqrt(c.n_experts),
            n_heads=c.n_experts_heads,
            top_k=c.n_experts_per_head,
            d_query=d_query,
            normalisation=c.normalisation,
            query_norm="none",
        )
        self.down = nn.Parameter(torch.empty(c.n_experts, d_model))
        self.up = nn.Parameter(torch.empty(c.n_experts, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # In series the shared perceptron feeds the experts, and they alone write to the stream.
        self.shared.init(1.0 if self.config.form == "serial" else self.output_scale)
        self._init_router()
        init_weight(self.down, self.d_model)
        init_weight(self.up, self.d_model, self.output_scale)

    def _init_router(self) -> None:
        """Queries and keys, drawn in the published order, so that a seed goes on meaning the same weights."""
        query, keys = self.router.query.weight, self.router.keys
        init_linear(self.router.query)
        with torch.no_grad():  # [half, head, channel] -> [head, half, channel]
            query.copy_(query.unflatten(0, (2, keys.shape[1], -1)).transpose(0, 1).reshape(query.shape))
            if self.config.fidelity == "published":
                keys.zero_()
                return
            drawn = torch.empty_like(keys.permute(1, 2, 0, 3), memory_format=torch.contiguous_format)
            init_weight(drawn, drawn.shape[-1])
            keys.copy_(drawn.permute(2, 0, 1, 3))  # [head, key, half, channel] -> [half, head, key, channel]

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        shared = self.shared(tokens)
        if self.config.form == "serial":
            return self._retrieve(shared).view_as(x)
        return (shared + self._retrieve(tokens)).view_as(x)

    def _retrieve(self, z: Tensor) -> Tensor:
        """What the experts make of `z` [N, D]."""
        found = self.router(z)
        self.router_stats = RouterStats.balanced(self.config.balance_loss_weight, found.balance_loss, found.usage())
        hidden = self._weighed(pick_dot(z, self.down, found.picks), found.weights)
        return pick_sum(hidden, self.up, found.picks)

    def routing(self, x: Tensor) -> Routing:
        z = self.shared(x) if self.config.form == "serial" else x
        return Routing(*self.router.choice(z), self.config.normalisation)

    def _weighed(self, dots: Tensor, weights: Tensor) -> Tensor:
        if self.config.weigh == "before_activation":
            return self.act(dots * weights)
        return self.act(dots) * weights

    def known_faults(self) -> Mapping[str, str]:
        if self.config.fidelity == "working" or self.config.n_experts_per_head == self.config.n_experts:
            return {}
        return {"router_usage": "keys start at zero, so that every token retrieves the same experts until they move"}

    def active_params(self) -> int:
        c = self.config
        looked_up = min(c.n_experts, c.n_experts_heads * c.n_experts_per_head)
        return self.num_params() - 2 * (c.n_experts - looked_up) * self.d_model

    def flops_per_token(self, context: int) -> int:
        c = self.config
        retrieved = c.n_experts_heads * c.n_experts_per_head
        again = retrieved - min(c.n_experts, retrieved)  # rows that several heads retrieve are multiplied by each
        return 2 * (self.active_params() + 2 * again * self.d_model)
