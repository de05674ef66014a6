"""A two-layer perceptron whose maps are products of two thin matrices.

    y = W_down act(W_up x)          W_up = A_up B_up,   W_down = A_down B_down

    A_up [F, R]    B_up [R, D]    A_down [D, R]    B_down [R, F]

At rank R the factors hold 2 R (D + F) parameters where the matrices would hold 2 D F. Each factor starts with the
variance that its own input asks for, so that the products start with the variance of a dense layer's.

Source: Wei et al. 2024, https://arxiv.org/abs/2406.16450

Shape letters: D d_model, F d_hidden, R rank.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn

from doge_lab.block import BlockConfig, StateBlock
from doge_lab.errors import UserError
from doge_lab.layers.activations import Activation, activation
from doge_lab.layers.init import init_linear


class LowRank(StateBlock):
    """A perceptron of few parameters for its hidden width: every map passes `rank` channels."""

    width_option = "d_hidden"
    search_space: ClassVar[Mapping[str, Any]] = {
        "rank": {"int": [4, 32], "log": True},
        "activation": {"choice": ["gelu", "silu", "relu2"]},
    }

    class Config(BlockConfig):
        d_hidden: PositiveInt | None = None
        """Hidden width; 4 * d_model when left out."""
        rank: PositiveInt | None = None
        """Rank of both maps, at most d_model; d_model / 4 when left out."""
        activation: Activation = "gelu"
        """The function between the two maps."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        d_hidden = self.config.d_hidden or 4 * d_model
        rank = self.config.rank or max(1, d_model // 4)
        if rank > d_model:
            raise UserError(
                f"rank={rank} must be at most d_model={d_model}, above which it restricts nothing; "
                f"give a smaller rank, or use the block mlp",
                "rank",
            )
        self.act = activation(self.config.activation)
        self.up = _LowRankLinear(d_model, rank, d_hidden)
        self.down = _LowRankLinear(d_hidden, rank, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.up.init()
        self.down.init(self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))

    def flops_per_token(self, context: int) -> int:
        return 2 * self.num_params()


class _LowRankLinear(nn.Module):
    """A B. Its owner initialises it."""

    def __init__(self, d_in: int, rank: int, d_out: int) -> None:
        super().__init__()
        self.b = nn.Linear(d_in, rank, bias=False)
        self.a = nn.Linear(rank, d_out, bias=False)

    def init(self, scale: float = 1.0) -> None:
        init_linear(self.b)
        init_linear(self.a, scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.b(x))
