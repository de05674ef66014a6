"""The dense part that a routed block keeps beside its experts: a perceptron, gated or not.

    mlp   y = W_down act(W_up x)
    glu   y = W_down (act(W_gate x) ⊙ W_up x)

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762 ; gated: Shazeer 2020, https://arxiv.org/abs/2002.05202
"""

from typing import Literal

from torch import Tensor, nn

from doge_lab.layers.activations import Activation, activation
from doge_lab.layers.init import init_linear

FeedForwardForm = Literal["mlp", "glu"]


class FeedForward(nn.Module):
    """A perceptron with one hidden layer, from `d_model` channels to as many. Its owner initialises it."""

    def __init__(self, d_model: int, d_hidden: int, *, form: FeedForwardForm, act: Activation) -> None:
        super().__init__()
        self.act = activation(act)
        self.gate = nn.Linear(d_model, d_hidden, bias=False) if form == "glu" else None
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def init(self, output_scale: float) -> None:
        if self.gate is not None:
            init_linear(self.gate)
        init_linear(self.up)
        init_linear(self.down, output_scale)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.up(x)) if self.gate is None else self.act(self.gate(x)) * self.up(x)
        return self.down(hidden)
