"""Initialisers."""

import math

import torch
from torch import Tensor, nn


def init_linear(linear: nn.Linear, scale: float = 1.0) -> None:
    """Weights of standard deviation `scale / sqrt(in_features)`, cut at two standard deviations; a bias of zero."""
    init_weight(linear.weight, linear.in_features, scale)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def init_weight(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    std = scale * fan_in**-0.5
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def init_step_size(bias: Tensor, smallest: float = 1e-3, largest: float = 0.1) -> None:
    """Such that the step size Δ = softplus(bias) of a state-space model starts log-uniform between the two.

    Source: Gu & Dao 2023, section 3.6, https://arxiv.org/abs/2312.00752
    """
    with torch.no_grad():
        bias.uniform_(math.log(smallest), math.log(largest)).exp_()
        bias.add_(torch.log(-torch.expm1(-bias)))  # the inverse of softplus
