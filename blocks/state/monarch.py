"""A two-layer perceptron whose maps are Monarch matrices: two block-diagonal matrices with a permutation between.

    y = M_down act(M_up x)

    M = Pᵀ L P R        R = diag(R_1 ... R_K)        L = diag(L_1 ... L_K)        P[j m/K + i, i K + j] = 1

P deals the m channels between the two out to the K blocks of L like cards, each block getting m / K² from every block
of R; Pᵀ collects the outputs of L in the same way. From D_in to D_out channels m is the smaller of both. M has
m (D_in + D_out) / K parameters, and starts with the variance of a dense layer. With more than √m blocks a block of L
gets nothing from some blocks of R, and those entries of M are zero.

Source: Dao et al. 2022, https://arxiv.org/abs/2204.00595 ; from one width to another: Fu et al. 2023,
https://arxiv.org/abs/2310.12109

Shape letters: N token, K block, P input of a block of R, Q output of it, S output of a block of L, D d_model.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from doge_lab.block import BlockConfig, StateBlock, require_divisible
from doge_lab.errors import UserError
from doge_lab.layers.activations import Activation, activation
from doge_lab.layers.init import init_weight


class Monarch(StateBlock):
    """A perceptron whose maps mix all channels with a fraction of a dense layer's parameters."""

    width_option = "d_hidden"
    search_space: ClassVar[Mapping[str, Any]] = {
        "n_blocks": {"choice": [2, 4, 8]},
        "activation": {"choice": ["gelu", "silu", "relu2"]},
    }

    class Config(BlockConfig):
        d_hidden: PositiveInt | None = None
        """Hidden width, a multiple of n_blocks; 4 * d_model when left out."""
        n_blocks: PositiveInt = 4
        """Blocks of each block-diagonal matrix; divides d_model and d_hidden."""
        activation: Activation = "gelu"
        """The function between the two maps."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        n_blocks = self.config.n_blocks
        require_divisible("d_model", d_model, "n_blocks", n_blocks)
        d_hidden = self.config.d_hidden or 4 * d_model
        if d_hidden % n_blocks:
            above = -(-d_hidden // n_blocks) * n_blocks
            raise UserError(
                f"d_hidden={d_hidden} must be a multiple of n_blocks={n_blocks}, such as {above}", "d_hidden"
            )
        self.act = activation(self.config.activation)
        self.up = _MonarchLinear(d_model, d_hidden, n_blocks)
        self.down = _MonarchLinear(d_hidden, d_model, n_blocks)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.up.init()
        self.down.init(self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x.flatten(0, -2)))).view_as(x)

    def flops_per_token(self, context: int) -> int:
        return 2 * self.num_params()


class _MonarchLinear(nn.Module):
    """Pᵀ L P R; both matrices are held as their blocks, transposed. Its owner initialises it."""

    weight_matrices = ("right", "left")

    def __init__(self, d_in: int, d_out: int, n_blocks: int) -> None:
        super().__init__()
        between = min(d_in, d_out) // n_blocks
        self.right = nn.Parameter(torch.empty(n_blocks, d_in // n_blocks, between))  # [K, P, Q]
        self.left = nn.Parameter(torch.empty(n_blocks, between, d_out // n_blocks))  # [K, Q, S]

    def init(self, scale: float = 1.0) -> None:
        init_weight(self.right, self.right.shape[1])
        init_weight(self.left, self.left.shape[1], scale)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D_in] -> [N, D_out]."""
        n_blocks, d_block, between = self.right.shape
        mixed = x.view(-1, n_blocks, d_block).transpose(0, 1) @ self.right  # [K, N, Q]
        dealt = mixed.transpose(0, 1).reshape(-1, between, n_blocks).permute(2, 0, 1)  # [K, N, Q]
        return (dealt @ self.left).permute(1, 2, 0).flatten(1)
