"""No state block: tokens pass unchanged.

    y = 0        (the model leaves block, norm and residual out)

Source: doge_lab; models without an MLP are measured in Allen-Zhu & Li 2024, https://arxiv.org/abs/2404.05405
"""

import torch
from torch import Tensor

from doge_lab.block import StateBlock


class NoState(StateBlock):
    """Adds nothing to any token."""

    is_none = True

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def flops_per_token(self, context: int) -> int:
        return 0
