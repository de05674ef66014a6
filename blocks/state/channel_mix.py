"""RWKV's channel mix: a perceptron with a squared ReLU, with or without a gate on its output.

    y = W_v relu(W_k x)²                                      RWKV-7
    y = sigmoid(W_r x) ⊙ W_v relu(W_k x)²                     RWKV-4 to RWKV-6: `receptance`

Published, x is first mixed with the token before it (token shift). That moves information between tokens, which is the
business of a sequence block: a `short_conv` with kernel_size 2 before this block does the like. Published, W_v starts
at zero; here it starts as the last projection of every other block does.

Source: Peng et al. 2025 (RWKV-7), https://arxiv.org/abs/2503.14456 ; Peng et al. 2024 (RWKV-6),
https://arxiv.org/abs/2404.05892 ; Peng et al. 2023 (RWKV-4), https://arxiv.org/abs/2305.13048

Shape letters: B batch row, T token, D d_model.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn

from doge_lab.block import BlockConfig, StateBlock
from doge_lab.layers.activations import relu2
from doge_lab.layers.init import init_linear


class ChannelMix(StateBlock):
    """Key and value projections around a squared ReLU; the receptance decides how much of each channel passes."""

    width_option = "d_hidden"
    search_space: ClassVar[Mapping[str, Any]] = {"receptance": {"choice": [False, True]}}

    class Config(BlockConfig):
        d_hidden: PositiveInt | None = None
        """Hidden width; when left out, 4 * d_model, or 3.5 * d_model with a receptance (both as published)."""
        receptance: bool = False
        """Gate every output channel by a sigmoid of the token."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        d_hidden = c.d_hidden or (max(1, 7 * d_model // 2) if c.receptance else 4 * d_model)
        self.key = nn.Linear(d_model, d_hidden, bias=False)
        self.value = nn.Linear(d_hidden, d_model, bias=False)
        self.receptance = nn.Linear(d_model, d_model, bias=False) if c.receptance else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear(self.key)
        init_linear(self.value, self.output_scale)
        if self.receptance is not None:
            init_linear(self.receptance)

    def forward(self, x: Tensor) -> Tensor:
        y = self.value(relu2(self.key(x)))
        return y if self.receptance is None else self.receptance(x).sigmoid() * y

    def flops_per_token(self, context: int) -> int:
        return 2 * self.num_params()
