"""A fast feedforward network: a binary tree of yes-or-no nodes that leads each token to one of many small perceptrons.

    node n   goes right with probability σ_n = sigmoid(<w_n, x>), left with 1 - σ_n
    p_e      the product of these along the path to leaf e
    soft     y = Σ_e p_e leaf_e(x)
    hard     y = leaf_e(x),  e where every node on the path goes its likelier way

    leaf_e(x) = W_down,e act(W_up,e x)

Published, a tree learns soft and is evaluated hard (`soft_then_hard`): two functions, brought together by the
hardening loss, the entropy of the nodes' choices. `soft` and `hard` are one function each, in training and evaluation.
A hard tree learns its nodes as if y were p_e leaf_e(x) / p_e with the denominator held (a straight-through gradient).
Costs are those of evaluation: hard, a token passes `depth` nodes and one leaf, while training looks at every node and,
soft, at every leaf. Nodes and leaves are published with biases; here, as everywhere, they have none.

Source: Belcak & Wattenhofer 2023, https://arxiv.org/abs/2308.14711 ; balance loss over leaves: Fedus et al. 2021,
https://arxiv.org/abs/2101.03961

Shape letters: N token, M node, E leaf, F d_leaf, D d_model.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, RouterStats, Routing, StateBlock
from doge_lab.layers.activations import Activation, activation
from doge_lab.layers.expert_mlps import ExpertMLPs, expert_tables
from doge_lab.layers.init import init_weight
from doge_lab.layers.precision import at_least_float32
from doge_lab.layers.routing import balance_loss
from doge_lab.ops.picks import count_picks


class FastFeedforward(StateBlock):
    """A tree of `depth` decisions over 2^depth leaves; as wide in all as an MLP when the width is left out."""

    weight_matrices = ("nodes", "gate", "up", "down")
    width_option = "d_leaf"
    search_space: ClassVar[Mapping[str, Any]] = {
        "depth": {"int": [1, 5]},
        "routing": {"choice": ["hard", "soft", "soft_then_hard"]},
        "balance_loss_weight": {"choice": [0.0, 0.01]},
    }

    class Config(BlockConfig):
        depth: PositiveInt = Field(default=3, le=12)
        """Decisions on the way to a leaf; the tree has 2^depth leaves."""
        d_leaf: PositiveInt | None = None
        """Hidden width of a leaf; 4 * d_model / 2^depth when left out."""
        activation: Activation = "gelu"
        """The function inside a leaf."""
        routing: Literal["hard", "soft", "soft_then_hard"] = "hard"
        """One leaf for each token, all of them by probability, or (published) all in training and one in evaluation."""
        hardening_loss_weight: NonNegativeFloat = 0.0
        """Weight of the mean entropy of the nodes' choices in the training loss."""
        balance_loss_weight: NonNegativeFloat = 0.01
        """Weight of the balance loss over leaves in the training loss; published without."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        n_leaves = 2**c.depth
        self.act = activation(c.activation)
        # level by level: the children of node n are 2n + 1 and 2n + 2
        self.nodes = nn.Parameter(torch.empty(n_leaves - 1, d_model))
        d_leaf = c.d_leaf or max(1, round(4 * d_model / n_leaves))
        _, self.up, self.down = expert_tables(n_leaves, d_leaf, d_model, "mlp")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_weight(self.nodes, self.d_model)
        self._leaves.init(self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        return (self._hard(tokens) if self._is_hard else self._soft(tokens)).view_as(x)

    @property
    def _is_hard(self) -> bool:
        return self.config.routing == "hard" or (self.config.routing == "soft_then_hard" and not self.training)

    def _soft(self, x: Tensor) -> Tensor:
        logits = self._logits(x)
        probability = self._log_probability(logits).exp()
        self.router_stats = self._report(probability.detach().mean(1).float(), logits)
        return self._leaves.every(x, probability.to(x.dtype))

    def _hard(self, x: Tensor) -> Tensor:
        if len(x) > 1 or torch.is_grad_enabled():
            logits = self._logits(x)
            leaf, log_probability = self._descend(len(x), lambda node: logits.gather(0, node[None])[0])
        else:
            logits = None
            leaf, log_probability = self._descend(1, lambda node: (self.nodes[node] @ x.t())[0])
        self.router_stats = self._report(count_picks(leaf, len(self.up)) / len(x), logits)
        one = (log_probability - log_probability.detach()).exp().to(x.dtype)
        return self._leaves.chosen(x, leaf[None], one[None])

    def _logits(self, x: Tensor) -> Tensor:
        """For every node, how much it is for going right: [M, N]."""
        return at_least_float32(self.nodes @ x.t())

    def _descend(self, n_tokens: int, logit_at: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The leaf of each token [N] and its log probability [N]; `logit_at` gives those of one node for each token."""
        node = torch.zeros(n_tokens, dtype=torch.int64, device=self.nodes.device)
        log_probability = self.nodes.new_zeros(n_tokens, dtype=torch.float32)
        for _ in range(self.config.depth):
            logit = logit_at(node)
            log_probability = log_probability + F.logsigmoid(logit.abs())
            node = 2 * node + 1 + (logit >= 0)
        return node - len(self.nodes), log_probability

    def _log_probability(self, logits: Tensor) -> Tensor:
        """Of every leaf: [M, N] -> [E, N]."""
        return self._along_paths(logits, 0.0, lambda above, logit: above + F.logsigmoid(logit))

    def _along_paths(self, logits: Tensor, start: float, step: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What `step` makes for every leaf of the logits for the way taken, from the root on: [M, N] -> [E, N]."""
        value = torch.full_like(logits[:1], start)
        for level in range(self.config.depth):
            logit = logits[2**level - 1 : 2 ** (level + 1) - 1]
            value = torch.stack([step(value, -logit), step(value, logit)], dim=1).flatten(0, 1)
        return value

    def routing(self, x: Tensor) -> Routing | None:
        """A leaf's score is the weakest decision on its path: above zero for the leaf that is reached alone."""
        if not self._is_hard:
            return None
        logits = self._logits(x.flatten(0, -2))
        leaf, _ = self._descend(logits.shape[1], lambda node: logits.gather(0, node[None])[0])
        scores = self._along_paths(logits, float("inf"), torch.minimum)
        return Routing(scores.t(), leaf[:, None], scores.new_ones(len(leaf), 1), "none")

    def _report(self, usage: Tensor, logits: Tensor | None) -> RouterStats:
        """What the tree chose; a loss reads 0 where its weight is 0 or the nodes were not all looked at."""
        c = self.config
        balance = entropy = usage.new_zeros(())
        if c.balance_loss_weight and logits is not None:
            balance = balance_loss(usage, self._log_probability(logits).exp().mean(1).float())
        if c.hardening_loss_weight and logits is not None:
            entropy = F.binary_cross_entropy_with_logits(logits, logits.sigmoid())
        loss = c.balance_loss_weight * balance + c.hardening_loss_weight * entropy
        return RouterStats(loss, balance.detach(), usage.new_zeros(()), usage)

    @property
    def _leaves(self) -> ExpertMLPs:
        return ExpertMLPs(None, self.up, self.down, self.act)

    def flops_per_token(self, context: int) -> int:
        return 2 * self.active_params()

    def active_params(self) -> int:
        if self.config.routing == "soft":
            return self.num_params()
        return self.config.depth * self.d_model + self._leaves.numel() // len(self.up)
