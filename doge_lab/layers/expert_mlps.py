"""The experts of a routed block: perceptrons of one shape, of which each token passes a few, weighted.

Their equations, and the two ways of computing them, are those of `doge_lab.ops.expert_mlps`.

Shape letters: N token, K pick, E expert, F d_expert, D d_model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from doge_lab.layers.feed_forward import FeedForwardForm
from doge_lab.layers.init import init_weight
from doge_lab.ops.expert_mlps import Tables, expert_mlps, side_by_side


def expert_tables(
    n_experts: int, d_expert: int, d_model: int, form: FeedForwardForm
) -> tuple[nn.Parameter | None, nn.Parameter, nn.Parameter]:
    """Unwritten gate (None without), up and down tables [E, F, D]; a row is a hidden unit in all three."""
    gate, up, down = (nn.Parameter(torch.empty(n_experts, d_expert, d_model)) for _ in range(3))
    return gate if form == "glu" else None, up, down


@dataclass(frozen=True)
class ExpertMLPs:
    """The experts that `gate`, `up` and `down` [E, F, D] of a block hold."""

    gate: Tensor | None
    up: Tensor
    down: Tensor
    act: Callable[[Tensor], Tensor]

    def init(self, output_scale: float) -> None:
        for weight in (self.gate, self.up):
            if weight is not None:
                init_weight(weight, weight.shape[2])
        init_weight(self.down, self.down.shape[1], output_scale)

    def numel(self) -> int:
        return sum(weight.numel() for weight in (self.gate, self.up, self.down) if weight is not None)

    @property
    def tables(self) -> Tables:
        return self.gate, self.up, self.down

    def every(self, x: Tensor, weight_of: Tensor) -> Tensor:
        """All experts: x [N, D], the weight of each [E, N] -> [N, D]."""
        return side_by_side(x, weight_of, self.tables, self.act)

    def chosen(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Those that each token chose: x [N, D], chosen and their weights [K, N] -> [N, D]."""
        return expert_mlps(x, chosen, weights, self.tables, self.act)
