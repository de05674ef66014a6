"""Initialisers."""

from torch import Tensor, nn


def init_linear(linear: nn.Linear, scale: float = 1.0) -> None:
    """Weights of standard deviation `scale / sqrt(in_features)`, cut at two standard deviations; a bias of zero."""
    init_weight(linear.weight, linear.in_features, scale)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def init_weight(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    std = scale * fan_in**-0.5
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
