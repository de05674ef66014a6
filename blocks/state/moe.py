"""A mixture of experts in which each token chooses its k best.

    c = W_r x,   chosen = the k largest of c
    y = shared(x) + Σ over the chosen w_e expert_e(x)          w from c, exactly zero for everyone else

    expert_e(x) = W_down,e act(W_up,e x)                        mlp
    expert_e(x) = W_down,e (act(W_gate,e x) ⊙ W_up,e x)         glu

Source: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538 ; balance loss: Fedus et al. 2021,
https://arxiv.org/abs/2101.03961 ; z loss: Zoph et al. 2022, https://arxiv.org/abs/2202.08906 ; shared experts:
Dai et al. 2024, https://arxiv.org/abs/2401.06066

Shape letters: N token, K pick, E expert, F d_expert, D d_model.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from doge_lab.block import BlockConfig, RouterStats, Routing, StateBlock
from doge_lab.errors import UserError
from doge_lab.layers.activations import Activation, activation
from doge_lab.layers.expert_mlps import ExpertMLPs, expert_tables
from doge_lab.layers.feed_forward import FeedForward, FeedForwardForm
from doge_lab.layers.init import init_linear
from doge_lab.layers.routing import Normalisation, balance_loss, check_normalisation, route_weights
from doge_lab.ops.picks import count_picks


class MoE(StateBlock):
    """Token-choice top-k experts, without a capacity limit: no token is ever dropped."""

    weight_matrices = ("gate", "up", "down")
    width_option = "d_expert"
    search_space: ClassVar[Mapping[str, Any]] = {
        "n_experts": {"choice": [4, 8, 16, 32]},
        "top_k": {"choice": [1, 2, 4]},
        "normalisation": {"choice": ["softmax_all", "sigmoid"]},
        "n_shared_experts": {"choice": [0, 1]},
    }

    class Config(BlockConfig):
        n_experts: PositiveInt = 8
        """Experts to choose from."""
        top_k: PositiveInt = 2
        """Experts that each token chooses."""
        d_expert: PositiveInt | None = None
        """Hidden width of one expert; when left out, the chosen ones together are as wide as a dense block."""
        n_shared_experts: NonNegativeInt = 0
        """Experts that every token passes besides, as one perceptron of n_shared_experts * d_expert."""
        expert: FeedForwardForm = "glu"
        """What an expert is."""
        activation: Activation = "silu"
        """The function inside an expert."""
        normalisation: Normalisation = "softmax_chosen"
        """How scores become weights: a softmax over the chosen, a softmax over all, or a sigmoid of each."""
        balance_loss_weight: NonNegativeFloat = 0.01
        """Weight of the balance loss in the training loss."""
        z_loss_weight: NonNegativeFloat = 0.0
        """Weight of the squared log-partition of the scores in the training loss."""

        @model_validator(mode="after")
        def _choices(self) -> "MoE.Config":
            if self.top_k > self.n_experts:
                raise UserError(f"top_k={self.top_k} must be at most n_experts={self.n_experts}", "top_k")
            check_normalisation(self.normalisation, "top_k", self.top_k)
            return self

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        dense = 8 * d_model / 3 if c.expert == "glu" else 4 * d_model
        d_expert = c.d_expert or max(1, round(dense / c.top_k))
        self.act = activation(c.activation)
        self.router = nn.Linear(d_model, c.n_experts, bias=False)
        self.gate, self.up, self.down = expert_tables(c.n_experts, d_expert, d_model, c.expert)
        self.shared = None
        if c.n_shared_experts:
            self.shared = FeedForward(d_model, c.n_shared_experts * d_expert, form=c.expert, act=c.activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear(self.router)
        self._experts.init(self.output_scale)
        if self.shared is not None:
            self.shared.init(self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        logits, chosen, weights = self._route(tokens)
        y = self._experts.chosen(tokens, chosen, weights)
        if self.shared is not None:
            y = y + self.shared(tokens)
        self.router_stats = self._report(logits, chosen)
        return y.view_as(x)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [E, N], chosen experts [K, N] and their weights [K, N] of the tokens `x` [N, D]."""
        logits = self.router.weight @ x.t()  # with the tokens innermost, few experts cost little
        scores, chosen = logits.topk(self.config.top_k, dim=0)
        weights = route_weights(scores, self.config.normalisation, lambda: logits.logsumexp(0, keepdim=True), dim=0)
        return logits, chosen, weights.to(x.dtype)

    def routing(self, x: Tensor) -> Routing:
        logits, chosen, weights = self._route(x.flatten(0, -2))
        return Routing(logits.t(), chosen.t(), weights.t(), self.config.normalisation)

    @property
    def _experts(self) -> ExpertMLPs:
        return ExpertMLPs(self.gate, self.up, self.down, self.act)

    def _report(self, logits: Tensor, chosen: Tensor) -> RouterStats:
        """What the forward pass chose; a loss whose weight is 0 is not computed and reads 0."""
        c = self.config
        usage = count_picks(chosen, c.n_experts) / chosen.numel()
        balance = z_loss = usage.new_zeros(())
        if c.balance_loss_weight:
            balance = balance_loss(usage, logits.float().softmax(0).mean(1))
        if c.z_loss_weight:
            z_loss = logits.float().logsumexp(0).square().mean()
        loss = c.balance_loss_weight * balance + c.z_loss_weight * z_loss
        return RouterStats(loss, balance.detach(), z_loss.detach(), usage)

    def flops_per_token(self, context: int) -> int:
        return 2 * self.active_params()

    def active_params(self) -> int:
        experts = self._experts.numel()
        return self.num_params() - experts + experts * self.config.top_k // self.config.n_experts
