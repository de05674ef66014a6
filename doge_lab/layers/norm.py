"""Normalisation: by the root mean square, in its weights' precision whatever the type around it, and to unit length.

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


def unit(x: Tensor) -> Tensor:
    """Rows of length 1 in float32; of zero where they are zero."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)
