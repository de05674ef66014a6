"""Root mean square normalisation, in its weights' precision whatever the type around it.

    y = x / sqrt(mean(x²) + eps) ⊙ weight

Source: Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467
"""

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """PyTorch's, which under autocast meets an input in fewer bits than its weight: slowly, and with a warning."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, self.weight.dtype))
        return super().forward(wide).to(x.dtype)
