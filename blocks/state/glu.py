"""A gated linear unit applied to each token: one projection decides how much of the other passes.

    y = W_down (act(W_gate x) ⊙ W_up x)

Source: Shazeer 2020, https://arxiv.org/abs/2002.05202
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn

from doge_lab.block import BlockConfig, StateBlock
from doge_lab.layers.activations import Activation, activation
from doge_lab.layers.init import init_linear


class GLU(StateBlock):
    """Three linear maps, one of them a gate: SwiGLU with `silu`, GEGLU with `gelu`, ReGLU with `relu`."""

    width_option = "d_hidden"
    search_space: ClassVar[Mapping[str, Any]] = {"activation": {"choice": ["silu", "gelu", "relu2"]}}

    class Config(BlockConfig):
        d_hidden: PositiveInt | None = None
        """Hidden width; 8/3 * d_model when left out, as many parameters as an MLP of 4 * d_model."""
        activation: Activation = "silu"
        """The function on the gate."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        d_hidden = self.config.d_hidden or round(8 * d_model / 3)
        self.act = activation(self.config.activation)
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear(self.gate)
        init_linear(self.up)
        init_linear(self.down, self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))

    def flops_per_token(self, context: int) -> int:
        return 2 * self.num_params()
