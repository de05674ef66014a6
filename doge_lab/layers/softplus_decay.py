"""A decay that the token sets, between a rate that the head learns and the step that the token takes.

    log a_t = -exp(log_rate) softplus(x_t + bias)

Source: Gu & Dao 2023, https://arxiv.org/abs/2312.00752

Shape letters: B batch row, T token, H head, A decay channel.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SoftplusDecay(nn.Module):
    """The logarithms of decays [B, T, H, A], in float32: one rate per head, one bias per head and channel."""

    def __init__(self, n_heads: int, channels: int = 1) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.empty(n_heads, 1))
        self.bias = nn.Parameter(torch.empty(n_heads, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rates of 1 to 16 and, at x = 0, steps of 0.001 to 0.1, as in Mamba-2."""
        with torch.no_grad():
            self.log_rate.uniform_(1.0, 16.0).log_()
            step = self.bias.uniform_(math.log(1e-3), math.log(1e-1)).exp()
            self.bias.copy_(step + torch.log(-torch.expm1(-step)))  # what softplus takes back to the step

    def forward(self, x: Tensor) -> Tensor:
        return -self.log_rate.float().exp() * F.softplus(x.float() + self.bias.float())
