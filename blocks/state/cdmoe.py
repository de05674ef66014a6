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

Shape letters: N token, H head, K pick, P pair of halves (2), M key of a half (n), C channel of a half, E expert (n²).
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
from doge_lab.layers.experts import Picks, pick_dot, pick_sum
from doge_lab.layers.feed_forward import FeedForward, FeedForwardForm
from doge_lab.layers.init import init_linear, init_weight
from doge_lab.layers.product_keys import product_key_balance_loss, product_key_top_k
from doge_lab.layers.routing import Normalisation, check_normalisation, count_picks, route_weights


class CDMoE(StateBlock):
    """A shared perceptron (the cross domain) and private experts of one neuron each, retrieved by product keys."""

    weight_matrices = ("keys", "down", "up")
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
        impl: Literal["reference", "fast"] = "fast"
        """`reference` is the definition, in einx; `fast` holds no gathered rows and scores no pair in vain."""
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
        self.query = nn.Linear(d_model, c.n_experts_heads * d_query, bias=False)
        self.keys = nn.Parameter(torch.empty(c.n_experts_heads, isqrt(c.n_experts), 2, d_query // 2))
        self.down = nn.Parameter(torch.empty(c.n_experts, d_model))
        self.up = nn.Parameter(torch.empty(c.n_experts, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # In series the shared perceptron feeds the experts, and they alone write to the stream.
        self.shared.init(1.0 if self.config.form == "serial" else self.output_scale)
        init_linear(self.query)
        if self.config.fidelity == "published":
            nn.init.zeros_(self.keys)
        else:
            init_weight(self.keys, self.keys.shape[-1])
        init_weight(self.down, self.d_model)
        init_weight(self.up, self.d_model, self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        shared = self.shared(tokens)
        retrieve = self._reference if self.config.impl == "reference" else self._fast
        if self.config.form == "serial":
            return retrieve(shared).view_as(x)
        return (shared + retrieve(tokens)).view_as(x)

    def _fast(self, z: Tensor) -> Tensor:
        """What the experts make of `z` [N, D]; the search has the tokens innermost."""
        halves, experts, weights = self._search(z)
        picks = Picks.prepare(experts.permute(2, 1, 0).flatten(1), len(self.down))  # [N, H K]
        self.router_stats = self._report(picks.counts, halves)
        hidden = self._weighed(pick_dot(z, self.down, picks), weights.permute(2, 1, 0).flatten(1))
        return pick_sum(hidden, self.up, picks)

    def _search(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the halves [P, M, H, N], the best experts [K, H, N] and their weights [K, H, N]."""
        c, (n_heads, _, _, d_half) = self.config, self.keys.shape
        query = (self.query.weight @ z.t()).view(2, n_heads, d_half, -1)
        halves = (self.keys.permute(2, 0, 1, 3) @ query).transpose(1, 2)
        scores, experts = product_key_top_k(halves, c.n_experts_per_head)
        # The softmax over all pairs is the product of the softmaxes over either half.
        return halves, experts, route_weights(scores, c.normalisation, lambda: halves.logsumexp(1).sum(0), dim=0)

    def routing(self, x: Tensor) -> Routing:
        tokens = x.flatten(0, -2)
        halves, *found = self._search(self.shared(tokens) if self.config.form == "serial" else tokens)
        chosen, weights = (each.flatten(1).t() for each in found)
        pairs = halves[0][:, None] + halves[1][None]  # [M, M, H, N]
        scores = pairs.permute(2, 3, 0, 1).flatten(2).flatten(0, 1)
        return Routing(scores, chosen, weights, self.config.normalisation)

    def _reference(self, z: Tensor) -> Tensor:
        import einx  # a second of imports that only the definition needs

        c = self.config
        halves = einx.dot("t (p h [c]), h m p [c] -> p t h m", self.query(z), self.keys, p=2)
        every_score = einx.add("t h i, t h j -> t h (i j)", halves[0], halves[1])
        scores, experts = every_score.topk(c.n_experts_per_head, dim=-1)  # [N, H, K]
        weights = route_weights(scores, c.normalisation, lambda: every_score.logsumexp(-1, keepdim=True))
        self.router_stats = self._report(count_picks(experts, c.n_experts), einx.id("p t h m -> p m h t", halves))
        down = einx.get_at("[e] d, t h k -> t h k d", self.down, experts)
        up = einx.get_at("[e] d, t h k -> t h k d", self.up, experts)
        hidden = self._weighed(einx.dot("t [d], t h k [d] -> t h k", z, down), weights)
        return einx.dot("t [h k], t [h k] d -> t d", hidden, up)

    def _weighed(self, dots: Tensor, weights: Tensor) -> Tensor:
        if self.config.weigh == "before_activation":
            return self.act(dots * weights)
        return self.act(dots) * weights

    def _report(self, counts: Tensor, halves: Tensor) -> RouterStats:
        """What the search chose, from `counts` [E] and `halves` [P, M, H, N]."""
        usage = counts / (halves[0, 0].numel() * self.config.n_experts_per_head)
        weight = self.config.balance_loss_weight
        return RouterStats.balanced(weight, lambda: product_key_balance_loss(halves, usage), usage)

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
