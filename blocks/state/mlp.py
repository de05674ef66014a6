"""A two-layer perceptron applied to each token.

    y = W_down act(W_up x)

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762 ; squared ReLU: So et al. 2021, https://arxiv.org/abs/2109.08668
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn

from doge_lab.block import BlockConfig, StateBlock
from doge_lab.layers.activations import Activation, activation
from doge_lab.layers.init import init_linear


class MLP(StateBlock):
    """Two linear maps with an activation between them."""

    width_option = "d_hidden"
    search_space: ClassVar[Mapping[str, Any]] = {"activation": {"choice": ["gelu", "silu", "relu2"]}}

    class Config(BlockConfig):
        d_hidden: PositiveInt | None = None
        """Hidden width; 4 * d_model when left out."""
        activation: Activation = "gelu"
        """The function between the two maps."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        d_hidden = self.config.d_hidden or 4 * d_model
        self.act = activation(self.config.activation)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear(self.up)
        init_linear(self.down, self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))

    def flops_per_token(self, context: int) -> int:
        return 2 * self.num_params()
