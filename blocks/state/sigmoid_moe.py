"""A mixture of experts with sigmoid scores, balanced by a bias on the choice instead of a loss.

    s = sigmoid(W_r x),   chosen = the k largest of s + b
    y = shared(x) + scale Σ over the chosen (s_e / Σ over the chosen s) expert_e(x)

    after each step   b_e += rate · sign(mean load - load of e)

The bias b decides who is chosen and never weighs an output; it is a buffer, not learned. The load is what was picked in
training mode since the last step, over all its forward passes. DeepSeek-V3 also restricts a token to a few groups of
experts, which serves to spread them over machines, and adds a balance loss per sequence of weight 0.0001; neither is
here.

Source: DeepSeek-AI 2024 (DeepSeek-V3), https://arxiv.org/abs/2412.19437 ; balance by bias: Wang et al. 2024,
https://arxiv.org/abs/2408.15664 ; shared and fine-grained experts: Dai et al. 2024, https://arxiv.org/abs/2401.06066

Shape letters: N token, K pick, E expert, F d_expert, D d_model.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, RouterStats, Routing, StateBlock
from doge_lab.errors import UserError
from doge_lab.layers.activations import Activation, activation
from doge_lab.layers.expert_mlps import ExpertMLPs, expert_tables
from doge_lab.layers.feed_forward import FeedForward, FeedForwardForm
from doge_lab.layers.init import init_linear
from doge_lab.layers.precision import at_least_float32
from doge_lab.ops.picks import count_picks
from doge_lab.ops.top_k_indices import top_k_indices


class SigmoidMoE(StateBlock):
    """Fine-grained experts chosen by biased sigmoids, without a balance loss and without a capacity limit."""

    weight_matrices = ("gate", "up", "down")
    selection_bias: Tensor
    load: Tensor
    width_option = "d_expert"
    search_space: ClassVar[Mapping[str, Any]] = {
        "n_experts": {"choice": [8, 16, 32, 64]},
        "top_k": {"choice": [2, 4, 8]},
        "n_shared_experts": {"choice": [0, 1]},
        "bias_update_rate": {"float": [1e-4, 1e-2], "log": True},
    }

    class Config(BlockConfig):
        n_experts: PositiveInt = 16
        """Experts to choose from."""
        top_k: PositiveInt = 4
        """Experts that each token chooses."""
        d_expert: PositiveInt | None = None
        """Hidden width of one expert; when left out, what a token passes is as wide as a dense block."""
        n_shared_experts: NonNegativeInt = 1
        """Experts that every token passes besides, as one perceptron of n_shared_experts * d_expert."""
        expert: FeedForwardForm = "glu"
        """What an expert is."""
        activation: Activation = "silu"
        """The function inside an expert."""
        normalisation: Literal["sigmoid_chosen", "sigmoid"] = "sigmoid_chosen"
        """The weights: sigmoids divided by their sum over the chosen, or sigmoids."""
        scale: PositiveFloat = 2.5
        """Factor on the sum of the chosen experts: averaging several makes it small."""
        bias_update_rate: Annotated[float, Field(ge=0, le=1)] = 0.001
        """How far the bias of an expert moves at each step; 0 leaves the choice to the scores."""

        @model_validator(mode="after")
        def _choices(self) -> "SigmoidMoE.Config":
            if self.top_k > self.n_experts:
                raise UserError(f"top_k={self.top_k} must be at most n_experts={self.n_experts}", "top_k")
            if self.normalisation == "sigmoid_chosen" and self.top_k == 1:
                raise UserError(
                    "sigmoid_chosen with top_k=1 divides one score by itself: always 1, so the router learns nothing; "
                    "say normalisation: sigmoid, or top_k=2",
                    "normalisation",
                )
            return self

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        dense = 8 * d_model / 3 if c.expert == "glu" else 4 * d_model
        d_expert = c.d_expert or max(1, round(dense / (c.top_k + c.n_shared_experts)))
        self.act = activation(c.activation)
        self.router = nn.Linear(d_model, c.n_experts, bias=False)
        self.gate, self.up, self.down = expert_tables(c.n_experts, d_expert, d_model, c.expert)
        self.shared = None
        if c.n_shared_experts:
            self.shared = FeedForward(d_model, c.n_shared_experts * d_expert, form=c.expert, act=c.activation)
        self.register_buffer("selection_bias", torch.empty(c.n_experts))
        # zero again after each step, so there is nothing to save
        self.register_buffer("load", torch.empty(c.n_experts, dtype=torch.int64), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear(self.router)
        self._experts.init(self.output_scale)
        if self.shared is not None:
            self.shared.init(self.output_scale)
        nn.init.zeros_(self.selection_bias)
        self.load.zero_()

    def forward(self, x: Tensor) -> Tensor:
        tokens, c = x.flatten(0, -2), self.config
        _, chosen, weights = self._route(tokens)
        y = self._experts.chosen(tokens, chosen, weights)
        if self.shared is not None:
            y = y + self.shared(tokens)
        load = count_picks(chosen, c.n_experts)
        if self.training:
            self.load += load
        zero = y.new_zeros((), dtype=torch.float32)
        self.router_stats = RouterStats(zero, zero, zero, load / chosen.numel())
        return y.view_as(x)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [E, N] before the sigmoid, chosen experts [K, N] and their weights [K, N] of the tokens `x` [N, D]."""
        with torch.autocast(x.device.type, enabled=False):
            logits = at_least_float32(self.router.weight) @ at_least_float32(x).t()
        chosen = top_k_indices(logits.detach().sigmoid() + self.selection_bias[:, None], self.config.top_k)
        scores = logits.gather(0, chosen)
        # The softmax of log s is s / Σ s, also where every s is too small for a float.
        weights = scores.sigmoid() if self.config.normalisation == "sigmoid" else F.logsigmoid(scores).softmax(0)
        return logits, chosen, (self.config.scale * weights).to(x.dtype)

    def routing(self, x: Tensor) -> Routing:
        c, (logits, chosen, weights) = self.config, self._route(x.flatten(0, -2))
        return Routing(logits.t(), chosen.t(), weights.t(), c.normalisation, self.selection_bias, c.scale)

    @torch.no_grad()
    def after_step(self) -> None:
        load = self.load.float()
        self.selection_bias += self.config.bias_update_rate * (load.mean() - load).sign()
        self.load.zero_()

    @property
    def _experts(self) -> ExpertMLPs:
        return ExpertMLPs(self.gate, self.up, self.down, self.act)

    def flops_per_token(self, context: int) -> int:
        # the two buffers are added and counted, not multiplied
        return 2 * (self.active_params() - 2 * self.config.n_experts)

    def active_params(self) -> int:
        experts = self._experts.numel()
        return self.num_params() - experts + experts * self.config.top_k // self.config.n_experts
