"""Perceptrons side by side, of which each token passes a few, weighted: two ways of computing one sum.

    y = Σ over the chosen w_e expert_e(x)

    expert_e(x) = W_down,e act(W_up,e x)                        mlp
    expert_e(x) = W_down,e (act(W_gate,e x) ⊙ W_up,e x)         glu

Side by side the experts are one wide perceptron whose hidden units are weighted by expert, zero for those not chosen;
one after the other, each sees the tokens that chose it. The first computes in vain what nobody chose, the second sorts
tokens and multiplies once for each expert: it costs less once tokens are many.

Source: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538

Shape letters: N token, K pick, E expert, F d_expert, D d_model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from doge_lab.layers.feed_forward import FeedForwardForm
from doge_lab.layers.init import init_weight
from doge_lab.ops.picks import count_picks

_WASTE = 350_000
"""Multiply-adds in vain, by expert and matrix, that cost a CPU as much as serving one expert apart."""


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

    def favours_every(self, n_tokens: int, top_k: int) -> bool:
        """True where the experts not chosen cost less than sorting tokens by expert."""
        if torch.compiler.is_compiling():
            return True  # how many tokens an expert gets is data, which no captured graph can depend on
        n_experts, d_expert, d_model = self.up.shape
        wasted = n_tokens * d_expert * d_model * (n_experts - top_k)
        return n_tokens * top_k >= n_experts and wasted <= n_experts * _WASTE

    def every(self, x: Tensor, weight_of: Tensor) -> Tensor:
        """All experts side by side: x [N, D], the weight of each [E, N] -> [N, D]."""
        n_experts, d_expert, _ = self.up.shape
        gate = None if self.gate is None else self.gate.flatten(0, 1)
        hidden = self._hidden(x.t(), self.up.flatten(0, 1), gate)  # [E F, N]
        hidden = hidden.view(n_experts, d_expert, -1) * weight_of[:, None]
        return hidden.flatten(0, 1).t() @ self.down.flatten(0, 1)

    def every_chosen(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """As `chosen` computes, with all experts side by side."""
        return self.every(x, weights.new_zeros(len(self.up), len(x)).scatter(0, chosen, weights))

    def chosen(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Each expert on the tokens that chose it: x [N, D], chosen and their weights [K, N] -> [N, D]."""
        order = chosen.flatten().argsort(stable=True)
        token = order % len(x)
        load = count_picks(chosen, len(self.up)).tolist()
        gates = [None] * len(self.up) if self.gate is None else self.gate.unbind()
        parts = x.index_select(0, token).split(load)
        shares = weights.flatten().index_select(0, order).split(load)
        experts = zip(parts, shares, self.up.unbind(), gates, self.down.unbind(), strict=True)
        outputs = torch.cat(
            [
                (self._hidden(part.t(), up, gate) * share).t() @ down
                for part, share, up, gate, down in experts
                if len(part)
            ]
        )
        return outputs.new_zeros(x.shape).index_add(0, token, outputs)

    def _hidden(self, x: Tensor, up: Tensor, gate: Tensor | None) -> Tensor:
        """Hidden units [F, N] of the tokens `x` [D, N]."""
        return self.act(up @ x) if gate is None else self.act(gate @ x) * (up @ x)
